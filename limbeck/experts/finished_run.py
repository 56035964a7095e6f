"""What a finished run tells of its models: its recipe and rows, scores by row, and the problems that were answered.

`R` scored rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from limbeck.data import read_rows
from limbeck.errors import RunDirError, StoreError
from limbeck.evaluate.compare import TEACHER
from limbeck.evaluate.tasks import read_attempts
from limbeck.experts.scoring import RESAMPLES, HeldOut, Sums, entry
from limbeck.label.strip_reasoning import strips_thinking, without_thinking
from limbeck.metrics.intervals import paired_bootstrap
from limbeck.recipe.recipe import load_run_recipe
from limbeck.store import TraceStore
from limbeck.system.sealed import REMADE, listed_wrong, read_json, read_sealed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from limbeck.experts.card import Scores
    from limbeck.recipe import Recipe
    from limbeck.types import Row, Trace

METRICS = ("kl", "agreement", "ce", "accuracy", "tv")
SHOWN = {"ce": "perplexity"}


@dataclass(frozen=True)
class TaskOutcome:
    """A problem of the evaluation's tasks, and the share of each model's replies that were right."""

    id: str
    prompt: str
    topic: str
    correct: dict[str, float]


@dataclass(frozen=True)
class FinishedRun:
    """A run folder up to its evaluation; opened with `FinishedRun.open`."""

    path: Path
    recipe: Recipe
    summary: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> FinishedRun:
        """Raises RunDirError when the folder is no run, or its evaluation has not finished, StoreError for damage."""
        if not (path / "recipe.yaml").exists():
            raise RunDirError(f"{path} is not a run folder (it has no recipe.yaml). Give one such as runs/NAME.")
        if not (path / "summary.json").exists() or not (path / "evaluate" / "scores.parquet").exists():
            raise RunDirError(
                f"the run {path} has no scores yet; an expert is what was evaluated. Finish it: limbeck run "
                f"{path / 'recipe.yaml'} --run-dir {path}"
            )
        return cls(path, load_run_recipe(path), read_json(path / "summary.json", REMADE))

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the transfer set, those held out too. Raises StoreError when they are damaged."""
        return read_rows(self.path / "data" / "rows.parquet")

    @cached_property
    def _scores(self) -> pa.Table:
        return _table(self.path / "evaluate" / "scores.parquet")

    @cached_property
    def models(self) -> list[str]:
        """Who was scored: "teacher", "student", "twin"."""
        return list(dict.fromkeys(self._scores.column("model").to_pylist()))

    def sums(self, model: str) -> Sums:
        """A model's sums by scored row, in the order of the evaluation."""
        mine = self._scores.filter(pc.field("model") == model)
        metrics = {metric: mine.column(metric).to_numpy().astype(float) for metric in METRICS}
        return Sums(mine.column("positions").to_numpy().astype(float), mine.column("prompt").to_pylist(), metrics)

    def scored_ids(self) -> list[str]:
        mine = self._scores.filter(pc.field("model") == "student")
        return mine.column("row").to_pylist()

    def heldout(self, tokenizer: PreTrainedTokenizerBase) -> list[HeldOut]:
        """The scored rows, in the order of `scored_ids`; [] when they cannot all be found any more."""
        items: dict[str, Row | Trace] = {row.id: row for row in self.rows}
        if (self.path / "traces" / "store.json").exists():
            traces: Sequence[Trace] = TraceStore.open(self.path / "traces").traces("heldout")
            if traces and strips_thinking(self.recipe):
                traces = without_thinking(self.recipe, tokenizer, traces, self.rows, lambda _: None)
            items |= {trace.id: trace for trace in traces}
        ids, prompts, first = self.scored_ids(), self.sums("student").clusters, self._first_choices()
        if any(id not in items for id in ids):
            return []
        return [
            HeldOut(id, prompt, items[id].ids.tolist(), list(items[id].spans), first.get(id, []))
            for id, prompt in zip(ids, prompts, strict=True)
        ]

    def _first_choices(self) -> dict[str, list[int]]:
        file = self.path / "evaluate" / "first_choices.parquet"
        if not file.exists():  # a run of an earlier Limbeck
            return {}
        table = _table(file)
        return dict(zip(table.column("row").to_pylist(), table.column("tokens").to_pylist(), strict=True))

    @cached_property
    def problems(self) -> list[TaskOutcome]:
        """What the evaluation's tasks asked of every model; [] without tasks."""
        found: dict[str, TaskOutcome] = {}
        for model in (TEACHER, "student", "twin"):
            file = self.path / "evaluate" / "tasks" / f"{model}.jsonl"
            attempts = read_attempts(file) if self.recipe.evaluate.tasks is not None else None
            if attempts is None:
                continue
            lines = [line for _, line in read_sealed(file)][1:]
            for number, replies in enumerate(attempts):
                line = lines[number * len(replies)]
                problem = found.setdefault(
                    line["problem"], TaskOutcome(line["problem"], line["prompt"], line["topic"], {})
                )
                problem.correct[model] = sum(one.ok is True for one in replies) / len(replies)
        return list(found.values())

    def card_scores(self, role: str) -> Scores:
        """Every measure of everyone with its 95 % interval. `role` is who becomes "student"; its twin, or else nobody,
        is "twin"."""
        who = {TEACHER: TEACHER, "student": role, **({"twin": "twin"} if role == "student" else {})}
        found: Scores = {}
        for shown, model in who.items():
            scores: dict[str, dict[str, float | int]] = {}
            answered = [problem.correct[model] for problem in self.problems if model in problem.correct]
            if answered:
                right = paired_bootstrap({"x": np.array(answered)}, np.ones(len(answered)), resamples=RESAMPLES)
                scores["correct"] = entry(right.models["x"], len(answered))
            if model in self.models:
                sums = self.sums(model)
                intervals = paired_bootstrap(
                    sums.metrics, sums.positions_R, clusters=sums.clusters, resamples=RESAMPLES
                ).models
                for metric, interval in intervals.items():
                    if model != TEACHER or metric not in ("kl", "tv", "agreement"):  # of a teacher to itself
                        key, n = SHOWN.get(metric, metric), len(sums.positions_R)
                        scores[key] = entry(interval, n, exponent=metric == "ce")
            if scores:
                found[shown] = scores
        return found

    def agreement(self, sums: Sums) -> dict[str, float]:
        """By prompt: the share of its positions at which the teacher's first choice was the model's as well."""
        prompts, index_R = np.unique(np.asarray(sums.clusters), return_inverse=True)
        agreed = np.bincount(index_R, weights=sums.metrics["agreement"])
        share = agreed / np.bincount(index_R, weights=sums.positions_R)
        return dict(zip(prompts.tolist(), np.clip(share, 0.0, 1.0).tolist(), strict=True))


def _table(file: Path) -> pa.Table:
    if problem := listed_wrong(file):
        raise StoreError(f"{problem}. {REMADE}")
    try:
        return pq.read_table(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{file} cannot be read ({error}). Run `limbeck evaluate` on its recipe again.") from error
