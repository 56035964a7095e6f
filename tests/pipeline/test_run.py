"""Whole runs with tiny models: skipping, changed settings, other families, other modes, and what bad input gets."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import limbeck
from limbeck.data import read_rows
from limbeck.errors import NonFiniteError, RecipeError, RunDirError, StoreError
from limbeck.pipeline.run import run_recipe
from limbeck.recipe import Recipe
from limbeck.recipe.recipe import dump_recipe
from limbeck.store import TraceStore
from limbeck.system.rundir import RunDir
from limbeck.system.sealed import read_json

ROOT = Path(__file__).parents[2]


def recipe_of(model, data, **changes) -> Recipe:
    tree = {
        "name": "tiny",
        "teacher": {"path": str(model)},
        "data": {
            "source": {"kind": "files", "path": str(data), "text": "text", "topic": "topic"},
            "max_length": 48,
            "holdout": 0.25,
        },
        "trace": {"batch_tokens": 150, "shard_tokens": 300},
        "student": {"kind": "prune", "layers": 2},
        "train": {"budget": {"kind": "steps", "steps": 4}, "batch_tokens": 200, "precision": "float32"},
        "evaluate": {"answers": 1, "answer_tokens": 4, "bootstrap": 50},
    }
    for path, value in changes.items():
        *sections, last = path.split("__")
        part = tree
        for section in sections:
            part = part.setdefault(section, {})
        part[last] = value
    if tree["trace"].get("target") == {"kind": "full"} and "mode" not in tree["trace"]:
        tree["trace"] = {"target": {"kind": "full"}}  # nothing is stored: sizes of shards would have no effect
    return Recipe.model_validate(tree)


def train(recipe, run, **kwargs):
    messages: list[str] = []
    summary = run_recipe(recipe, run, until="train", estimate=False, on_message=messages.append, **kwargs)
    return summary, messages


@pytest.fixture(scope="module")
def finished(tiny_llama, text_jsonl, tmp_path_factory):
    """A whole run with a twin and an estimate."""
    run = tmp_path_factory.mktemp("finished")
    recipe = recipe_of(tiny_llama, text_jsonl, train__twin=True)
    return recipe, run, limbeck.run_recipe(recipe, run)


@pytest.mark.slow
def test_summary_has_everything(finished):
    _, run, summary = finished
    assert summary == read_json(run / "summary.json", "")
    keys = {"kl", "agreement", "perplexity", "ece", "parameters", "bytes", "tokens_per_second"}
    for who in ("teacher", "student", "twin"):
        assert keys <= summary[who].keys()
    assert summary["teacher"]["kl"] == 0 and summary["student"]["kl"] > 0
    assert summary["student"]["parameters"] < summary["teacher"]["parameters"]
    took = {stage: parts["took"]["seconds"] for stage, parts in summary["stages"].items()}
    assert summary["student"]["making_seconds"] == took["label"] + took["student"] + took["train"]
    assert summary["twin"]["making_seconds"] == took["student"] + took["twin"]
    for stage in ("label", "student", "train", "twin", "evaluate"):
        for side in ("estimated", "took"):
            assert summary["stages"][stage][side].keys() == {"seconds", "peak_bytes", "disk_bytes"}
    assert summary["verdict"]["helped"] in (True, False, None)
    assert (run / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_artifact_opens_with_plain_transformers_and_as_lm(finished):
    _, run, summary = finished
    folder = run / "train" / "student" / "artifact"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lm = limbeck.open_lm(folder, dtype="float32")
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model(ids).logits, lm.model(ids).logits)
    assert model.config.num_hidden_layers == 2
    card = ModelCard.load(folder / "README.md")
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert scores["kl"] == summary["student"]["kl"] and "distillation" in card.data.tags
    assert f" {summary['student']['kl']:.4g} |" in card.text, "the table that a person reads shows the same number"


@pytest.mark.slow
def test_a_second_run_does_nothing(finished):
    recipe, run, summary = finished
    messages: list[str] = []
    again = run_recipe(recipe, run, on_message=messages.append)
    skipped = [message for message in messages if "skipped" in message]
    assert len(skipped) == 6
    assert again["student"] == summary["student"]


@pytest.mark.slow
def test_only_what_depends_on_a_change_is_done_again(finished, tmp_path):
    recipe, run, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    _, messages = train(recipe.override("train.optimizer.lr=0.01"), copy)
    assert [m.split(":")[0] for m in messages if "skipped" in m] == ["data", "label", "student"]
    assert any("kept as student-" in m for m in messages)
    assert list((copy / "train").glob("student-*"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2", "granite"])
def test_other_architectures_need_no_change(family, tiny_folder, text_jsonl, tmp_path):
    """Done when 5: a recipe that names another family is all it takes, from data to a finished report."""
    recipe = recipe_of(tiny_folder(family), text_jsonl)
    summary = run_recipe(recipe, tmp_path / "run", estimate=False)
    assert summary["student"]["kl"] > 0


METHODS = {
    "jsd live": {"trace__target": {"kind": "full"}, "objective__divergence": {"kind": "jsd", "beta": 0.3}},
    "top_k": {"trace__target": {"kind": "top_k", "k": 8}, "objective__ce_weight": 0.5},
    "sampled": {"trace__target": {"kind": "sampled", "draws": 20}, "objective__temperature": 2.0},
}
MORE_METHODS = {
    "reverse_kl live": {
        "trace__target": {"kind": "full"},
        "objective__divergence": {"kind": "reverse_kl"},
        "objective__temperature": 2.0,
    },
    "scratch": {"student": {"kind": "scratch", "hidden_size": 32, "layers": 2, "heads": 2}, "train__accumulate": 2},
    "checkpointing": {
        "train__activation_checkpointing": True,
        "train__schedule": {"kind": "wsd"},
        "train__budget": {"kind": "epochs", "epochs": 1.5},
    },
    "tensorboard": {"train__budget": {"kind": "tokens", "tokens": 500}, "train__tensorboard": True},
    "minutes": {"train__budget": {"kind": "minutes", "minutes": 0.01}},
}


@pytest.mark.parametrize(
    "changes",
    [
        *(pytest.param(changes, id=name) for name, changes in METHODS.items()),
        *(pytest.param(changes, id=name, marks=pytest.mark.slow) for name, changes in MORE_METHODS.items()),
    ],
)
def test_methods(changes, tiny_llama, text_jsonl, tmp_path):
    recipe = recipe_of(tiny_llama, text_jsonl, **changes)
    train(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/train/student/metrics.jsonl").read_text().splitlines()]
    assert lines and all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    if recipe.train.tensorboard:
        assert list((tmp_path / "run/train/student/tensorboard").glob("events*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_make_the_artifact_of_one(kind, tiny_llama, text_jsonl, tmp_path):
    recipe = recipe_of(tiny_llama, text_jsonl, train__accumulate=2, train__twin=True)
    run_recipe(recipe, tmp_path / "one", until="twin", estimate=False)
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "limbeck"]
    command = [*launch, "train", str(tmp_path / "r.yaml"), f"train.parallel={kind}", "--run-dir", str(tmp_path / "two")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for role in ("student", "twin"):
        path = f"train/{role}/artifact/model.safetensors"
        one, two = load_file(tmp_path / "one" / path), load_file(tmp_path / "two" / path)
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("target", [{"kind": "hybrid"}, {"kind": "full"}])
def test_the_teacher_writes_replies(target, tiny_llama, tmp_path):
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"question {n} of many"}) + "\n" for n in range(24)))
    recipe = recipe_of(
        tiny_llama,
        data,
        data__source={"kind": "files", "path": str(data), "prompt": "prompt"},
        data__max_length=64,
        trace__mode={"kind": "generate", "max_tokens": 6, "n": 2},
        trace__target=target,
    )
    summary = run_recipe(recipe, tmp_path / "run", until="evaluate", estimate=False)
    store = TraceStore.open(tmp_path / "run" / "traces")
    assert len(store.traces()) == 2 * summary["data"]["train"] + 2 * summary["data"]["heldout"]
    trace = store.traces()[0]
    assert trace.meta["finish_reason"] in ("stop", "length") and trace.spans[0][1] == len(trace.ids)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_second_process_on_one_folder_is_refused(finished):
    recipe, run, _ = finished
    with RunDir.open(run), pytest.raises(RunDirError, match=str(os.getpid())):
        run_recipe(recipe, run)


@pytest.mark.slow
def test_corrupt_shard_is_named_and_labelled_alone(finished, tmp_path):
    recipe, run, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shards = sorted((copy / "traces").glob("*.targets"))
    before = {shard.name: shard.read_bytes() for shard in shards}
    times = {shard.name: shard.stat().st_mtime_ns for shard in shards}
    shards[1].write_bytes(before[shards[1].name][:-1] + b"x")
    with pytest.raises(StoreError, match="shard-00001"):
        TraceStore.open(copy / "traces")
    _, messages = train(recipe, copy)
    assert any("shard 1" in m and "again" in m for m in messages)
    assert {shard.name: shard.read_bytes() for shard in shards} == before
    assert all(shard.stat().st_mtime_ns == times[shard.name] for shard in shards if shard != shards[1])


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_and_is_named(tiny_llama, text_jsonl, tmp_path, caplog):
    caplog.set_level("INFO", "limbeck")
    recipe = recipe_of(
        tiny_llama, text_jsonl, train__checkpoint_minutes=1e-6, train__budget={"kind": "steps", "steps": 6}
    )
    train(recipe, tmp_path / "run")
    out = tmp_path / "run/train/student"
    want = (out / "artifact/model.safetensors").read_bytes()
    newest = sorted((out / "checkpoints").glob("step-*"))[-1]
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "model.safetensors").write_bytes(data)
    (tmp_path / "run/stages/train.json").unlink()
    shutil.rmtree(out / "artifact")  # one that is whole would stay
    _, messages = train(recipe, tmp_path / "run")
    assert any(newest.name in m and "skipped" in m for m in messages)
    said = [record.getMessage() for record in caplog.records if record.name == "limbeck.train.checkpoint"]
    assert said[0].startswith(f"{newest} is skipped: ") and said[1].startswith("resumed from ")
    assert (out / "artifact/model.safetensors").read_bytes() == want
    for step in (out / "checkpoints").glob("step-*"):
        (step / "state.json").unlink()
    (tmp_path / "run/stages/train.json").unlink()
    shutil.rmtree(out / "artifact")  # one that is whole would stay
    with pytest.raises(StoreError, match="every checkpoint"):
        train(recipe, tmp_path / "run")


@pytest.mark.slow
def test_nan_is_never_saved(tiny_llama, text_jsonl, tmp_path):
    recipe = recipe_of(
        tiny_llama, text_jsonl, train__optimizer={"lr": 1e30}, train__clip=None, train__schedule={"kind": "constant"}
    )
    with pytest.raises(NonFiniteError, match="nothing was saved after"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run/train/student/artifact").exists()
    assert not list((tmp_path / "run/train/student/checkpoints").glob("step-*"))


@pytest.mark.slow
def test_stop_saves_and_the_rest_is_the_same(tiny_llama, text_jsonl, tmp_path):
    """SIGTERM in the middle of training: exit 75, and the resumed run ends in the same weights."""
    recipe_file = tmp_path / "r.yaml"
    recipe = recipe_of(tiny_llama, text_jsonl, train__budget={"kind": "steps", "steps": 60})
    recipe_file.write_text(dump_recipe(recipe))
    train(recipe, tmp_path / "straight")
    command = [sys.executable, "-m", "limbeck", "train", str(recipe_file), "--run-dir", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("train"):
            process.terminate()
            break
    seen += process.stdout.readlines()
    process.stdout.close()
    assert process.wait(60) == 75, "".join(seen)
    assert "saved" in "".join(seen)
    train(recipe, tmp_path / "run")
    path = "train/student/artifact/model.safetensors"
    assert (tmp_path / "run" / path).read_bytes() == (tmp_path / "straight" / path).read_bytes()


def test_processes_that_do_not_suit_are_told_before_any_work(tiny_llama, text_jsonl, tmp_path, monkeypatch):
    recipe = recipe_of(tiny_llama, text_jsonl, train__parallel="ddp")
    with pytest.raises(RecipeError, match="this is a single process"):
        train(recipe, tmp_path / "run")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="accumulate is 1 but there are 2 processes"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_contradictions_stop_before_any_work(tiny_llama, text_jsonl, tmp_path):
    recipe = recipe_of(tiny_llama, text_jsonl, objective__divergence={"kind": "reverse_kl"})
    with pytest.raises(RecipeError, match="full"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.slow
def test_the_teacher_writes_until_enough_is_right(tiny_llama, text_jsonl, tmp_path):
    """In this process: a prompt is asked no further once it has a reply with an `e`, and its distributions are kept."""
    mode = {"kind": "generate", "n": 4, "max_tokens": 3, "rejection": {"verifier": {"kind": "regex", "pattern": "e"}}}
    trace = {"mode": mode, "target": {"kind": "top_k", "k": 4}, "batch_tokens": 400, "shard_tokens": 900}
    recipe = recipe_of(tiny_llama, text_jsonl, trace=trace)
    limbeck.run_recipe(recipe, tmp_path, until="label")
    replies: dict[str, list[str]] = {}
    store = TraceStore.open(tmp_path / "traces")
    for trace in sorted(store.traces(), key=lambda trace: trace.meta["draw"]):
        replies.setdefault(trace.row_id, []).append(trace.meta["reply"])
    assert len(replies) == len(read_rows(tmp_path / "data" / "rows.parquet"))
    for said in replies.values():
        right = ["e" in reply for reply in said]
        assert not any(right[:-1]) and (right[-1] or len(said) == 4)
    assert {1, 4} <= {len(said) for said in replies.values()}
