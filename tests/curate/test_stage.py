"""Runs with a list of curation rules, what they leave on disk, and the review of it."""

import csv
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pyarrow.parquet as pq
import pytest

import limbeck
from limbeck.curate.context import Candidate
from limbeck.curate.review import review
from limbeck.curate.stage import run_curate
from limbeck.errors import DataError, RunDirError, Stopped
from limbeck.label.judge import ask_judges
from limbeck.recipe import Recipe
from limbeck.types import Callbacks
from tests.pipeline.test_run import recipe_of, train


def curated(model, data, *rules, **changes) -> Recipe:
    trace = {"mode": {"kind": "generate", "n": 3, "max_tokens": 6}, "batch_tokens": 600, "shard_tokens": 1200}
    return recipe_of(model, data, **{"trace": trace, "curate": list(rules), **changes})


@pytest.fixture(scope="module")
def finished(tiny_llama, text_jsonl, tmp_path_factory):
    run = tmp_path_factory.mktemp("curated")
    rules = [
        {"kind": "verify", "verifier": {"kind": "regex", "pattern": "[aeiou]"}, "per_prompt": 1, "pick": "shortest"},
        {"kind": "length", "min": 2},
    ]
    return run, limbeck.run_recipe(curated(tiny_llama, text_jsonl, *rules), run)


@pytest.mark.slow
def test_the_student_learns_from_what_is_kept(finished):
    run, summary = finished
    found = json.loads((run / "curate" / "summary.json").read_text())
    kept = json.loads((run / "curate" / "kept.json").read_text())
    assert 0 < found["kept"] == len(kept) < found["candidates"]
    assert [step["rule"] for step in found["steps"]] == ["verify", "length"]
    assert 0 < found["pass_rate"] <= 1
    lines = pq.read_table(run / "curate" / "rejected.parquet").to_pylist()
    assert len(lines) == found["candidates"] and {line["id"] for line in lines if not line["rule_number"]} == set(kept)
    assert {line["verdict"] for line in lines} <= {"right", "wrong"}
    assert "curate" in summary["stages"]
    assert "What the student learnt from" in (run / "report.html").read_text()


@pytest.mark.slow
def test_other_rules_train_anew_and_ask_nobody_again(tiny_llama, text_jsonl, tmp_path):
    first = curated(tiny_llama, text_jsonl, {"kind": "length", "min": 1})
    train(first, tmp_path)
    _, messages = train(first, tmp_path)
    assert sum("skipped" in line or "up to date" in line for line in messages) >= 1
    store = (tmp_path / "traces" / "manifest.jsonl").stat().st_mtime_ns
    train(curated(tiny_llama, text_jsonl, {"kind": "length", "min": 2}), tmp_path)
    assert (tmp_path / "traces" / "manifest.jsonl").stat().st_mtime_ns == store


@pytest.mark.slow
def test_words_of_the_data_are_curated_as_well(tiny_llama, text_jsonl, tmp_path):
    recipe = recipe_of(tiny_llama, text_jsonl, curate=[{"kind": "quota", "total": 5}])
    train(recipe, tmp_path)
    assert len(json.loads((tmp_path / "curate" / "kept.json").read_text())) == 5


@pytest.mark.slow
def test_when_nothing_is_left_the_rule_is_named(tiny_llama, text_jsonl, tmp_path):
    recipe = curated(tiny_llama, text_jsonl, {"kind": "length", "min": 1}, {"kind": "length", "min": 5000})
    with pytest.raises(DataError, match=r"rule 2 \(length\) left out .*reply shorter than 5000 characters"):
        train(recipe, tmp_path)
    assert (tmp_path / "curate" / "rejected.parquet").exists()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"kind": "pass_rate", "min": 0.5}, "put a `verify` rule before it"),
        ({"kind": "length"}, "it keeps all"),
        ({"kind": "length", "min": 9, "max": 3}, "above max"),
        ({"kind": "length", "of": "answer", "unit": "tokens", "min": 1}, "only whole replies"),
        ({"kind": "quota"}, "it keeps all"),
        ({"kind": "quota", "total": 2, "per_topic": 2}, "which no topic can exceed"),
        ({"kind": "near_duplicates", "threshold": 0.1, "permutations": 16}, "set it to 51 or more"),
        ({"kind": "decontaminate", "held_out": False}, "compares with nothing"),
        ({"kind": "language", "allowed": ["eng"]}, "no language that is known. Did you mean en?"),
        ({"kind": "language", "allowed": ["en"], "mixed": True}, "with one language"),
        ({"kind": "quota", "per_topic": 1, "weights": {"a": 2.0}}, "nothing is shared"),
        ({"kind": "verify", "verifier": {"kind": "exact"}, "pick": "random"}, "without `per_prompt`"),
        ({"kind": "verify", "verifier": {"kind": "exact"}, "per_prompt": 2}, "pick is all"),
        (
            {"kind": "verify", "verifier": {"kind": "exact"}, "keep_wrong": True, "per_prompt": 2},
            "keep_wrong keeps all",
        ),
    ],
)
def test_rules_without_effect(tiny_llama, text_jsonl, rule, said):
    found = limbeck.check_recipe(curated(tiny_llama, text_jsonl, rule), estimate=False)
    assert said in " ".join(problem.message for problem in found.problems)


