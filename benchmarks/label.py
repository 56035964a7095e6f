"""Labelling against the bare teacher forward of the same tokens, at the same dtype and batch shape.

    python benchmarks/label.py [--rounds 7]

Ours includes target selection, encoding and writing the shard (fsync included); theirs is `model(ids).logits`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import interleave, machine, stdlib_rows, teacher

from limbeck.jobs.label import label_rows, store_header
from limbeck.recipe import Recipe
from limbeck.store import StoreWriter
from limbeck.types import Row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    lm = teacher()
    tokens = np.concatenate([row.ids for row in stdlib_rows(lm, 200)])[: 8 * 256].reshape(8, 256)
    rows = [Row(f"{n:016x}", "train", "", "", ids, ((1, 256),), "") for n, ids in enumerate(tokens)]
    ids_BT = torch.from_numpy(tokens.astype(np.int64))

    def bare() -> None:
        with torch.no_grad():
            lm.model(ids_BT, use_cache=False).logits.sum()

    def body() -> None:
        with torch.no_grad():
            lm.model.get_decoder()(ids_BT, use_cache=False)

    work = {"bare forward, logits": bare, "bare forward, no head": body}
    for kind, extra in {"hybrid": {}, "top_k": {"k": 32}, "sampled": {"draws": 50}}.items():
        work[f"label, {kind}"] = lambda target={"kind": kind, **extra}: label(lm, rows, target)
    seconds = interleave(work, rounds)
    print(f"# {machine()}, teacher in {lm.dtype}, 8 x 256 tokens")
    print(f"{'':26}{'ms':>8}{'tokens/s':>10}{'of bare':>9}")
    for name, value in seconds.items():
        share = seconds["bare forward, logits"] / value
        print(f"{name:26}{value * 1e3:8.0f}{ids_BT.numel() / value:10.0f}{share:9.2f}")


def label(lm, rows, target) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "teacher": {"path": lm.name},
            "data": {"source": {"kind": "stdlib"}},
            "trace": {"target": target},
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
