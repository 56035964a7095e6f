"""Ranks: what torchrun and a recipe must agree on, and parameters that no gradient reaches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.errors import RecipeError, Stopped
from limbeck.losses.terms import Terms
from limbeck.train.distiller import Distiller
from limbeck.train.parallel import has_idle_parameters, refuse_launch
from limbeck.types import Ranks, Vocab
from tests.models import families
from tests.train import idle_ranks

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("world", "kind", "accumulate", "match"),
    [
        ("2", "none", 2, "started 2 processes but train.parallel is none"),
        ("2", "ddp", 1, "accumulate is 1 .* multiple of 2"),
        ("3", "fsdp2", 4, "accumulate is 4 .* multiple of 3"),
        (None, "ddp", 1, "is ddp but this is a single process"),
    ],
)
def test_a_launch_that_does_not_suit_the_recipe_is_refused(world, kind, accumulate, match, monkeypatch):
    if world is not None:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(RecipeError, match=match):
        refuse_launch(kind, accumulate)


def test_launches_that_suit(monkeypatch):
    assert refuse_launch("none", 3) is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert refuse_launch("none", 3) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    launched = refuse_launch("ddp", 4)
    assert launched is not None and launched.world == 2


@pytest.mark.parametrize("idle", [True, False])
def test_parameters_without_a_gradient_are_found(idle):
    model = idle_ranks.student() if idle else families.build("mixtral")
    distiller = Distiller(model, Terms(ce_weight=1.0), vocab=Vocab(384))
    assert has_idle_parameters(distiller) is idle
    assert all(param.grad is None for param in distiller.parameters())


def test_a_run_with_parameters_without_a_gradient_is_resumed_bit_equal(tmp_path):
    whole = idle_ranks.trained(tmp_path / "whole", Ranks())
    with pytest.raises(Stopped):
        idle_ranks.trained(tmp_path / "cut", Ranks(), stop=lambda: True)
    resumed = idle_ranks.trained(tmp_path / "cut", Ranks())
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_are_one_where_parameters_have_no_gradient(kind, tmp_path):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*run, str(ROOT / "tests/train/idle_ranks.py"), kind, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = idle_ranks.trained(tmp_path / "one", Ranks()), load_file(tmp_path / "weights.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=2e-3, atol=2e-3 * float(one[name].abs().max() + 1e-6))
