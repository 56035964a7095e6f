"""Quantization-aware distillation against plain distillation that is rounded afterwards, at four bits.

    python benchmarks/qad.py [--tokens 24000] [--layers 20] [--seeds 1] [--out runs/qad]

The demo's student (SmolLM2-135M, some of its layers, functions of Python's standard library), on the same rows in the
same order for the same number of tokens: trained in full precision, and with `train.qad` from the start or from half
way. Prints how far each is from the teacher on the demo's 96 held-out functions, as it was trained and as its q4_0
export stores it. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from common import machine

import limbeck
from limbeck.data import read_rows
from limbeck.evaluate.compare import evaluate_models
from limbeck.evaluate.intervals import paired_bootstrap
from limbeck.jobs.train import run_train
from limbeck.lms import open_lm
from limbeck.lms.hf import HfLM
from limbeck.recipe import Qad, Recipe
from limbeck.rundir import atomic_dir
from limbeck.store import TraceStore
from limbeck.train.loop import Job
from limbeck.train.parallel import Ranks
from limbeck.train.qad import settle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.evaluate.compare import Evaluation

DEMO = Path(__file__).parents[1] / "recipes" / "demo.yaml"
ARMS = {"plain": "train.qad=null", "start": "train.qad={quant: q4_0}", "half": "train.qad={quant: q4_0, start: 0.5}"}
PLAIN, ROUNDED = "full precision", "full precision, then rounded to q4_0"
TOLD = {"start": "train.qad q4_0 from the start", "half": "train.qad q4_0 from half way"}


def train(recipe: Recipe, arm: str, run: Path, teacher: HfLM) -> HfLM:
    """One arm's student; a finished one is opened from its folder."""
    folder = run / f"arm-{arm}"
    if not (folder / "model").is_dir():
        store = TraceStore.open(run / "traces")
        job = Job("train", folder, recipe.seed, Ranks(), lambda _: None, print, lambda: False)
        begun = time.monotonic()
        trained = run_train(
            recipe.override(ARMS[arm]), store.traces("train"), run / "student", job, vocab=teacher.vocab, store=store
        )
        print(f"# {arm}: {trained.state.step} steps in {time.monotonic() - begun:.0f} s", flush=True)
        with atomic_dir(folder / "model") as made:
            trained.model.save_pretrained(made)
            teacher.tokenizer.save_pretrained(made)
    return open_lm(folder / "model", dtype="float32")


def rounded(lm: HfLM) -> HfLM:
    """The student as its q4_0 export stores it."""
    model: PreTrainedModel = copy.deepcopy(lm.model)
    settle(model, Qad(quant="q4_0"))
    return HfLM.wrap(model, lm.tokenizer, name=f"{lm.name} rounded")


def table(found: Evaluation) -> None:
    """Means over positions, and the paired difference to what rounding afterwards gives."""
    print("| student | KL to teacher | agreement | perplexity | KL less that of rounding afterwards (95%) |")
    print("|---|---|---|---|---|")
    sums = {name: metrics["kl"] for name, metrics in found.sums.items()}
    for name in found.models[1:]:
        kl, agreement, ce = (found.mean(name, metric) for metric in ("kl", "agreement", "ce"))
        gap = paired_bootstrap(sums, found.positions_R, pair=(name, ROUNDED)).difference
        assert gap is not None
        told = "" if name == ROUNDED else f"{gap.mean:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"
        print(f"| {name} | {kl:.4f} | {100 * agreement:.2f} % | {np.exp(ce):.2f} | {told} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=24_000)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/qad"))
    asked = parser.parse_args()
    print(f"# {machine()}; {asked.tokens} tokens, {asked.layers} layers")
    for seed in range(asked.seeds):
        sizes = (
            f"train.budget.tokens={asked.tokens}",
            f"student.layers={asked.layers}",
            "train.twin=false",
            "data.limit=300",
        )
        recipe = Recipe.load(DEMO, [*sizes, f"seed={seed}"])
        run = asked.out / f"seed-{seed}"
        limbeck.run(recipe, run, until="student", estimate=False)
        teacher = open_lm(recipe.reader[0], dtype="float32")
        students = {arm: train(recipe, arm, run, teacher) for arm in ARMS}
        models = {PLAIN: students["plain"], ROUNDED: rounded(students["plain"])}
        models |= {told: students[arm] for arm, told in TOLD.items()}
        rows = [row for row in read_rows(run / "data" / "rows.parquet") if row.split == "heldout"]
        print(f"## seed {seed}, {len(rows)} held-out functions")
        table(evaluate_models(teacher, models, rows, settings=recipe.evaluate, on_progress=lambda _: None))


if __name__ == "__main__":
    main()
