"""What curation kept, for the page: one bar for each rule, and what it left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from limbeck.report.format import number, percent
from limbeck.text.visible import shortened, visible

REASONS = 3


@dataclass(frozen=True)
class Bar:
    """`width` is the share of all replies that is left behind this rule, in percent."""

    name: str
    kept: str
    width: float
    reasons: str


@dataclass(frozen=True)
class Funnel:
    bars: tuple[Bar, ...]
    lead: str
    notes: tuple[str, ...] = ()


def funnel(summary: dict[str, Any]) -> Funnel | None:
    """What curate/summary.json holds, as far as it is as it should be; None when there is nothing to show."""
    total, kept, prompts = (number(summary.get(name)) for name in ("candidates", "kept", "prompts"))
    steps, notes = (found if isinstance(found := summary.get(name), list) else [] for name in ("steps", "notes"))
    steps = [step for step in steps if isinstance(step, dict)]
    if not total or kept is None or not steps:
        return None
    bars = [Bar("all replies", f"{total:,.0f}", 100.0, "")]
    for step in steps:
        left = number(step.get("kept"))
        if left is not None:
            name = shortened(str(step.get("rule")), 40)
            bars.append(Bar(name, f"{left:,.0f}", min(100.0 * left / total, 100.0), _reasons(step.get("reasons"))))
    rate = number(summary.get("pass_rate"))
    told = f" The teacher was right in {percent(rate)} of its replies, prompt by prompt." if rate is not None else ""
    lead = f"{kept:,.0f} of {total:,.0f} replies were kept, to {prompts or 0:,.0f} prompts.{told}"
    return Funnel(tuple(bars), lead, tuple(visible(str(note), 400) for note in notes))


def _reasons(found: Any) -> str:
    """The most frequent reasons, with their counts."""
    if not isinstance(found, dict):
        return ""
    most = sorted(((number(count) or 0, str(why)) for why, count in found.items()), reverse=True)[:REASONS]
    more = f" and {len(found) - REASONS} more" if len(found) > REASONS else ""
    return "; ".join(f"{count:,.0f} {shortened(why, 80)}" for count, why in most) + more
