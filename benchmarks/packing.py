"""Packed segments against padded rows on real lengths: one cross-entropy step of the demo student.

    python benchmarks/packing.py [--rounds 3]

Padded is what a plain trainer does: one padded row for each document, full logits. All give the same loss.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from common import interleave, machine, stdlib_rows, student, teacher

from limbeck.losses import Terms
from limbeck.text.packing import pack
from limbeck.train.distiller import Distiller


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=32)
    args = parser.parse_args()
    lm = teacher()
    rows = stdlib_rows(lm, 400)
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[: args.documents]]
    model = student(lm)
    distiller = Distiller(model, Terms(ce_weight=1.0), vocab=lm.columns, precision=torch.bfloat16)
    batch = pack(rows)
    width = max(len(row.ids) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for n, row in enumerate(rows):
        ids_BT[n, : len(row.ids)] = torch.from_numpy(row.ids.astype(np.int64))
        mask_BT[n, : len(row.ids)] = 1
    losses = {}

    def packed() -> None:
        model.set_attn_implementation("limbeck_segments")
        model.zero_grad()
        loss = distiller(batch).loss / batch.num_supervised
        loss.backward()
        losses["packed"] = loss.item()

    def padded() -> None:
        model.set_attn_implementation("sdpa")
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1]
        labels = ids_BT[:, 1:].masked_fill(mask_BT[:, 1:] == 0, -100)
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        loss.backward()
        losses["padded"] = loss.item()

    seconds = interleave({"padded": padded, "packed": packed}, args.rounds)
    print(f"# {machine()}; {len(rows)} documents, longest {width}: {len(batch.ids_T)} tokens, {ids_BT.numel()} padded")
    for name, value in seconds.items():
        print(f"{name:8} {value * 1e3:8.0f} ms {len(batch.ids_T) / value:8.0f} real tokens/s   loss {losses[name]:.4f}")
    print(f"packed is {seconds['padded'] / seconds['packed']:.2f}x as fast")


if __name__ == "__main__":
    main()
