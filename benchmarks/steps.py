"""A training step from stored targets against a plain cross-entropy step of the same student in the same loop.

    python benchmarks/steps.py [--rounds 5] [--precision bfloat16]

Steps are whole: fetch (decoding included), forward, backward, clip, AdamW. Memory is measured in a fresh process for
each kind of step. The step that people run without a fused head (full logits) is shown beside.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace

import numpy as np
import torch
from common import interleave, machine, stdlib_rows, student, teacher

from limbeck.jobs.label import codec_of, score, support_spec
from limbeck.lms.hf import packed_hidden
from limbeck.losses import Terms
from limbeck.meter import measure
from limbeck.packing import labels_of, pack, plan_batches
from limbeck.recipe import Optimizer, Sampled
from limbeck.train.distiller import Distiller
from limbeck.train.optim import build_optimizer
from limbeck.types import LiveTarget

KINDS = ("ce", "stored", "stored + ce", "live", "ce, full logits")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--memory", choices=KINDS, help="run two steps of one kind and print the peak in bytes")
    args = parser.parse_args()
    if args.memory:
        step = build(args.precision, (args.memory,))[args.memory]
        with measure() as cost:
            step()
            step()
        print(cost.peak_bytes)
        return
    steps = build(args.precision, KINDS)
    seconds = interleave(steps, args.rounds)
    command = [sys.executable, __file__, "--precision", args.precision, "--memory"]
    peaks = {
        kind: int(subprocess.run([*command, kind], capture_output=True, text=True, check=True).stdout) for kind in KINDS
    }
    print(f"# {machine()}, 2,048 tokens, student of 20 layers, {args.precision}")
    print(f"{'step':18}{'ms':>8}{'of ce':>8}{'peak MiB':>10}{'of ce':>8}")
    for kind in KINDS:
        time_share, peak_share = seconds[kind] / seconds["ce"], peaks[kind] / peaks["ce"]
        print(f"{kind:18}{seconds[kind] * 1e3:8.0f}{time_share:8.3f}{peaks[kind] / 2**20:10.0f}{peak_share:8.3f}")


def build(precision: str, kinds: tuple[str, ...]) -> dict:
    lm = teacher()
    rows = stdlib_rows(lm, 60, 256)
    rows = [rows[i] for i in plan_batches([len(row.ids) for row in rows], 2048)[0]]
    model = student(lm)
    dtype = getattr(torch, precision)
    batch = pack(rows)
    codec, spec = codec_of(Sampled(), lm.vocab), support_spec(Sampled())
    supports = score(lm, rows, spec, 1.0, torch.Generator().manual_seed(0))
    rounding = np.random.default_rng(0)
    records = [
        (np.frombuffer(codec.encode(support, labels_of(row), "00" * 8, rounding), np.uint8), labels_of(row))
        for support, row in zip(supports, rows, strict=True)
    ]
    if "live" not in kinds:
        del lm
    distillers = {
        "ce": Distiller(model, Terms(ce_weight=1.0), vocab=codec.vocab, precision=dtype),
        "stored": Distiller(model, Terms(), vocab=codec.vocab, precision=dtype),
        "stored + ce": Distiller(model, Terms(ce_weight=0.3), vocab=codec.vocab, precision=dtype),
        "live": Distiller(model, Terms(), vocab=codec.vocab, precision=dtype),
    }
    optimizer = build_optimizer(model, Optimizer())

    def fetch(kind: str):
        if kind.startswith("stored"):
            return replace(batch, target=codec.decode(records))
        if kind == "live":
            return replace(batch, target=LiveTarget.of(lm.hidden(batch), lm.head))
        return batch

    def step(kind: str) -> None:
        optimizer.zero_grad()
        if kind == "ce, full logits":
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                logits_NV = model.get_output_embeddings()(packed_hidden(model, batch))
            torch.nn.functional.cross_entropy(logits_NV.float(), batch.labels_N).backward()
        else:
            (distillers[kind](fetch(kind)).loss / batch.num_supervised).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {kind: lambda kind=kind: step(kind) for kind in kinds}


if __name__ == "__main__":
    main()
