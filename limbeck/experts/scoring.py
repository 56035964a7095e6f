"""How well an expert does on R held-out rows, whatever runs it; and what such sums say with their intervals."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from limbeck.errors import ExpertError
from limbeck.evaluate.row_scores import row_scores
from limbeck.experts.card import parse_json, read_lines
from limbeck.metrics.intervals import Interval, paired_bootstrap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from limbeck.types import LocalLM

HELDOUT = "heldout.jsonl"
RESAMPLES = 2000
MOST_ROWS = 100_000
"""Lines of a file that is read whole."""
REPRODUCED = ("agreement", "perplexity", "accuracy")
"""Measures that need no teacher."""


@dataclass(frozen=True)
class HeldOut:
    """A held-out row as an expert keeps it. `spans` are the supervised tokens, `first` the teacher's first choice at
    each of them ([] where it is not known), `prompt` the row that it answers: rows of one prompt are one cluster."""

    id: str
    prompt: str
    ids: list[int]
    spans: list[tuple[int, int]]
    first: list[int]

    @property
    def positions(self) -> list[int]:
        return [index for start, end in self.spans for index in range(start, end)]


@dataclass(frozen=True)
class Sums:
    """Sums over each row's positions: `metrics[name]` is [R]. "agreement" is there where first choices are."""

    positions_R: np.ndarray
    clusters: list[str]
    metrics: dict[str, np.ndarray]


def score_rows(lm: LocalLM, rows: Sequence[HeldOut], on_row: Callable[[int], None] = lambda _: None) -> Sums:
    """Cross-entropy, accuracy and agreement of a model on rows of its own tokens. `on_row` is told each row's number.

    Raises ExpertError for a row that is not of this model's tokens or longer than its context."""
    columns: dict[str, list[float]] = {"ce": [], "accuracy": [], "agreement": []}
    known = all(row.first for row in rows)
    for number, row in enumerate(rows):
        _check_row(lm, row)
        scores = row_scores(lm, row.ids, row.spans)
        columns["ce"].append(float(scores.ce_N.sum()))
        columns["accuracy"].append(float(scores.correct_N.sum()))
        if known:
            columns["agreement"].append(float((scores.top_N == torch.tensor(row.first)).sum()))
        on_row(number)
    metrics = {name: np.array(values) for name, values in columns.items() if len(values) == len(rows)}
    return Sums(np.array([float(len(row.positions)) for row in rows]), [row.prompt for row in rows], metrics)


def _check_row(lm: LocalLM, row: HeldOut) -> None:
    longest = lm.max_context or len(row.ids)
    if len(row.ids) > longest or max(row.ids) >= lm.vocab or min(row.ids) < 0:
        raise ExpertError(
            f"the held-out row {row.id} is not for this model: it has {len(row.ids)} tokens (its context holds "
            f"{longest}), the largest of them {max(row.ids)} (it knows {lm.vocab}). Add the expert again from its run."
        )


def scores_of(sums: Sums, *, seed: int = 0) -> dict[str, dict[str, float | int]]:
    """Each measure with its 95 % interval, as cards have them; "ce" as "perplexity". Rows of one prompt are resampled
    together (`metrics.intervals`)."""
    if not len(sums.positions_R):
        return {}
    found = paired_bootstrap(
        sums.metrics, sums.positions_R, clusters=sums.clusters, resamples=RESAMPLES, seed=seed
    ).models
    return {
        "perplexity" if name == "ce" else name: entry(interval, len(sums.positions_R), exponent=name == "ce")
        for name, interval in found.items()
    }


def entry(interval: Interval, n: int, *, exponent: bool = False) -> dict[str, float | int]:
    """{"value", "low", "high", "n"}; of exp(x) with `exponent`."""
    numbers = [math.exp(min(value, 700.0)) if exponent else value for value in interval]
    return {"value": numbers[0], "low": numbers[1], "high": numbers[2], "n": n}


# ---- files -----------------------------------------------------------------------------------------------------------

_HELDOUT = TypeAdapter(HeldOut)


def jsonl(rows: Sequence[Any]) -> str:
    """Dataclasses, one a line."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_jsonl(path: Path, kind: TypeAdapter[Any]) -> list[Any]:
    """What `jsonl` wrote; [] when there is no such file. Raises ExpertError for a line that is none of its kind."""
    if not path.exists():
        return []
    found = []
    for number, line in read_lines(path):
        where = f"{path.name}, line {number}"
        if number > MOST_ROWS:
            raise ExpertError(f"{path.name} has more than {MOST_ROWS} lines")
        try:
            found.append(kind.validate_python(parse_json(line, where)))
        except ValidationError as error:
            raise ExpertError(f"{where} cannot be read: {error.errors()[0]['msg']}") from error
    return found


def read_heldout(folder: Path) -> list[HeldOut]:
    """The held-out rows of an expert. Raises ExpertError for a line that is none."""
    rows = read_jsonl(folder / HELDOUT, _HELDOUT)
    for row in rows:
        sound = row.ids and row.spans and all(1 <= start < end <= len(row.ids) for start, end in row.spans)
        if not sound or (row.first and len(row.first) != len(row.positions)):
            raise ExpertError(f"{HELDOUT}: the row {row.id[:80]!r} has spans beyond its tokens")
    return rows
