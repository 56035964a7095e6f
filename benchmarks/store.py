"""Bytes per position, reading speed, and fidelity of stored targets.

    python benchmarks/store.py

Fidelity: cosine and norm ratio of the gradient (of the head and of the hidden rows) from one batch of stored targets,
against the full teacher distribution, for the demo teacher with eight layers removed as the student.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from common import machine, stdlib_rows, teacher

from limbeck.lms.hf import packed_attention, packed_hidden
from limbeck.losses import fused_distill_loss, iter_logits
from limbeck.losses.support import SupportSpec, join, select
from limbeck.packing import pack, plan_batches
from limbeck.store import Codec
from limbeck.students.prune import prune_layers
from limbeck.types import Head, LiveTarget

SPECS = {
    "top_k 32": SupportSpec(32, 0),
    "top_k 64": SupportSpec(64, 0),
    "sampled 24": SupportSpec(0, 24),
    "sampled 50": SupportSpec(0, 50),
    "hybrid 8/32 (default)": SupportSpec(8, 32, 0.02),
    "hybrid 12/48": SupportSpec(12, 48, 0.01),
}


def main() -> None:
    lm = teacher()
    rows = stdlib_rows(lm, 60, 256)
    rows = [rows[i] for i in plan_batches([len(row.ids) for row in rows], 2048)[0]]
    batch = pack(rows)
    keep = [n for n in range(30) if n not in (13, 14, 15, 12, 17, 3, 16, 25)]
    student = prune_layers(lm.model, keep)
    with torch.no_grad(), packed_attention(student):
        hidden_ND = packed_hidden(student, batch).float()
    weight_VD = student.get_output_embeddings().weight.detach().float()
    teacher_ND, teacher_VD = lm.hidden(batch).float(), lm.head.weight_VD.float()

    def gradients(target):
        h, w = hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
        return torch.autograd.grad(fused_distill_loss(h, w, target), (w, h))

    full = gradients(LiveTarget(teacher_ND, teacher_VD))
    print(f"# {machine()}, {batch.num_supervised} positions of the standard library's functions")
    print(f"{'target':24}{'bytes':>7}{'read/s':>11}{'cos head':>10}{'cos rows':>10}{'norm head':>10}{'norm rows':>10}")
    for name, spec in SPECS.items():
        codec = Codec(lm.vocab, spec.head, spec.draws)
        generator = torch.Generator().manual_seed(0)
        parts = [select(z, spec, 1.0, generator) for _, z in iter_logits(teacher_ND, Head(teacher_VD))]
        record = codec.encode(join(parts), "00" * 8, np.random.default_rng(0))
        pieces = [(np.frombuffer(record, np.uint8), batch.num_supervised)]
        codec.decode(pieces)
        begun = time.perf_counter()
        for _ in range(20):
            dist = codec.decode(pieces)
        speed = 20 * batch.num_supervised / (time.perf_counter() - begun)
        own = gradients(dist)
        cosine = [(a.flatten() @ b.flatten() / (a.norm() * b.norm())).item() for a, b in zip(own, full, strict=True)]
        norm = [(a.norm() / b.norm()).item() for a, b in zip(own, full, strict=True)]
        size = len(record) / batch.num_supervised
        print(f"{name:24}{size:7.1f}{speed:11,.0f}{cosine[0]:10.4f}{cosine[1]:10.4f}{norm[0]:10.3f}{norm[1]:10.3f}")


if __name__ == "__main__":
    main()
