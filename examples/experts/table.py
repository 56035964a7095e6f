"""What experts are worth: each against the teacher, its twin, the generalist and the larger model, in every domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.evaluate.compare import TEACHER
from limbeck.metrics.intervals import Interval, paired_bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence

METRICS = {"kl": "KL to the teacher, nats", "quality": "top-1 agreement with the teacher, %"}


@dataclass(frozen=True)
class Cell:
    """A model's mean in one domain with its 95 % interval."""

    value: Interval
    own: bool


def cells(entries: Sequence[dict[str, Any]], metric: str) -> dict[str, dict[str, Cell]]:
    """By model, then domain. Positions weigh alike; questions are resampled."""
    out: dict[str, dict[str, Cell]] = {}
    for domain in dict.fromkeys(entry["domain"] for entry in entries):
        part = [entry for entry in entries if entry["domain"] == domain]
        weights_R = np.array([entry["positions"] for entry in part])
        names = [name for name in part[0][metric] if name != TEACHER]
        sums = {name: np.array([entry[metric][name] for entry in part]) * weights_R for name in names}
        for name, value in paired_bootstrap(sums, weights_R).models.items():
            out.setdefault(name, {})[domain] = Cell(value, own=name.split()[0] == domain)
    return out


def gaps(entries: Sequence[dict[str, Any]], metric: str, other: str) -> dict[str, Interval]:
    """Expert minus `other` ("twin" is the expert's own) in the expert's domain, under the same resamples."""
    out = {}
    for domain in dict.fromkeys(entry["domain"] for entry in entries):
        part = [entry for entry in entries if entry["domain"] == domain]
        weights_R = np.array([entry["positions"] for entry in part])
        pair = (domain, f"{domain} twin" if other == "twin" else other)
        sums = {name: np.array([entry[metric][name] for entry in part]) * weights_R for name in pair}
        difference = paired_bootstrap(sums, weights_R, pair=pair).difference
        assert difference is not None
        out[domain] = difference
    return out


def markdown(entries: Sequence[dict[str, Any]]) -> str:
    """Two tables of all models in all domains, and one of the differences."""
    domains = list(dict.fromkeys(entry["domain"] for entry in entries))
    blocks = []
    for metric, title in METRICS.items():
        scale = 100 if metric == "quality" else 1
        lines = [f"| {title} | {' | '.join(domains)} |", "|---|" + "---:|" * len(domains)]
        for name, row in cells(entries, metric).items():
            lines.append(f"| {name} | {' | '.join(_cell(row[domain], scale) for domain in domains)} |")
        blocks.append("\n".join(lines))
    lines = [f"| expert minus | {' | '.join(domains)} |", "|---|" + "---:|" * len(domains)]
    for metric in METRICS:
        scale, unit = (100, "points") if metric == "quality" else (1, "nats")
        for other in ("twin", "generalist", "midsize"):
            row = gaps(entries, metric, other)
            lines.append(f"| {other}, {unit} | {' | '.join(_gap(row[domain], scale) for domain in domains)} |")
    return "\n\n".join([*blocks, "\n".join(lines)])


def _cell(cell: Cell, scale: float) -> str:
    text = f"{cell.value.value * scale:.1f}" if scale == 100 else f"{cell.value.value:.3f}"
    return f"**{text}**" if cell.own else text


def _gap(gap: Interval, scale: float) -> str:
    mean, low, high = (value * scale for value in gap)
    digits = 1 if scale == 100 else 3
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
