"""Quantization-aware distillation against plain distillation that is rounded afterwards, at four bits.

    python benchmarks/qad.py [--run runs/demo] [--students FOLDER ...] [--tokens 20000] [--lr 1e-4]

Takes the trained students of a run (`make demo`; `make transfer` has three seeds) and goes on with each on the run's
own targets, the same rows in the same order: in full precision, and with `train.qad`. Prints how far from the teacher
each is on held-out rows, as it is and as its q4_0 export stores it. Paired intervals are over rows.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from common import machine

from limbeck.data import read_rows
from limbeck.evaluate.compare import evaluate_models
from limbeck.metrics.intervals import paired_bootstrap
from limbeck.models.hf import HfLM
from limbeck.models.open import open_hf
from limbeck.recipe import GenerateMode, Qad, Recipe
from limbeck.store import TraceStore
from limbeck.train.loop import TrainContext
from limbeck.train.parallel import Ranks
from limbeck.train.qad import bake
from limbeck.train.run import Supervision, train_student

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.evaluate.compare import Evaluation
    from limbeck.types import Row, Trace

BEFORE, BEFORE_ROUNDED = "the student", "the student, rounded"
PLAIN, ROUNDED = "trained on in full precision", "trained on in full precision, rounded"
UNDER = "trained on under q4_0"
ARMS = {PLAIN: "train.qad=null", UNDER: "train.qad={quant: q4_0}"}


def train(recipe: Recipe, arm: str, student: Path, store: TraceStore, teacher: HfLM) -> HfLM:
    """The student after some more steps."""
    with tempfile.TemporaryDirectory() as folder:
        job = TrainContext("train", Path(folder), recipe.seed, Ranks(), lambda _: None, print, lambda: False)
        begun = time.monotonic()
        items = store.traces("train")
        by = Supervision("stored", teacher.columns, store=store)
        trained = train_student(recipe.override(ARMS[arm]), items, student, by, job)
        print(f"# {arm}: {trained.state.step} steps in {time.monotonic() - begun:.0f} s", flush=True)
    trained.model.set_attn_implementation("sdpa")  # it was trained on packed rows
    return HfLM.wrap(trained.model, teacher.tokenizer, name=arm)


def rounded(lm: HfLM) -> HfLM:
    """The student as its q4_0 export stores it."""
    model = copy.deepcopy(lm.model)
    bake(model, Qad(quant="q4_0"))
    return HfLM.wrap(model, lm.tokenizer, name=f"{lm.name}, rounded")


def table(found: Evaluation) -> None:
    """Means over positions, and paired differences to rounding what was trained on in full precision."""
    print("| model | KL to teacher | agreement | perplexity | KL less that of rounding afterwards (95%) |")
    print("|---|---|---|---|---|")
    sums = {name: metrics["kl"] for name, metrics in found.sums.items()}
    for name in found.models[1:]:
        kl, agreement, ce = (found.mean(name, metric) for metric in ("kl", "agreement", "ce"))
        gap = paired_bootstrap(sums, found.positions_R, clusters=found.clusters, pair=(name, ROUNDED)).difference
        assert gap is not None
        told = "" if name == ROUNDED else f"{gap.value:+.5f} ({gap.low:+.5f} to {gap.high:+.5f})"
        print(f"| {name} | {kl:.5f} | {100 * agreement:.2f} % | {np.exp(ce):.3f} | {told} |", flush=True)


def held_out(recipe: Recipe, run: Path, store: TraceStore) -> Sequence[Row | Trace]:
    if isinstance(recipe.trace.mode, GenerateMode):
        return store.traces("heldout")
    return [row for row in read_rows(run / "data" / "rows.parquet") if row.split == "heldout"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--students", type=Path, nargs="+", help="default: that of the run")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--lr", type=float, default=1e-4)
    asked = parser.parse_args()
    print(f"# {machine()}; {asked.tokens} tokens at {asked.lr:g}")
    more = (f"train.budget={{kind: tokens, tokens: {asked.tokens}}}", f"train.optimizer.lr={asked.lr}")
    recipe = Recipe.load(asked.run / "recipe.yaml", more)
    teacher = open_hf(recipe.reader[0], dtype="float32")
    store = TraceStore.open(asked.run / "traces")
    rows = held_out(recipe, asked.run, store)
    for seed, student in enumerate(asked.students or [asked.run / "train" / "student" / "artifact"]):
        before = open_hf(student, dtype="float32")
        assert isinstance(before, HfLM)
        after = {arm: train(recipe.override(f"seed={seed}"), arm, student, store, teacher) for arm in ARMS}
        models = {BEFORE: before, BEFORE_ROUNDED: rounded(before), PLAIN: after[PLAIN]}
        models |= {ROUNDED: rounded(after[PLAIN]), UNDER: after[UNDER]}
        print(f"## {student}, {len(rows)} held-out rows")
        table(evaluate_models(teacher, models, rows, settings=recipe.evaluate, on_progress=lambda _: None))


if __name__ == "__main__":
    main()
