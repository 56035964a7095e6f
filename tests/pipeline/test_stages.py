"""Stages are values: their fingerprints are those of earlier versions, and adding one is one entry."""

import contextlib
import json

import pytest

from limbeck.pipeline import run as run_module
from limbeck.pipeline import stages
from limbeck.pipeline.context import RunContext
from limbeck.pipeline.stages import DATA, STAGES, Stage
from limbeck.recipe.rules.check import check_static
from limbeck.system.rundir import RunDir
from limbeck.types import Callbacks
from tests.pipeline.kinds import CHANGES, folder_of_files, recipe_of_kind
from tests.pipeline.test_run import recipe_of

# Their first digits, computed by the code of commit fa16b14: what was finished then is finished now.
FINGERPRINTS = """
kind               | data     estimate label    curate   student  train    twin     evaluate export
sampled            | 2efe0056 8809c442 bd4b024b -        acb4cf6b cce8323f -        ae23496b -
top_k              | 2efe0056 f452a3df d36ff3b9 -        acb4cf6b 47819ea5 -        f28a1b83 -
live               | 2efe0056 e136ef09 -        -        acb4cf6b d00b6b28 -        2cbc9877 -
hybrid with a twin | ea988298 17845176 7f1029c1 -        18d408b2 31aa8f9d 4e3a3b3c 801a6bc9 -
curated text       | f6e1f27f a086d8aa 229361ff c05d3d1f 0e1727c4 0f12b869 -        e2c128f2 -
votes              | f6e1f27f b5d5578b 9360d81f -        0e1727c4 532544cc -        30999145 -
rejection          | f6e1f27f 1dd85903 d6491cfc -        0e1727c4 b48d83ae -        fdf4a5b6 -
endpoint           | f6e1f27f -        88b9391b -        3ab96d96 5c784d80 -        c73ff4f0 -
text of others     | 2efe0056 -        -        -        d858bab3 49438954 -        71c969c6 -
qad with exports   | 2efe0056 1509140b bd4b024b -        acb4cf6b 42ae4d66 a1a633c7 01ec86c9 dfe4f0b3
"""


def recorded(kind: str) -> dict[str, str]:
    """Stage -> how its fingerprint began."""
    lines = {
        name.strip(): words.split() for name, words in (line.split("|") for line in FINGERPRINTS.split("\n")[1:-1])
    }
    return {stage: digits for stage, digits in zip(lines["kind"], lines[kind], strict=True) if digits != "-"}


@pytest.fixture
def files(tmp_path, tiny_llama, monkeypatch):
    folder_of_files(tmp_path, tiny_llama)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def context_of(recipe, folder) -> RunContext:
    quiet = Callbacks(lambda _: None, lambda _: None, lambda: False)
    return RunContext(recipe, RunDir(folder), quiet, contextlib.ExitStack())


@pytest.mark.parametrize("kind", CHANGES)
def test_fingerprints_are_those_of_earlier_versions(kind, files, monkeypatch):
    recipe = recipe_of_kind(kind)
    assert check_static(recipe) == []
    context = context_of(recipe, files / "run")
    keys = {stage.name: stage.key(context) for stage in STAGES if stage.needed(context)}
    monkeypatch.setattr(stages, "read_estimate", lambda _, key: keys.update(estimate=key) or {})
    stages.estimate_costs(context)
    assert keys.pop("report") == "4f53cda18c2baa0c"
    assert {stage: key[:8] for stage, key in keys.items()} == recorded(kind)


@pytest.mark.slow
def test_a_stage_is_one_entry(tiny_llama, text_jsonl, tmp_path, monkeypatch):
    """An entry in the list is run in its place, skipped when current, done again when its outputs are gone or its key
    is another one, recorded, summed up, and a name for `until`."""
    done = []

    def count(context):
        done.append(len(context.rows))
        (context.path / "count.json").write_text(json.dumps(done[-1]))

    key = ["first"]
    counted = Stage("count", lambda _: key[0], lambda context: (context.path / "count.json",), count)
    monkeypatch.setattr(run_module, "STAGES", (DATA, counted, *STAGES[1:]))
    recipe, messages = recipe_of(tiny_llama, text_jsonl), []

    def run():
        return run_module.run_recipe(recipe, tmp_path, until="count", estimate=False, on_message=messages.append)

    summary = run()
    assert list(summary["stages"]) == ["data", "count"] and summary["stages"]["count"]["took"]["disk_bytes"] == 2
    run()
    assert messages == ["data: nothing changed, skipped", "count: nothing changed, skipped"] and len(done) == 1
    (tmp_path / "count.json").unlink()
    run()
    key[0] = "second"
    run()
    assert done == [64] * 3 and not (tmp_path / "traces").exists()


@pytest.mark.slow
def test_an_artifact_that_is_gone_is_written_again(tiny_llama, text_jsonl, tmp_path):
    """From the last checkpoint: nothing is trained twice."""
    recipe, messages = recipe_of(tiny_llama, text_jsonl, train__budget={"kind": "steps", "steps": 1}), []
    run_module.run_recipe(recipe, tmp_path, until="train", estimate=False)
    artifact = tmp_path / "train" / "student" / "artifact"
    weights = (artifact / "model.safetensors").read_bytes()
    artifact.rename(tmp_path / "elsewhere")
    progress = []
    run_module.run_recipe(
        recipe, tmp_path, until="train", estimate=False, on_message=messages.append, on_progress=progress.append
    )
    assert (artifact / "model.safetensors").read_bytes() == weights and progress == []
    assert [message.split(":")[0] for message in messages] == ["data", "label", "student", "train"]
    assert "made again" in messages[-1]
