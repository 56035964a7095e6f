"""How deep a real `limbeck train` is when it reaches the loss."""

import sys
import traceback
from pathlib import Path

import pytest

import limbeck
from limbeck import cli
from limbeck.pipeline import run
from limbeck.recipe.recipe import dump_recipe
from limbeck.train import distiller
from tests.pipeline.test_run import recipe_of

HOUSE = Path(limbeck.__file__).parent
MOST = 9  # main, train, run_recipe, the stage, train_student, fit, step, forward, fused_terms


def test_from_the_command_to_the_loss(tiny_llama, text_jsonl, tmp_path, monkeypatch):
    """Frames of our own files, lambdas and context managers included."""
    stacks: list[list[str]] = []
    loss = distiller.fused_terms

    def watched(*args, **settings):
        frames = traceback.extract_stack()[:-1]
        ours = [f"{Path(frame.filename).relative_to(HOUSE)}:{frame.name}" for frame in frames if is_ours(frame)]
        stacks.append([*ours, "losses/chunked.py:fused_terms"])
        return loss(*args, **settings)

    monkeypatch.setattr(distiller, "fused_terms", watched)
    monkeypatch.setattr(run, "estimate_costs", lambda _: None)  # it takes steps of its own
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe_of(tiny_llama, text_jsonl)))
    monkeypatch.setattr(sys, "argv", ["limbeck", "train", str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run")])
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert len(stacks) >= 4
    assert [name.split(":")[1] for name in stacks[0][:3]] == ["main", "train", "run_recipe"]
    assert max(map(len, stacks)) <= MOST, "\n".join(stacks[0])


def is_ours(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(HOUSE)