def curate(recipe, folder, made, *, ask=None, content=None, stop_asked=lambda: False, on_message=print):
    told = Callbacks(lambda _: None, on_message, stop_asked)
    return run_curate(recipe, folder, made, ask=ask, content_of=lambda _: content or {}, callbacks=told)


def test_a_stop_between_rules(tiny_llama, text_jsonl, tmp_path):
    recipe = curated(tiny_llama, text_jsonl, {"kind": "finish"}, {"kind": "length", "min": 1})
    made = [Candidate("0", "row", "train", "", "p", "r")]
    with pytest.raises(Stopped):
        curate(recipe, tmp_path, made, stop_asked=lambda: True)
    assert not (tmp_path / "kept.json").exists()


def test_notes_reach_the_page(tiny_llama, text_jsonl, tmp_path):
    recipe = curated(tiny_llama, text_jsonl, {"kind": "decontaminate", "n": 2, "common": 1})
    shared = [Candidate(f"{n}", f"row {n}", "train", "", f"the same words {n}", "r") for n in range(3)]
    known = Candidate("9", "row 9", "heldout", "", "the same words 9", "r")
    curate(recipe, tmp_path, [*shared, known])
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["kept"] == 3 and "taken for a template" in found["notes"][0]


def test_a_stopped_verification_goes_on(tiny_llama, text_jsonl, tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.curate.stage.CHUNK", 2)
    rule = {"kind": "verify", "verifier": {"kind": "exact"}}
    recipe = curated(tiny_llama, text_jsonl, rule)
    made = [Candidate(f"{n}", f"row {n}", "train", "", "p", f"{n}", reference="1") for n in range(9)]
    asked = []
    real = __import__("limbeck.curate.verifiers", fromlist=["compare_exactly"]).compare_exactly
    monkeypatch.setattr(
        "limbeck.curate.verifiers.compare_exactly", lambda *args: (asked.append(args[1]), real(*args))[1]
    )
    stops = iter([False] * 5 + [True] * 99)
    with pytest.raises(Stopped):
        curate(recipe, tmp_path, made, stop_asked=lambda: next(stops))
    with (tmp_path / "verdicts.jsonl").open("a") as file:
        file.write('["half a li')
    curate(recipe, tmp_path, made)
    assert len(asked) <= 9 + 2  # at most one chunk twice
    assert json.loads((tmp_path / "kept.json").read_text()) == ["1"]


def test_a_damaged_verdict_is_made_anew_and_others_are_not(tiny_llama, text_jsonl, tmp_path, monkeypatch):
    """Whatever the byte is: no line of verdicts ends a run, and none says something else than was written."""
    recipe = curated(tiny_llama, text_jsonl, {"kind": "verify", "verifier": {"kind": "exact"}})
    made = [Candidate(f"{n}", f"row {n}", "train", "", "p", f"{n}", reference="1") for n in range(4)]
    curate(recipe, tmp_path, made)
    file = tmp_path / "verdicts.jsonl"
    written = file.read_bytes()
    asked = []
    real = __import__("limbeck.curate.verifiers", fromlist=["compare_exactly"]).compare_exactly
    where = "limbeck.curate.verifiers.compare_exactly"
    monkeypatch.setattr(where, lambda *args: (asked.append(args[1]), real(*args))[1])
    line = len(written.splitlines(keepends=True)[0])
    for at in range(line, line + len(written.splitlines()[1]), 7):
        told: list[str] = []
        asked.clear()
        file.write_bytes(written[:at] + bytes([written[at] ^ 0x80]) + written[at + 1 :])
        curate(recipe, tmp_path, made, on_message=told.append)
        assert len(asked) == len(told) == 1 and "line 2 of verdicts.jsonl is damaged" in told[0]
        assert json.loads((tmp_path / "kept.json").read_text()) == ["1"]


def test_verdicts_of_earlier_versions_are_remembered(tiny_llama, text_jsonl, tmp_path, monkeypatch):
    """Their lines are bare lists."""
    recipe = curated(tiny_llama, text_jsonl, {"kind": "verify", "verifier": {"kind": "exact"}})
    made = [Candidate(f"{n}", f"row {n}", "train", "", "p", f"{n}", reference="1") for n in range(4)]
    curate(recipe, tmp_path, made)
    file = tmp_path / "verdicts.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps([line["key"], line["ok"], line["reason"]]) + "\n" for line in lines))
    monkeypatch.setattr("limbeck.curate.stage.verify_all", lambda *_args, **_more: pytest.fail("verified again"))
    curate(recipe, tmp_path, made)


def test_a_verdict_holds_for_the_content_of_the_verifiers_files(tiny_llama, text_jsonl, tmp_path):
    pytest.importorskip("jsonschema")
    schema = tmp_path / "schema.json"
    verifier = {"kind": "json_schema", "path": str(schema)}
    recipe = curated(tiny_llama, text_jsonl, {"kind": "verify", "verifier": verifier})
    made = [Candidate("0", "row", "train", "", "p", '"text"'), Candidate("1", "row 1", "train", "", "p", "{}")]
    for kind, kept in (("object", ["1"]), ("string", ["0"])):
        schema.write_text(json.dumps({"type": kind}))
        curate(recipe, tmp_path / "curate", made, content={str(schema): kind})
        assert json.loads((tmp_path / "curate" / "kept.json").read_text()) == kept


HOSTILE = "<script>alert(1)</script>\u202e \x1b[31m\x00 =cmd()"


def cells(file):
    with file.open(newline="", encoding="utf-8-sig") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.slow
def test_reviews_are_harmless(finished, tmp_path):
    run, _ = finished
    assert review(run, tmp_path / "review.csv") == review(run, tmp_path / "review.html")
    rules = curate_file(tmp_path / "hostile", "=1+1", HOSTILE)
    review(rules, tmp_path / "h.html")
    page = (tmp_path / "h.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not {"\u202e", "\x1b", "\x00"} & set(page)
    assert "http" not in page.replace('<meta http-equiv="Content-Security-Policy"', "")
    review(rules, tmp_path / "h.csv")
    assert (tmp_path / "h.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    line = cells(tmp_path / "h.csv")[0]
    assert line["prompt"] == "'=1+1"
    assert line["reply"] == "<script>alert(1)</script>\\u202e \\x1b[31m\\x00 =cmd()"
    with pytest.raises(DataError, match=r"neither \.csv nor \.html"):
        review(rules, tmp_path / "h.pdf")
    with pytest.raises(RunDirError, match="has no curated replies"):
        review(tmp_path, tmp_path / "h.csv")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\n=", "\r", "\u00a0=", "\uff1d", "\uff20"])
def test_no_cell_is_a_formula(tmp_path, start):
    run = curate_file(tmp_path, "p", f"{start}cmd|'/c calc'!A0")
    review(run, tmp_path / "h.csv")
    assert cells(tmp_path / "h.csv")[0]["reply"][0] in "'\\"  # spelt out, a return is no formula


@pytest.mark.slow
def test_a_short_review_draws_from_every_rule(finished, tmp_path):
    run, _ = finished
    whole, part = tmp_path / "whole.csv", tmp_path / "part.csv"
    total = review(run, whole)[1]
    assert total > 30 and review(run, part, 20) == (20, total)
    counts = {file: Counter(line["rule"] for line in cells(file)) for file in (whole, part)}
    assert set(counts[part]) == set(counts[whole])
    fair = min(counts[whole][rule] for rule in counts[whole])
    assert all(counts[part][rule] >= min(fair, 20 // len(counts[whole])) for rule in counts[whole])
    order = [line["id"] for line in cells(whole)]
    drawn = [line["id"] for line in cells(part)]
    assert drawn == sorted(drawn, key=order.index)
    assert review(run, tmp_path / "part.html", 20) == (20, total)
    page = (tmp_path / "part.html").read_text()
    assert f"20 of {total} replies, drawn evenly" in page and page.count("<article") == 20
    assert all(f'href="#rule{line}"' in page for line in (0, 1)) and page.count('id="rule1"') == 1


def curate_file(run, prompt, reply):
    """A run folder of one curated reply."""
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "teacher": {"path": "x"},
            "data": {"source": {"kind": "stdlib"}},
            "student": {"kind": "prune", "layers": 1},
            "train": {"budget": {"kind": "steps", "steps": 1}},
            "curate": [{"kind": "length", "min": 1}],
        }
    )
    one = Candidate("id", "row", "train", "topic", prompt, reply)
    curate(recipe, run / "curate", [one])
    return run


@pytest.mark.slow
def test_a_humans_verdict_comes_back(finished, tiny_llama, text_jsonl, tmp_path):
    run, _ = finished
    table = tmp_path / "review.csv"
    review(run, table)
    lines = cells(table)
    gone = next(line for line in lines if line["rule"] == "kept")
    gone["verdict"] = "reject"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    recipe = curated(tiny_llama, text_jsonl, {"kind": "verdicts", "path": str(table)})
    train(recipe, run)
    assert gone["id"] not in json.loads((run / "curate" / "kept.json").read_text())


def test_a_judge_in_this_process(tiny_llama, text_jsonl, tmp_path):
    """A tiny random model says nothing that can be understood: all is unknown, and kept where that is wanted."""
    judge = {"kind": "judge", "path": str(tiny_llama), "max_tokens": 4}
    recipe = curated(tiny_llama, text_jsonl, {"kind": "verify", "verifier": judge, "keep_unknown": True})
    made = [Candidate("0", "row", "train", "", "p", "r", reference="1")]
    curate(recipe, tmp_path, made, ask=ask_judges(print))
    line = pq.read_table(tmp_path / "rejected.parquet").to_pylist()[0]
    assert line["verdict"] in ("unknown", "right", "wrong")


class JudgeServer(BaseHTTPRequestHandler):
    """An endpoint that compares answer and reference letter by letter; `asked` are the conversations it saw."""

    asked: ClassVar[list[str]] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = body["messages"][-1]["content"]
        self.asked.append(said)
        reference, answer = said.removeprefix("Reference:\n").split("\n\nAnswer:\n")
        choice = {"message": {"role": "assistant", "content": "CORRECT" if reference == answer else "INCORRECT"}}
        reply = {"model": "m", "choices": [{**choice, "finish_reason": "stop", "index": 0}]}
        data = json.dumps({**reply, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_a_judge_behind_an_endpoint_is_asked_once(tiny_llama, text_jsonl, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), JudgeServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = {"base_url": f"http://127.0.0.1:{server.server_port}/v1", "model": "m", "api_key_env": None}
    try:
        judge = {"kind": "judge", "endpoint": {**endpoint, "concurrency": 2}}
        recipe = curated(tiny_llama, text_jsonl, {"kind": "verify", "verifier": judge})
        made = [Candidate(str(i), "row", "train", "", "p", str(i), reference="1") for i in range(5)]
        for _ in range(2):  # the second time from disk
            curate(recipe, tmp_path, made, ask=ask_judges(print))
        assert json.loads((tmp_path / "kept.json").read_text()) == ["1"]
        assert len(JudgeServer.asked) == 5
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "judge", [{}, {"path": "x", "endpoint": {"model": "m"}}, {"endpoint": {"model": "m", "mode": "batch"}}]
)
def test_a_judge_is_one_model_that_is_asked_live(tiny_llama, text_jsonl, judge):
    with pytest.raises(ValueError, match="a judge is"):
        curated(tiny_llama, text_jsonl, {"kind": "verify", "verifier": {"kind": "judge", **judge}})
