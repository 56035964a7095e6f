"""From a probe to a store: log-probs, votes and scores of an endpoint as targets, and what stops a recipe before."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from limbeck.check.recipe import check_recipe
from limbeck.data import row_id
from limbeck.endpoint import probe
from limbeck.endpoint.capabilities import Capabilities
from limbeck.errors import RecipeError
from limbeck.label.preflight import FILE, keep_record, missing, needs_probe, prepare, probe_cost, sentences
from limbeck.label.remote import run_ask
from limbeck.pipeline.run import run_recipe
from limbeck.text.encode import Encoder, Example
from limbeck.text.packing import label_positions, labels_of
from limbeck.types import Callbacks, Row
from tests import tiny
from tests.endpoint.bigram import END, TOKENIZER, Endpoint, Manners, bigram
from tests.endpoint.fake_server import FakeServer
from tests.endpoint.test_probe import impossible, side_by_side
from tests.pipeline.test_run import recipe_of
from tests.recipes import tiny_recipe

LOGITS = bigram()
GENERATE = ("trace.mode.kind=generate", "trace.mode.max_tokens=6")
TOP_5 = ("trace.target.kind=top_k", "trace.target.k=5")
ALL = Capabilities(
    model="m", fingerprints=("f",), endpoint="chat", logprobs=20, raw=True, ends_told=True, tokens="agree",
    tokens_why="90 tokens have the bytes of ours", prompt="agree", spread=0.0, same_text=True, samples=True, n=True,
    seed=True, stop=True, json_schema=True, refuses_unknown_model=True, token_ids=True, completions=True, echo=True,
    token_prompts=True, prompt_logprobs=True,
)  # fmt: skip


def recipe_at(url, *overrides):
    teacher = [f"teacher.base_url={url}", "teacher.model=bigram", "teacher.api_key_env=null", "teacher.concurrency=4"]
    student = "student={kind: pretrained, path: somewhere}"
    return tiny_recipe("teacher.kind=openai", *teacher, student, *overrides)


def rows_of(texts, *, reply=False):
    encoder = Encoder(TOKENIZER, max_length=128, need_reply=reply)
    rows = []
    for number, text in enumerate(texts):
        example = Example(text=text) if reply else Example(prompt=text)
        made = encoder.encode(replace(example, source=f"x:{number}"))
        rows.append(
            Row(row_id(made.text), "train", "", made.text, made.ids, made.spans, f"x:{number}", encoder.asked(example))
        )
    return rows


PROMPTS = rows_of(["Tell me of weather.", "What is cooked?", "Reply with a single word: yes"])


@pytest.fixture
def go(tmp_path):
    """`go(manners, "trace.target.k=3")` labels the prompts through an endpoint: (store, endpoint, messages)."""

    def run(manners, *overrides, rows=PROMPTS):
        served, said, folder = Endpoint(manners), [], tmp_path / "traces"
        with FakeServer(served.answer) as at:
            recipe = recipe_at(at.url, *overrides)
            keeping, record = prepare(recipe, [folder], TOKENIZER, said.append)
            if record is not None:
                keep_record(recipe, folder, record)
            callbacks = Callbacks(lambda progress: None, said.append, lambda: False)
            return run_ask(recipe, folder, keeping, rows, callbacks), served, said

    return run


def own(before, ids):
    z = LOGITS[before] - LOGITS[before].max()
    p = np.exp(z) / np.exp(z).sum()
    return {index: p[index] for index in ids}


def cells(dist, place):
    found = zip(dist.ids_NK[place].tolist(), dist.logp_NK[place].exp().tolist(), strict=True)
    return {index: mass for index, mass in found if index >= 0}


@pytest.mark.parametrize("ids", [True, False])
def test_log_probs_become_targets(go, ids):
    store, served, said = go(Manners(ids=ids), *GENERATE, *TOP_5)
    assert store.header.kind == "top_k" and len(store.traces()) == len(PROMPTS)
    assert any("tells 5 log-probs" in text or "20 log-probs" in text for text in said)
    assert served.bodies[-1]["top_logprobs"] == 5 and ("return_token_ids" in served.bodies[-1]) == ids
    for trace in store.traces():
        dist, labels = store.dist(trace), labels_of(trace)
        assert trace.meta["hard"] == 0 and trace.meta["unknown"] == 0
        assert TOKENIZER.decode(labels) == trace.meta["reply"]
        for place, before in enumerate([1, *labels[:-1]]):
            found = cells(dist, place)
            assert 5 <= len(found) <= 6 and int(labels[place]) in found
            assert found == pytest.approx(own(before, found), rel=0.1, abs=0.02)  # eight bits each


@pytest.mark.parametrize("change", [impossible(None), impossible(float("-inf")), side_by_side])
def test_log_probs_in_other_words_are_the_same_targets(go, change):
    """What cannot be has no mass, whatever the number; and the shape of completions is read in a chat too."""
    store, *_ = go(Manners(change=change), *GENERATE, *TOP_5)
    assert len(store.traces()) == len(PROMPTS)
    for trace in store.traces():
        dist, labels = store.dist(trace), labels_of(trace)
        assert trace.meta["hard"] == 0
        for place, before in enumerate([1, *labels[:-1]]):
            found = cells(dist, place)
            assert found == pytest.approx(own(before, found), rel=0.1, abs=0.02)


@pytest.mark.parametrize("told", [True, False])
def test_ends_are_learnt_whether_told_or_not(go, told):
    """A reply that ended: with its distribution, or as a label."""
    short = ("trace.mode.max_tokens=40",)
    store, _, _ = go(Manners(ends_told=told), *GENERATE, *TOP_5, *short)
    (trace,) = [trace for trace in store.traces() if trace.meta["finish_reason"] == "stop"]
    assert labels_of(trace)[-1] == END and trace.meta["hard"] == (not told)
    last = cells(store.dist(trace), trace.num_supervised - 1)
    assert (len(last) > 1) == told and last[END] > 0.7
    assert all(END not in labels_of(other) for other in store.traces() if other.id != trace.id)


def test_votes_of_an_endpoint(go):
    """Any endpoint that samples will do: nothing is asked but text."""
    votes = ("trace.target.kind=votes", "trace.mode.n=5", "trace.mode.max_tokens=3")
    store, served, _ = go(Manners(most_logprobs=0), *GENERATE, *votes)
    assert store.header.kind == "votes" and not any(body.get("logprobs") for body in served.bodies[-15:])
    for row in PROMPTS:
        traces = [trace for trace in store.traces() if trace.row_id == row.id]
        assert sum(trace.meta["votes"] for trace in traces) == 5
        for trace in traces:
            assert trace.meta["weight"] == trace.meta["votes"] / 5
            first = cells(store.dist(trace), 0)
            counted = Counter(int(labels_of(other)[0]) for other in traces for _ in range(other.meta["votes"]))
            assert first == pytest.approx({token: count / 5 for token, count in counted.items()})


@pytest.mark.parametrize("way", [{}, {"prompt_logprobs": False}])
def test_given_text_is_scored(go, way):
    rows = rows_of([row["text"] for row in tiny.rows(6)], reply=True)
    store, served, _ = go(Manners(**way), *TOP_5, rows=rows)
    body = served.bodies[-1]
    assert ("prompt_logprobs" in body) == (not way) and body["prompt"] in [row.ids.tolist() for row in rows]
    assert {trace.row_id for trace in store.traces()} == {row.id for row in rows}
    for trace in store.traces():
        dist = store.dist(trace)
        for place, position in enumerate(label_positions(trace)):
            if trace.ids[position] != END:  # which the bigrams do not know
                found = cells(dist, place)
                assert int(trace.ids[position]) in found
                assert found == pytest.approx(own(trace.ids[position - 1], found), rel=0.1, abs=0.02)


def test_nothing_is_asked_twice_and_the_store_is_the_same(go, tmp_path):
    store, first, _ = go(Manners(), *GENERATE, *TOP_5)
    records = {trace.id: store.dist(trace).logp_NK.tolist() for trace in store.traces()}
    again, second, said = go(Manners(), *GENERATE, *TOP_5)
    assert not second.bodies and not any("asking" in text for text in said)
    assert {trace.id: again.dist(trace).logp_NK.tolist() for trace in again.traces()} == records
    assert json.loads((tmp_path / "traces" / FILE).read_text())["capabilities"]["requests"] < len(first.bodies)


def test_a_recipe_that_needs_what_is_ignored_stops_before_money_is_spent(go):
    with pytest.raises(RecipeError, match="tells no log-probs.*votes"):
        go(Manners(most_logprobs=0), *GENERATE, *TOP_5)
    with pytest.raises(RecipeError, match="cannot be proven.*cuts its replies"):
        go(Manners(spelling="letters"), *GENERATE, *TOP_5)
    with pytest.raises(RecipeError, match="replicas that are not one model"):
        go(Manners(replicas=(0, 5)), *GENERATE, *TOP_5)


@pytest.mark.parametrize(
    ("overrides", "seen", "where", "message"),
    [
        ([*GENERATE, *TOP_5], {"logprobs": 3}, "trace.target.k", "set it to 3"),
        ([*GENERATE, *TOP_5, "trace.mode.temperature=0.5"], {"raw": False}, "trace.mode.temperature", "temperature=1"),
        ([*GENERATE, *TOP_5, "trace.mode.stop=[x]"], {"ends_told": False}, "trace.mode.stop", "Remove it"),
        ([*GENERATE, *TOP_5], {"fingerprints": ("a", "b")}, "teacher.model", "a and b"),
        (list(TOP_5), {"prompt_logprobs": False, "echo": False}, "trace.mode.kind", "generate"),
        ([*GENERATE, "trace.mode.n=4"], {"samples": False}, "trace.mode.n", "Use 1"),
        ([*GENERATE, "trace.mode.stop=[x]"], {"stop": False}, "trace.mode.stop", "ignored"),
        (
            [*GENERATE, "trace.mode.n=4", "teacher.samples_per_request=4"],
            {"n": False},
            "teacher.samples_per_request",
            "1",
        ),
        (
            [*GENERATE, "teacher.extra_body={response_format: {type: json_schema}}"],
            {"json_schema": False},
            "teacher.extra_body",
            "response_format",
        ),
    ],
)
def test_what_is_missing_is_named(overrides, seen, where, message):
    recipe = recipe_at("http://127.0.0.1:1/v1", *overrides)
    assert missing(recipe, ALL) == []
    (found,) = missing(recipe, replace(ALL, **seen))
    assert found.where == where and message in found.message


def test_a_mixture_may_be_accepted_by_name():
    recipe = recipe_at("http://127.0.0.1:1/v1", *GENERATE, *TOP_5, "teacher.on_change=annotate")
    assert missing(recipe, replace(ALL, spread=3.0, fingerprints=("a", "b"))) == []


def test_plain_text_needs_no_probe():
    text = "trace.target.kind=text"
    assert not needs_probe(recipe_at("http://127.0.0.1:1/v1", *GENERATE, text))
    assert needs_probe(recipe_at("http://127.0.0.1:1/v1", *GENERATE, text, "trace.mode.n=2"))
    assert not needs_probe(tiny_recipe())


def test_the_probe_tells_its_price():
    recipe = recipe_at("http://127.0.0.1:1/v1", *GENERATE)
    assert probe_cost(recipe) == "at most 20 requests, about 2,100 tokens"
    priced = recipe.override("teacher.prices={input: 1, output: 10}")
    assert probe_cost(priced).endswith("tokens, 0.0075 USD")


def test_an_end_in_a_word_that_nobody_knows_is_told_before_it_is_paid_for():
    told = " ".join(sentences(replace(ALL, strange_ends=("paused_for_tea",))))
    assert "not known: paused_for_tea" in told and "not known" not in " ".join(sentences(ALL))


def test_a_record_in_sentences():
    told = " ".join(sentences(ALL))
    assert "tells 20 log-probs per position" in told and "prompt_logprobs and echo" in told
    lacking = replace(ALL, logprobs=0, seed=False, refuses_unknown_model=False, prompt="differ", echo=False)
    told = " ".join(sentences(lacking))
    assert "no log-probs" in told and "ignores seed" in told and "any model's name" in told and "renders" in told


@pytest.mark.slow
@pytest.mark.parametrize("target", [{"kind": "top_k", "k": 5}, {"kind": "votes"}])
def test_a_student_is_trained_on_what_an_endpoint_tells(tiny_llama, text_jsonl, tmp_path, target):
    """A whole run, and again: nothing is asked anew."""
    mode = {"kind": "generate", "n": 4, "max_tokens": 6}
    served = Endpoint(Manners(ids=True))
    with FakeServer(served.answer) as at:
        teacher = {"kind": "openai", "base_url": at.url, "model": "bigram", "api_key_env": None}
        recipe = recipe_of(
            tiny_llama, text_jsonl, teacher=teacher, trace={"mode": mode, "target": target}, data__limit=12,
            data__source={"kind": "files", "path": str(text_jsonl), "prompt": "text", "topic": "topic"},
            student={"kind": "pretrained", "path": str(tiny_llama)}, data__max_length=100,
        )  # fmt: skip
        said = []
        run_recipe(recipe, tmp_path / "run", until="train", on_message=said.append)
        asked = len(served.bodies)
        run_recipe(recipe, tmp_path / "run", until="train")
        assert len(served.bodies) == asked
    assert any("what it can do: at most 20 requests" in text for text in said)
    lines = (tmp_path / "run" / "train" / "student" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["kl"] > 0 for line in lines) and lines


def test_check_asks_the_endpoint(tiny_llama, chat_jsonl, monkeypatch):
    """What is missing is a problem of the recipe, found before a run; what is there are facts."""
    trace = {"mode": {"kind": "generate", "max_tokens": 6}, "target": {"kind": "top_k", "k": 30}}
    student = {"kind": "pretrained", "path": str(tiny_llama)}
    served = Endpoint(Manners())
    with FakeServer(served.answer) as at:
        teacher = {"kind": "openai", "base_url": at.url, "model": "bigram", "api_key_env": None}
        source = {"kind": "files", "path": str(chat_jsonl), "messages": "messages"}
        recipe = recipe_of(
            tiny_llama, chat_jsonl, teacher=teacher, trace=trace, student=student, data__source=source,
            data__max_length=100,
        )  # fmt: skip
        found = check_recipe(recipe)
        assert [problem.where for problem in found.problems] == ["trace.target.k"]
        assert any("log-probs are raw" in fact for fact in found.facts)
        assert check_recipe(recipe.override("trace.target.k=20")).problems == []
    monkeypatch.setattr(probe, "FIRST_WAIT", 0.01)
    (gone,) = check_recipe(recipe).problems
    assert gone.where == "teacher" and "gives no answer" in gone.message
