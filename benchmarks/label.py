"""Labelling against the bare teacher forward of the same tokens, at the same dtype and batch shape.

    python benchmarks/label.py [--rounds 5] [--batches 4]

Ours includes target selection, encoding and writing one shard (fsync included); theirs is `model(ids).logits`. A real
shard is 65,536 tokens (`trace.shard_tokens`), eight times that of four batches.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import interleave, machine, stdlib_rows, teacher

from limbeck.label.local import label_rows
from limbeck.label.plan import store_header
from limbeck.recipe import Recipe
from limbeck.store import StoreWriter
from limbeck.types import Row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=4, help="of 8 x 256 tokens; one shard holds all of them")
    args = parser.parse_args()
    lm = teacher()
    count = args.batches * 8
    tokens = np.concatenate([row.ids for row in stdlib_rows(lm, 30 * count)])[: count * 256].reshape(count, 256)
    rows = [Row(f"{n:016x}", "train", "", "", ids, ((1, 256),), "") for n, ids in enumerate(tokens)]
    batches = torch.from_numpy(tokens.astype(np.int64)).split(8)

    def bare() -> None:
        with torch.no_grad():
            for ids_BT in batches:
                lm.model(ids_BT, use_cache=False).logits.sum()

    work = {"bare forward, logits": bare}
    for kind in ("sampled", "hybrid", "top_k"):
        work[f"label, {kind}"] = lambda kind=kind: label(lm, rows, {"kind": kind})
    seconds = interleave(work, args.rounds)
    print(f"# {machine()}, teacher in {lm.dtype}, {args.batches} batches of 8 x 256 tokens")
    print(f"{'':26}{'ms':>8}{'tokens/s':>10}{'of bare':>9}")
    for name, value in seconds.items():
        share = seconds["bare forward, logits"] / value
        print(f"{name:26}{value * 1e3:8.0f}{tokens.size / value:10.0f}{share:9.2f}")


def label(lm, rows, target) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "teacher": {"path": lm.name},
            "data": {"source": {"kind": "stdlib"}},
            "trace": {"target": target, "batch_tokens": 2048},
            "student": {"kind": "prune", "layers": 1},
            "train": {"budget": {"kind": "steps", "steps": 1}},
        }
    )
    header = store_header(recipe, lm)
    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter.open(Path(folder), header, [[row.id for row in rows]])
        writer.commit(0, *label_rows(recipe, header, lm, rows, 0))


if __name__ == "__main__":
    main()
