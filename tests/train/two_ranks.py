"""Run by torchrun (or alone): one step's loss and gradients, and three steps' weights, written by the first rank.

python tests/train/two_ranks.py KIND MODEL OUT
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from limbeck.losses import Terms
from limbeck.recipe import Constant, Optimizer, Steps, Train
from limbeck.train import loop
from limbeck.train.checkpoint import FitState, model_tensors
from limbeck.train.distiller import Distiller
from limbeck.train.loop import Job, fit
from limbeck.train.optim import build_optimizer
from limbeck.train.parallel import full, join_ranks, wrap
from limbeck.train.sources import Order, plain
from limbeck.types import Row


def rows(num=12):
    rng = np.random.default_rng(0)
    made = []
    for n in range(num):
        length = int(rng.integers(4, 20))
        ids = rng.integers(3, 380, length).astype(np.int32)
        made.append(Row(str(n), "train", "", "", ids, ((int(rng.integers(1, 3)), length),), "test"))
    return made


def main(kind, model, out):
    torch.set_num_threads(1)
    items, device = rows(), torch.device("cpu")
    settings = Train(
        budget=Steps(steps=3),
        optimizer=Optimizer(lr=1e-2),
        schedule=Constant(),
        batch_tokens=40,
        accumulate=2,
        clip=1e9,
        precision="float32",
    )
    quiet = lambda *_: None  # noqa: E731
    with join_ranks(kind) as ranks:
        build = lambda: Distiller(  # noqa: E731
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), Terms(ce_weight=1.0), vocab=384
        )
        order, fetch = Order(items, settings.batch_tokens, 0), plain(items, device)
        job = Job("train", Path(out), 0, ranks, quiet, quiet, lambda: False)
        distiller = build()
        module = wrap(distiller, ranks)
        optimizer = build_optimizer(module, settings.optimizer)
        optimizer.step = quiet
        _, values = loop._step(module, optimizer, order, fetch, FitState(), settings, job)
        grads = {name: full(p.grad).clone() for name, p in distiller.student.named_parameters()}
        trained = build()
        fit(trained, order, fetch, settings, job)
        weights = model_tensors(trained.student)
        if ranks.is_first:
            save_file(grads, Path(out) / "grads.safetensors")
            save_file(weights, Path(out) / "weights.safetensors")
            (Path(out) / "values.json").write_text(json.dumps(values))


if __name__ == "__main__":
    main(*sys.argv[1:])
    # Everything is on disk. torch's own threads now and then abort the interpreter's shutdown after gloo and FSDP2.
    sys.stdout.flush()
    os._exit(0)
