"""The recipe's sections on curation: which of the teacher's replies the student learns from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from limbeck.config.problems import Problem, no_effect, problem
from limbeck.config.schema import AboveZero, Fraction, Positive, Section, did_you_mean
from limbeck.recipe.languages import SCRIPTS
from limbeck.recipe.verifier import Verifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.recipe.recipe import Recipe

CountFrom0 = Annotated[int, Field(ge=0)]

MISSED = 0.005
"""Chance that `near_duplicates` overlooks a pair of exactly the threshold's similarity; more alike, it falls fast."""


class _Rule(Section):
    topics: tuple[str, ...] = Field(default=(), description="topics that the rule applies to; empty: all")


class VerifyRule(_Rule):
    """Replies are verified against the row's reference, and wrong ones left out. The share of right ones is kept as
    `pass_rate`: how hard the prompt is."""

    kind: Literal["verify"] = "verify"
    verifier: Verifier = Field(discriminator="kind", description="verifier that judges a reply")
    pick: Literal["all", "shortest", "random"] = Field(
        default="all", description="which right replies of a prompt are kept, where there are more than `per_prompt`"
    )
    per_prompt: Positive | None = Field(default=None, description="maximum number of correct replies kept per prompt")
    keep_wrong: bool = Field(default=False, description="keep wrong replies, too: only measure")
    keep_unknown: bool = Field(default=False, description="keep replies that could not be verified")


class PassRateRule(_Rule):
    """Prompts that the teacher gets right neither always nor never (after `verify`)."""

    kind: Literal["pass_rate"] = "pass_rate"
    min: Fraction = Field(default=0.0, description="least share of right replies")
    max: Fraction = Field(default=1.0, description="largest share of right replies")


class FinishRule(_Rule):
    """Replies that ended by themselves: neither cut off nor filtered."""

    kind: Literal["finish"] = "finish"
    allowed: tuple[str, ...] = Field(
        default=("stop",), min_length=1, description="finish reasons that are kept, of stop, length, content_filter ..."
    )


class LengthRule(_Rule):
    """Neither too short nor too long."""

    kind: Literal["length"] = "length"
    of: Literal["reply", "thinking", "answer"] = Field(
        default="reply", description="what is measured: `thinking` stands in <think> tags, `answer` behind them"
    )
    unit: Literal["characters", "tokens"] = Field(default="characters", description="tokens only `of` the reply")
    min: CountFrom0 = Field(default=0, description="minimum length")
    max: Positive | None = Field(default=None, description="maximum length")


class ThinkRule(_Rule):
    """Reasoning stands once, whole, in <think> tags, and an answer follows it."""

    kind: Literal["think"] = "think"


class CodeRule(_Rule):
    """No code blocks in the reasoning (as DeepSeek-R1 was filtered, arXiv 2501.12948)."""

    kind: Literal["code_in_thinking"] = "code_in_thinking"


class ParagraphRule(_Rule):
    """No long paragraph (as DeepSeek-R1 was filtered, arXiv 2501.12948)."""

    kind: Literal["paragraphs"] = "paragraphs"
    max: Positive = Field(default=2000, description="maximum length of a paragraph in characters")


class LanguageRule(_Rule):
    """Replies in the languages named, paragraph by paragraph (`py3langid`, extra `curate`), and in their scripts. Code
    blocks, and paragraphs that are less than half letters, are of no language."""

    kind: Literal["language"] = "language"
    allowed: tuple[str, ...] = Field(min_length=1, description="codes of languages, such as en, zh")
    min_characters: Positive = Field(default=40, description="minimum length of a paragraph whose language is checked")
    min_confidence: Fraction = Field(
        default=0.5, description="less certain languages are not believed: short or odd paragraphs look like many"
    )
    mixed: bool = Field(default=False, description="allow several of them in one reply")
    max_foreign: Fraction = Field(
        default=0.02,
        description="largest share of letters in scripts that none of them is written in (Latin and Greek aside)",
    )


class RepetitionRule(_Rule):
    """No loops: neither a text of repeated n-grams, nor an end that repeats itself, by words or, over 100 characters,
    by characters."""

    kind: Literal["repetition"] = "repetition"
    n: Annotated[int, Field(ge=2)] = Field(default=8, description="words of an n-gram")
    max_share: Fraction = Field(default=0.3, description="largest share of n-grams that stood before")
    max_loops: Annotated[int, Field(ge=2)] = Field(default=4, description="maximum number of repetitions at the end")


class DuplicateRule(_Rule):
    """The first of several that are the same, white space and case aside."""

    kind: Literal["exact_duplicates"] = "exact_duplicates"
    by: Literal["prompt", "reply", "both"] = Field(
        default="both", description="what is compared; `prompt` keeps all replies to the first of equal prompts"
    )


class NearDuplicateRule(_Rule):
    """One of several that share most of their words' shingles: found by MinHash (`datasketch`, extra `curate`), and
    compared exactly. Of Han and kana, each character is a word."""

    kind: Literal["near_duplicates"] = "near_duplicates"
    by: Literal["prompt", "reply"] = Field(default="reply", description="what is compared")
    prefer: Literal["first", "shortest", "longest"] = Field(default="first", description="which of them is kept")
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(default=0.8, description="least Jaccard similarity")
    shingle: Positive = Field(default=3, description="words of a shingle")
    permutations: Annotated[int, Field(ge=16)] = Field(
        default=128, description="hashes of a text; with more, fewer pairs are compared in vain"
    )


class DecontaminateRule(_Rule):
    """Nothing that shares an n-gram with the run's held-out rows or with evaluation sets of yours, and no prompt that
    equals a shorter text of theirs (as GPT-3 was cleaned, arXiv 2005.14165, appendix C)."""

    kind: Literal["decontaminate"] = "decontaminate"
    n: Positive = Field(default=13, description="words of an n-gram")
    paths: tuple[str, ...] = Field(
        default=(), description="files: Parquet, CSV and JSONL (all strings of a row), or texts, one a line"
    )
    held_out: bool = Field(default=True, description="compare with this run's held-out rows")
    common: Positive | None = Field(
        default=10, description="n-grams that more prompts than this share are a template, not a leak; null: all count"
    )


class QuotaRule(_Rule):
    """Most replies in total and of each topic; whole prompts are drawn, the same with every run of one seed."""

    kind: Literal["quota"] = "quota"
    total: Positive | None = Field(default=None, description="maximum number of replies; topics share it by `weights`")
    per_topic: Positive | None = Field(default=None, description="maximum number of replies per topic")
    weights: dict[str, AboveZero] = Field(default={}, description="share of topics in `total`; 1 where none is given")


class VerdictRule(_Rule):
    """What a human said (`limbeck review` exports the table): a CSV with the columns id and verdict (keep, reject, or
    nothing). What is to be kept passes all later rules."""

    kind: Literal["verdicts"] = "verdicts"
    path: str = Field(description="the CSV file")


# fmt: off
CurateRule = (
    VerifyRule | PassRateRule | FinishRule | LengthRule | ThinkRule | CodeRule | ParagraphRule | LanguageRule
    | RepetitionRule | DuplicateRule | NearDuplicateRule | DecontaminateRule | QuotaRule | VerdictRule
)
# fmt: on


# ---- what it may not say ---------------------------------------------------------------------------------------------


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
