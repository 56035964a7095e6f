"""The rules of a recipe, one after the other: what is kept, what is left out and why, and how many each rule took."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.config.schema import did_you_mean
from limbeck.curate.context import Context
from limbeck.curate.filters import FILTERS
from limbeck.curate.selection import TOGETHER
from limbeck.errors import DataError
from limbeck.recipe import QuotaRule
from limbeck.text.visible import some

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limbeck.curate.context import Candidate
    from limbeck.recipe import CurateRule

NAMED = 12
"""Topics that an error names."""


@dataclass(frozen=True)
class Rejected:
    """A reply that a rule left out: the rule's number (from 1) and kind, and the reason."""

    candidate: Candidate
    number: int
    rule: str
    reason: str


@dataclass(frozen=True)
class RuleOutcome:
    """One rule's counts: replies that came in, that went out, and those left out by reason (up to its colon)."""

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
    steps: list[RuleOutcome]


def curate(
    candidates: Sequence[Candidate],
    rules: Sequence[CurateRule],
    context: Context,
    *,
    on_step: Callable[[RuleOutcome], None] = lambda _: None,
) -> Curated:
    """Apply `rules` in order, each to what the one before kept; `on_step` hears of each. A pure function of its
    arguments but for what `context` gathers. Raises DataError, MissingExtra, SandboxError or Stopped as the rules do;
    DataError for a topic that no reply has."""
    kept, rejected, steps = list(candidates), list[Rejected](), list[RuleOutcome]()
    context.ids = frozenset(one.id for one in candidates)
    for number, rule in enumerate(rules, 1):
        _refuse_unknown_topics(number, rule, candidates)
        seen = [one for one in kept if not rule.topics or one.topic in rule.topics]
        if rule.kind in FILTERS:
            look = FILTERS[rule.kind]
            out = {one.id: why for one in seen if (why := look(rule, one)) is not None}
        else:
            out = TOGETHER[rule.kind](rule, seen, context)
        gone = [one for one in seen if one.id in out and one.id not in context.wanted]
        rejected += [Rejected(one, number, rule.kind, out[one.id]) for one in gone]
        reasons = Counter(out[one.id].partition(":")[0] for one in gone)
        steps.append(RuleOutcome(number, rule.kind, len(kept), len(kept) - len(gone), dict(reasons.most_common())))
        ids = {one.id for one in gone}
        kept = [one for one in kept if one.id not in ids]
        on_step(steps[-1])
    return Curated(kept, rejected, steps)


def _refuse_unknown_topics(number: int, rule: CurateRule, candidates: Sequence[Candidate]) -> None:
    """A misspelt topic would leave the rule without effect."""
    topics = {one.topic for one in candidates}
    weights = rule.weights if isinstance(rule, QuotaRule) else {}
    unknown = sorted({*rule.topics, *weights} - topics) if topics else []
    if unknown:
        raise DataError(
            f"rule {number} ({rule.kind}) names the topic {unknown[0]!r}, which no training reply has; there are: "
            f"{some(list(map(repr, sorted(topics))), NAMED)}.{did_you_mean(unknown[0], topics)}"
        )
