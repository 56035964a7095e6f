"""What a list of curation rules may not say: bounds that exclude each other, and settings without effect."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from limbeck.config.problems import Problem, no_effect, problem
from limbeck.config.schema import did_you_mean
from limbeck.recipe.curate import (
    MISSED,
    DecontaminateRule,
    LanguageRule,
    LengthRule,
    NearDuplicateRule,
    PassRateRule,
    QuotaRule,
    VerifyRule,
)
from limbeck.recipe.languages import SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.recipe.recipe import Recipe


def curate_rules(recipe: Recipe) -> Iterator[Problem]:
    """Every contradiction inside `curate`."""
    verified = False
    for number, rule in enumerate(recipe.curate):
        where = f"curate[{number}]"
        if isinstance(rule, VerifyRule):
            verified = True
            yield from _verify(rule, where)
        elif isinstance(rule, PassRateRule):
            if not verified:
                yield problem(where, "is pass_rate, which no rule before it measures; put a `verify` rule before it.")
            yield from _bounds(where, rule.min, rule.max, nothing=(0.0, 1.0))
        elif isinstance(rule, LengthRule):
            yield from _bounds(where, rule.min, rule.max, nothing=(0, None))
            if rule.unit == "tokens" and rule.of != "reply":
                yield problem(f"{where}.unit", f"is tokens, which only whole replies are counted in; {rule.of} is not.")
        elif isinstance(rule, QuotaRule):
            yield from _quota(rule, where)
        elif isinstance(rule, LanguageRule):
            yield from _language(rule, where)
        elif isinstance(rule, NearDuplicateRule):
            yield from _near(rule, where)
        elif isinstance(rule, DecontaminateRule) and not rule.held_out and not rule.paths:
            yield problem(where, "compares with nothing: held_out is false, and there are no paths; remove it.")


def _verify(rule: VerifyRule, where: str) -> Iterator[Problem]:
    if rule.keep_wrong:
        yield from no_effect(rule, where, ("pick", "per_prompt", "keep_unknown"), "when keep_wrong keeps all")
    elif rule.per_prompt is None:
        yield from no_effect(rule, where, ("pick",), "without `per_prompt`: all right replies are kept")
    elif rule.pick == "all":
        message = f"is {rule.per_prompt}, but pick is all; set pick to shortest or random."
        yield problem(f"{where}.per_prompt", message)


def _quota(rule: QuotaRule, where: str) -> Iterator[Problem]:
    if rule.total is None and rule.per_topic is None:
        yield problem(where, "is a quota without `total` and without `per_topic`: it keeps all; remove it.")
    if rule.total is None:
        yield from no_effect(rule, where, ("weights",), "without `total`: nothing is shared")
    elif rule.per_topic is not None and rule.per_topic >= rule.total:
        message = f"is {rule.per_topic}, which no topic can exceed when all have {rule.total} together; remove it."
        yield problem(f"{where}.per_topic", message)


def _near(rule: NearDuplicateRule, where: str) -> Iterator[Problem]:
    missed = (1 - rule.threshold) ** rule.permutations
    if missed > MISSED:
        enough = math.ceil(math.log(MISSED) / math.log(1 - rule.threshold))
        message = (
            f"is {rule.permutations}, with which {missed:.1%} of the pairs at a threshold of {rule.threshold:g} are "
            f"overlooked; set it to {enough} or more, or raise the threshold."
        )
        yield problem(f"{where}.permutations", message)


def _language(rule: LanguageRule, where: str) -> Iterator[Problem]:
    for code in rule.allowed:
        if code not in SCRIPTS:
            known = ", ".join(sorted(SCRIPTS))
            message = (
                f"names {code!r}, which is no language that is known.{did_you_mean(code, SCRIPTS)} Known: {known}."
            )
            yield problem(f"{where}.allowed", message)
    if len(set(rule.allowed)) == 1:
        yield from no_effect(rule, where, ("mixed",), "with one language")


def _bounds(where: str, low: float, high: float | None, nothing: tuple[float, float | None]) -> Iterator[Problem]:
    if (low, high) == nothing:
        yield problem(where, "has neither a lower nor an upper bound: it keeps all; remove it.")
    elif high is not None and low > high:
        yield problem(f"{where}.min", f"is {low:g}, above max ({high:g}): nothing would be left.")
