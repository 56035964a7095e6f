"""kill -9 at any moment: the store, the weights and the final loss are those of an uninterrupted run."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from limbeck.recipe import Recipe
from limbeck.system.atomic import sha256_file, verify_dir
from tests.pipeline.killed import run_until_killed


def recipe_of(model: Path, data: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "kill",
            "teacher": {"path": str(model)},
            "data": {
                "source": {"kind": "files", "path": str(data), "text": "text", "topic": "topic"},
                "max_length": 48,
                "holdout": 0.2,
            },
            "trace": {"batch_tokens": 150, "shard_tokens": 300},
            "student": {"kind": "prune", "layers": 2},
            "train": {
                "budget": {"kind": "steps", "steps": 8},
                "batch_tokens": 200,
                "precision": "float32",
                "checkpoint_minutes": 1e-4,
            },
        }
    )


def state_of(run: Path) -> dict[str, object]:
    """What must not depend on interruptions: targets byte by byte, weights, every logged loss."""
    shards = sorted((run / "traces").glob("*.targets"))
    lines = (run / "train" / "student" / "metrics.jsonl").read_text().splitlines()
    return {
        "targets": [(shard.name, sha256_file(shard)) for shard in shards],
        "student": sha256_file(run / "student" / "model.safetensors"),
        "artifact": sha256_file(run / "train" / "student" / "artifact" / "model.safetensors"),
        "losses": [(line["step"], line["loss"], line["grad_norm"]) for line in map(json.loads, lines)],
    }


@pytest.fixture(scope="module")
def recipe(tiny_llama, text_jsonl):
    return recipe_of(tiny_llama, text_jsonl)


@pytest.fixture(scope="module")
def straight(recipe, tmp_path_factory):
    run = tmp_path_factory.mktemp("straight")
    assert run_until_killed(recipe, run) == 0
    return state_of(run)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["label", "train", "artifact"])
def test_killed_five_times_in_a_stage(recipe, straight, tmp_path, stage):
    """At random moments of labelling, of training, and of writing the artifact."""
    rng, codes = random.Random(stage), []
    longest = {"label": 0.05, "train": 0.05, "artifact": 0.02}[stage]
    for _ in range(5):
        codes.append(run_until_killed(recipe, tmp_path / "run", at=stage, delay=rng.uniform(0.001, longest)))
        if stage == "artifact":  # written in a moment: when it was finished before the kill, it is written once more
            (tmp_path / "run" / "stages" / "train.json").unlink(missing_ok=True)
            artifact = tmp_path / "run" / "train" / "student" / "artifact"
            if artifact.exists() and verify_dir(artifact) is None:  # one that is whole would stay
                shutil.rmtree(artifact)
    assert codes.count(-signal.SIGKILL) >= 3
    assert set(codes) <= {0, -signal.SIGKILL}
    assert run_until_killed(recipe, tmp_path / "run") == 0
    assert state_of(tmp_path / "run") == straight


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_writes(recipe, straight, tmp_path, seed):
    """At the n-th fsync, wherever that is: in shards, manifests, checkpoints, the artifact."""
    rng = random.Random(seed)
    codes = [run_until_killed(recipe, tmp_path / "run", at="fsync", count=rng.randint(2, 30)) for _ in range(5)]
    assert codes.count(-signal.SIGKILL) >= 3 and set(codes) <= {0, -signal.SIGKILL}
    assert run_until_killed(recipe, tmp_path / "run") == 0
    assert state_of(tmp_path / "run") == straight
    assert not list((tmp_path / "run" / "traces").glob(".*.tmp"))


@pytest.mark.slow
def test_killed_at_random_times(recipe, straight, tmp_path):
    rng = random.Random(3)
    for _ in range(5):
        run_until_killed(recipe, tmp_path / "run", at="start", delay=rng.uniform(0.05, 1.5))
    assert run_until_killed(recipe, tmp_path / "run") == 0
    assert state_of(tmp_path / "run") == straight
