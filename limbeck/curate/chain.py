"""The rules of a recipe, one after the other: what is kept, what is left out and why, and how many each rule took."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.curate.filters import FILTERS
from limbeck.curate.together import TOGETHER, Context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.curation import CurateRule
    from limbeck.types import Candidate


@dataclass(frozen=True)
class Rejected:
    """A reply that a rule left out: the rule's number (from 1) and kind, and the reason."""

    candidate: Candidate
    number: int
    rule: str
    reason: str


@dataclass(frozen=True)
class Step:
    """One rule's counts: replies that came in, that went out, and those left out by reason."""

    number: int
    rule: str
    came: int
    kept: int
    reasons: dict[str, int]


@dataclass(frozen=True)
class Curated:
    """`kept` in the order of the candidates; `rejected` in the order of the rules."""

    kept: list[Candidate]
    rejected: list[Rejected]
    steps: list[Step]


def curate(candidates: Sequence[Candidate], rules: Sequence[CurateRule], context: Context) -> Curated:
    """Apply `rules` in order, each to what the one before kept. A pure function of its arguments but for what `context`
    gathers. Raises DataError, MissingExtra, SandboxError or Stopped as the rules do."""
    kept, rejected, steps = list(candidates), list[Rejected](), list[Step]()
    for number, rule in enumerate(rules, 1):
        seen = [one for one in kept if not rule.topics or one.topic in rule.topics]
        if rule.kind in FILTERS:
            look = FILTERS[rule.kind]
            out = {one.id: why for one in seen if (why := look(rule, one)) is not None}
        else:
            out = TOGETHER[rule.kind](rule, seen, context)
        rejected += [Rejected(one, number, rule.kind, out[one.id]) for one in seen if one.id in out]
        reasons = Counter(out[one.id] for one in seen if one.id in out)
        steps.append(Step(number, rule.kind, len(kept), len(kept) - sum(reasons.values()), dict(reasons.most_common())))
        kept = [one for one in kept if one.id not in out]
    return Curated(kept, rejected, steps)
