"""Run by torchrun (or alone): one step's loss and gradients, and three steps' weights, written by the first rank. The
objective has all that could depend on how work is cut: two terms, schedules, weights by teacher, token and place; and
the student learns under quantization.

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

from limbeck.models.hf import HfLM
from limbeck.recipe import Constant, Objective, Optimizer, Qad, StepsBudget, Train
from limbeck.train.checkpoint import model_tensors
from limbeck.train.distiller import Distiller
from limbeck.train.loop import TrainContext, fit
from limbeck.train.objective import terms_at
from limbeck.train.optim import build_optimizer
from limbeck.train.parallel import full, join_ranks, wrap
from limbeck.train.position_weights import weigher
from limbeck.train.sources import EpochPlan, RowSource, live, weighted
from limbeck.train.step import train_step
from limbeck.types import Cursor, Row, Vocab
from tests import tiny

OBJECTIVE = Objective.model_validate(
    {
        "temperature": {"kind": "linear", "start": 3.0, "end": 1.0},
        "extra_terms": ({"divergence": {"kind": "tvd"}, "weight": 0.5, "temperature": 1.0},),
        "ce_weight": {"kind": "cosine", "start": 0.0, "end": 0.8},
        "label_smoothing": 0.1,
        "position_weights": {
            "teacher": {"by": "entropy", "certain": 0.5, "unsure": 2.0, "unsure_from": 5.0},
            "tokens": {"digits": 3.0, "punctuation": 0.25},
            "place": {"kind": "first", "tokens": 4, "weight": 2.0},
        },
    }
)


def rows(num=12):
    rng = np.random.default_rng(0)
    made = []
    for n in range(num):
        length = int(rng.integers(4, 20))
        ids = rng.integers(3, 380, length).astype(np.int32)
        made.append(Row(str(n), "train", "", "", ids, ((int(rng.integers(1, 3)), length),), "test"))
    return made


def packed_weighted():
    """Batches with a live teacher and weights."""
    tokenizer = tiny.build_tokenizer()
    teacher = HfLM.wrap(tiny.build_model("llama", seed=7), tokenizer, name="teacher")
    weigh = weigher(OBJECTIVE.position_weights, lambda: tokenizer)
    assert weigh is not None
    return weighted(live(teacher, Vocab(384)), weigh)


def main(kind, model, out):
    torch.set_num_threads(1)
    items = rows()
    settings = Train(
        budget=StepsBudget(steps=3),
        optimizer=Optimizer(lr=1e-2),
        schedule=Constant(),
        batch_tokens=40,
        accumulate=2,
        clip=1e9,
        precision="float32",
        qad=Qad(quant="q4_0"),
    )
    quiet = lambda *_: None  # noqa: E731
    with join_ranks(kind) as ranks:
        build = lambda: Distiller(  # noqa: E731
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), terms_at(OBJECTIVE, 0.5), vocab=Vocab(384)
        )
        source = RowSource(items, EpochPlan(items, settings.batch_tokens, 0), packed_weighted())
        job = TrainContext("train", Path(out), 0, ranks, quiet, quiet, lambda: False)
        distiller = build()
        module = wrap(distiller, ranks)
        distiller.quantize(settings.qad)
        optimizer = build_optimizer(module, settings.optimizer)
        optimizer.step = quiet
        values = train_step(module, optimizer, source.draw(Cursor(), settings.accumulate, ranks), settings, ranks)
        grads = {name: full(p.grad).clone() for name, p in distiller.student.named_parameters()}
        trained = build()
        trained.follow(OBJECTIVE, settings.qad)
        fit(trained, source, settings, job)
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
