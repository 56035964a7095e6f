"""Run by torchrun (or alone): three steps of a student that has parameters which no gradient reaches.

python tests/train/idle_ranks.py KIND OUT
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from limbeck.losses.terms import Terms
from limbeck.recipe import Constant, Optimizer, StepsBudget, Train
from limbeck.train.checkpoint import model_tensors
from limbeck.train.distiller import Distiller
from limbeck.train.loop import TrainContext, fit
from limbeck.train.parallel import join_ranks
from limbeck.train.sources import EpochPlan, RowSource, plain
from limbeck.types import Vocab
from tests import tiny
from tests.train import two_ranks


def student():
    """A student with a part that text never reaches: a vision tower."""
    model = tiny.build_model("qwen2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.tower = torch.nn.Linear(8, 8)
    return model


def settings(steps):
    return Train(
        budget=StepsBudget(steps=steps),
        optimizer=Optimizer(lr=1e-2),
        schedule=Constant(),
        batch_tokens=40,
        accumulate=2,
        precision="float32",
        checkpoint_minutes=1e-9,
    )


def trained(out, ranks, *, stop=lambda: False, steps=3):
    """The student as it is after some steps."""
    quiet = lambda *_: None  # noqa: E731
    rows = two_ranks.rows()
    distiller = Distiller(student(), Terms(ce_weight=1.0), vocab=Vocab(384))
    source = RowSource(rows, EpochPlan(rows, 40, 0), plain(torch.device("cpu")))
    fit(distiller, source, settings(steps), TrainContext("train", Path(out), 0, ranks, quiet, quiet, stop))
    return model_tensors(distiller.student)


def main(kind, out):
    torch.set_num_threads(1)
    with join_ranks(kind) as ranks:
        weights = trained(out, ranks)
        if ranks.is_first:
            save_file(weights, Path(out) / "weights.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # as in two_ranks.py
