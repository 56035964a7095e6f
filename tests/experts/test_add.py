"""From finished runs to experts: what the card says is what was measured, and `verify` finds it again."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from limbeck.errors import ExpertError, RunDirError, StoreError
from limbeck.experts import ExpertCard, Registry, Scope, verify
from limbeck.experts import add as job
from limbeck.experts.add import add_expert
from limbeck.experts.registry import list_experts, seal_dir, show_expert
from limbeck.experts.scoring import read_heldout
from limbeck.experts.transfer_set import PromptChoice
from limbeck.experts.verify import read_replays, verify_expert
from limbeck.metrics.intervals import paired_bootstrap
from limbeck.models.open import open_lm
from limbeck.pipeline.run import run_recipe
from tests import tiny
from tests.pipeline.test_run import recipe_of

pytestmark = pytest.mark.slow  # whole runs

KEY = "sk-" + "a1B2" * 8


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Short answers do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "TOKENS", 6)
        yield


@pytest.fixture(scope="module")
def notes(tiny_llama, tmp_path_factory):
    """A finished run with a twin; one row in training and one held out hold a key."""
    folder = tmp_path_factory.mktemp("notes")
    rows = [*tiny.rows(), *({"text": f"Use {KEY} for call {n} of the service.", "topic": "keys"} for n in range(8))]
    data = tiny.write_jsonl(folder / "notes.jsonl", rows)
    run_recipe(recipe_of(tiny_llama, data, train__twin=True, name="notes"), folder / "run", estimate=False)
    return folder / "run"


@pytest.fixture(scope="module")
def added(notes, tmp_path_factory):
    """The expert that was made of it, in a registry that is not to be changed."""
    registry = Registry(tmp_path_factory.mktemp("registry"))
    return add_expert(
        notes, registry, PromptChoice("notes", languages=("en",), counter=("Prove that pi is irrational.",))
    )


def scores_of(run, model):
    table = pq.read_table(run / "evaluate" / "scores.parquet").to_pylist()
    return [row for row in table if row["model"] == model]


def test_the_card_says_what_was_measured(notes, added):
    card, summary = added.card, json.loads((notes / "summary.json").read_text())
    assert (added.name, added.version) == ("notes", "1.0.0")
    assert card.format == "safetensors" and card.quant == card.dtype == "float32"
    assert card.parameters == summary["student"]["parameters"]
    assert card.memory_bytes >= card.bytes > 100_000 and card.tokens_per_second > 0 and "threads" in card.machine
    assert card.recipe_fingerprint in (notes / "train/student/artifact/limbeck.json").read_text()
    assert "student:" in card.recipe_yaml and len(card.lineage) >= 2
    assert set(card.scores) == {"teacher", "student", "twin"} and card.quality == "agreement"
    assert card.teacher_parameters > card.parameters > 0
    assert "kl" not in card.scores["teacher"]
    for who in ("student", "twin"):
        mine = scores_of(notes, who)
        positions = np.array([row["positions"] for row in mine], dtype=float)
        for metric in ("kl", "agreement", "accuracy"):
            sums = np.array([row[metric] for row in mine])
            low, high = paired_bootstrap({"x": sums}, positions, clusters=[row["prompt"] for row in mine]).models["x"][
                1:
            ]
            want = {"value": sums.sum() / positions.sum(), "low": low, "high": high, "n": len(mine)}
            assert card.scores[who][metric] == pytest.approx(want)
        assert card.scores[who]["kl"]["value"] == pytest.approx(summary[who]["kl"])
        assert card.scores[who]["perplexity"]["value"] == pytest.approx(summary[who]["perplexity"])


def test_the_scope_is_that_of_the_transfer_set(notes, added):
    scope, data = added.card.scope, json.loads((notes / "data/summary.json").read_text())
    assert scope.domain == "notes" and scope.languages == ("en",) and not scope.chat
    assert scope.counter_examples == ("Prove that pi is irrational.",)
    assert scope.max_input_tokens == 128 and len(scope.examples) == 20
    facts = scope.transfer_set
    assert facts["rows"] == data["train"] and facts["heldout_rows"] == data["heldout"]
    assert facts["source"].startswith("files: ") and facts["longest_row"] <= 48
    assert facts["topics"] == {topic: split["train"] for topic, split in data["topics"].items()}


def test_prompts_come_with_their_quality(notes, added):
    rows = list(added.prompts())
    train, heldout = ([row for row in rows if row.split == split] for split in ("train", "heldout"))
    assert train and heldout and not any(row.quality for row in train)
    lines = {who: {row["row"]: row for row in scores_of(notes, who)} for who in ("student", "twin")}
    for row in heldout:
        shares = [lines[who][row.id]["agreement"] / lines[who][row.id]["positions"] for who in ("student", "twin")]
        assert row.quality == pytest.approx({"expert": shares[0], "teacher": 1.0, "twin": shares[1]})
    assert {row.topic for row in rows} == {"weather", "kitchen", "code", "keys"}
    assert all(row.prompt.startswith(("Note ", "Use [key]")) for row in rows)


def test_no_key_is_stored_anywhere(notes, added):
    assert KEY in str((notes / "data/rows.parquet").read_bytes()) or any(
        KEY in row for row in pq.read_table(notes / "data/rows.parquet").column("text").to_pylist()
    )
    lm = open_lm(added.model_path)
    for file in added.path.iterdir():
        if file.is_file():
            assert KEY not in file.read_text()
    for stored in (*read_heldout(added.path), *read_replays(added.path)):
        assert KEY[:12] not in lm.tokenizer.decode(stored.ids)
    assert any("[key]" in row.prompt for row in added.prompts())


def test_verify_finds_everything_again(added):
    seen = []
    found = verify_expert(added, on_progress=lambda progress: seen.append((progress.stage, progress.done)))
    assert found.holds and found.fingerprint_same
    assert found.replayed == len(read_replays(added.path)) > 10 and found.differing == ()
    assert found.rows == len(read_heldout(added.path)) > 10
    assert {score.metric for score in found.scores} == {"agreement", "perplexity", "accuracy"}
    assert set(found.stated_only) == {"kl", "tv"}
    assert seen[-1] == ("score", found.rows)
    heldout = {row.id: row for row in read_heldout(added.path)}
    agreed = {row.id: row.quality["expert"] for row in added.prompts() if row.quality}
    lm = open_lm(added.model_path, dtype="float32")  # the run scored it in the teacher's precision, packed
    for id, row in heldout.items():
        at = torch.tensor(row.positions)
        top = lm.logits(np.array(row.ids))[at - 1].argmax(-1)
        assert float((top == torch.tensor(row.first)).float().mean()) == pytest.approx(agreed[id], abs=0.1)


def changed(added, tmp_path, change):
    """A copy of the expert in another registry, changed and sealed anew: what a dishonest author would hand out."""
    registry = Registry(tmp_path / "registry")
    folder = registry.path / "experts" / added.name / added.version
    shutil.copytree(added.path, folder)
    change(folder)
    seal_dir(folder)
    return registry.expert(added.name)


def boast(folder):
    card = json.loads((folder / "expert.json").read_text())
    card["scores"]["student"]["agreement"] = {"value": 0.99, "low": 0.98, "high": 0.995, "n": 20}
    (folder / "expert.json").write_text(json.dumps(card))


def other_model(folder):
    shutil.rmtree(folder / "model")
    shutil.copytree(folder.parents[3] / "other", folder / "model")


def other_answers(folder):
    lines = [json.loads(line) for line in (folder / "replay.jsonl").read_text().splitlines()]
    for line in lines:
        line["answer_ids"] = [*line["answer_ids"][::-1], 5]
    (folder / "replay.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_verify_names_a_score_that_cannot_be_reproduced(added, tmp_path):
    found = verify_expert(changed(added, tmp_path, boast))
    assert not found.holds and [score.metric for score in found.scores if not score.holds] == ["agreement"]


def test_verify_names_another_model(notes, added, tmp_path):
    shutil.copytree(notes / "train/twin/artifact", tmp_path / "other")
    found = verify_expert(changed(added, tmp_path, other_model))
    assert not found.holds and not found.fingerprint_same and found.differing


def test_verify_counts_answers_that_differ(added, tmp_path):
    found = verify_expert(changed(added, tmp_path, other_answers))
    assert len(found.differing) == found.replayed and not found.holds
    assert replace(found, differing=found.differing[:2]).holds


ROW = {"id": "x", "prompt": "x", "ids": [1, 2], "spans": [[1, 2]], "first": []}
ANSWER = {"id": "x", "ids": [1], "text": "", "answer": "", "answer_ids": [1], "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("heldout.jsonl", ROW | {"spans": [[1, 9]]}, "spans beyond"),
        ("heldout.jsonl", ROW | {"ids": [1, 9999]}, "not for this model"),
        ("heldout.jsonl", ROW | {"ids": [1] * 500}, "not for this model"),
        ("heldout.jsonl", {"id": 1}, "heldout.jsonl, line 1 cannot be read"),
        (
            "replay.jsonl",
            {"id": "x", "ids": [-1], "text": "", "answer": "", "answer_ids": [], "finish_reason": ""},
            "n",
        ),
        ("replay.jsonl", ["x"], "replay.jsonl, line 1 cannot be read"),
    ],
)
def test_verify_refuses_hostile_lines(file, line, reason, added, tmp_path):
    expert = changed(added, tmp_path, lambda folder: (folder / file).write_text(json.dumps(line) + "\n"))
    with pytest.raises(ExpertError, match=reason):
        verify_expert(expert)


@pytest.mark.slow
def test_versions_follow_and_others_lend_counter_examples(notes, added, tmp_path):
    registry = Registry(tmp_path / "registry")
    shutil.copytree(added.path, registry.path / "experts" / "notes" / "1.0.0")
    registry.add("rain", "1.0.0", ExpertCard(Scope("rain", examples=("Why does it rain?",))), added.model_path)
    twin = add_expert(notes, registry, PromptChoice("generalist", domain="anything", role="twin"))
    assert twin.card.role == "twin" and set(twin.card.scores) == {"teacher", "student"}
    assert twin.card.scores["student"] == added.card.scores["twin"]
    assert twin.card.scope.counter_examples == ("Why does it rain?",)  # what `notes` is for it learnt as well
    again = add_expert(notes, registry, PromptChoice("notes"))
    assert again.version == "1.1.0"
    with pytest.raises(ExpertError, match=r"1\.0\.0 is in .* already"):
        add_expert(notes, registry, PromptChoice("notes", "1.0.0"))
    listed = list_experts(registry)
    assert [(line["name"], line["version"]) for line in listed["experts"]] == [
        ("generalist", "1.0.0"),
        ("notes", "1.1.0"),
        ("notes", "1.0.0"),
        ("rain", "1.0.0"),
    ]
    assert show_expert(registry, "notes", "1.0.0")["prompts"]["train"] > 0


def test_without_prompts_no_text_is_kept_and_answers_are_replayed_still(notes, tmp_path):
    expert = add_expert(notes, Registry(tmp_path / "registry"), PromptChoice("notes", prompts=False))
    assert list(expert.prompts()) == [] and expert.card.scope.examples == ()
    assert not (expert.path / "prompts.jsonl").exists() and not (expert.path / "heldout.jsonl").exists()
    written = "".join(file.read_text() for file in expert.path.iterdir() if file.is_file())
    assert not any(row["text"][9:30] in written for row in tiny.rows())
    found = verify_expert(expert)
    assert found.holds and found.replayed == 20 and found.rows == 0 and "agreement" in found.stated_only


def test_counter_examples_come_from_files_and_texts(notes, tmp_path):
    (tmp_path / "counter.txt").write_text("First.\n\nSecond.\n")
    choice = PromptChoice("notes", counter=(str(tmp_path / "counter.txt"), "Third."))
    expert = add_expert(notes, Registry(tmp_path / "registry"), choice)
    assert expert.card.scope.counter_examples == ("First.", "Second.", "Third.")


@pytest.mark.slow
def test_conversations_give_what_the_user_said(tiny_llama, chat_jsonl, tmp_path):
    source = {"kind": "files", "path": str(chat_jsonl), "messages": "messages", "topic": "topic"}
    recipe = recipe_of(tiny_llama, chat_jsonl, data__source=source, data__max_length=120, name="chat")
    run_recipe(recipe, tmp_path / "run", estimate=False)
    expert = add_expert(tmp_path / "run", Registry(tmp_path / "registry"), PromptChoice("chat"))
    assert expert.card.scope.chat and all(row.prompt.startswith("Read me note") for row in expert.prompts())
    assert read_replays(expert.path)[0].text.endswith("<|im_start|>assistant\n")
    assert verify_expert(expert).holds


@pytest.mark.slow
def test_right_answers_are_the_quality_where_problems_were_answered(tiny_llama, tmp_path):
    recipe = recipe_of(
        tiny_llama,
        "unused",
        data__source={"kind": "problems", "count": 40, "levels": [2]},
        data__max_length=120,
        evaluate__tasks={"verifier": {"kind": "numeric"}, "limit": 6, "max_tokens": 8},
        name="sums",
    )
    run_recipe(recipe, tmp_path / "run", estimate=False)
    expert = add_expert(tmp_path / "run", Registry(tmp_path / "registry"), PromptChoice("sums"))
    assert expert.card.quality == "correct" and expert.card.scores["student"]["correct"]["n"] == 6
    judged = {row.id: row for row in expert.prompts() if row.quality}
    assert len(judged) == 6 and all(row.quality.keys() == {"expert", "teacher"} for row in judged.values())
    lines = [json.loads(line) for line in (tmp_path / "run/evaluate/tasks/teacher.jsonl").read_text().splitlines()[1:]]
    for id, row in judged.items():
        assert row.quality["teacher"] == np.mean([line["ok"] is True for line in lines if line["problem"] == id])
        assert "<|im_start|>" not in row.prompt


@pytest.mark.slow
def test_an_export_is_scored_as_itself(notes, tmp_path):
    """A folder of another format: here the run's own weights under an export's card."""
    folder = tmp_path / "run" / "export" / "bf16"
    shutil.copytree(notes, tmp_path / "run")
    shutil.copytree(notes / "train/student/artifact", folder)
    card = json.loads((folder / "limbeck.json").read_text())
    (folder / "limbeck.json").write_text(json.dumps(card | {"quant": "float32", "parity": {"kl": 1e-9}}))
    seal_dir(folder)
    registry = Registry(tmp_path / "r")
    expert = add_expert(tmp_path / "run", registry, PromptChoice("notes", artifact=folder))
    own = add_expert(notes, registry, PromptChoice("notes"))
    assert expert.card.parity == {"kl": 1e-9} and "kl, tv of this expert were not measured" in expert.card.notes[0]
    assert set(expert.card.scores["student"]) == {"agreement", "perplexity", "accuracy"}
    assert expert.card.scores["student"]["perplexity"]["value"] == pytest.approx(
        own.card.scores["student"]["perplexity"]["value"], rel=0.02
    )
    assert verify_expert(expert).holds


def test_what_cannot_become_an_expert_is_told(notes, tmp_path, tiny_llama, text_jsonl):
    registry = Registry(tmp_path / "registry")
    with pytest.raises(RunDirError, match="not a run folder"):
        add_expert(tmp_path, registry, PromptChoice("notes"))
    with pytest.raises(ExpertError, match="is no name"):
        add_expert(notes, registry, PromptChoice("../notes"))
    with pytest.raises(ExpertError, match="xx is no code of a language"):
        add_expert(notes, registry, PromptChoice("notes", languages=("en", "xx")))
    with pytest.raises(ExpertError, match=r"not an artifact.*This run has: student, twin"):
        add_expert(notes, registry, PromptChoice("notes", artifact=tmp_path / "nothing"))
    with pytest.raises(ExpertError, match="the role is 'teacher'"):
        add_expert(notes, registry, PromptChoice("notes", role="teacher"))
    half = tmp_path / "half"
    shutil.copytree(notes, half)
    (half / "evaluate" / "scores.parquet").unlink()
    with pytest.raises(RunDirError, match="has no scores yet"):
        add_expert(half, registry, PromptChoice("notes"))
    damaged = tmp_path / "damaged"
    shutil.copytree(notes, damaged)
    (damaged / "train/student/artifact/config.json").write_text("{}")
    with pytest.raises(StoreError, match="bytes instead of"):
        add_expert(damaged, registry, PromptChoice("notes"))
    other = tmp_path / "other"
    recipe = recipe_of(tiny_llama, text_jsonl, train__optimizer__lr=0.01)
    run_recipe(recipe, other, until="train", estimate=False)
    with pytest.raises(ExpertError, match="another recipe"):
        add_expert(notes, registry, PromptChoice("notes", artifact=other / "train/student/artifact"))
    assert not (registry.path / "experts").exists()


def test_the_machine_is_named_without_its_name():
    import socket

    assert socket.gethostname() not in job.machine()
