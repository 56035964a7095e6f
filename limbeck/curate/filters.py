"""Rules that look at one reply: each says why it is left out, or nothing. Replies are counted by what stands before a
colon."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from limbeck.curate.answers import without_thinking
from limbeck.curate.ngrams import runs, words
from limbeck.errors import MissingExtra
from limbeck.recipe.languages import KNOWN, LATIN, SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from py3langid.langid import LanguageIdentifier

    from limbeck.curate.context import Candidate
    from limbeck.recipe import CodeRule, FinishRule, LanguageRule, LengthRule, ParagraphRule, RepetitionRule, ThinkRule

OPEN, CLOSE = "<think>", "</think>"
LONGEST_LOOP = 400
"""Words of a loop that is looked for at the end of a reply."""

END = 12
"""Characters that a loop is found by: those that the reply ends with, where they stood before."""

SHORTEST_STUTTER = 100
"""Characters of a loop of characters: 1,000,000 and a dashed line are none."""

QUOTED = 60
PARAGRAPH = re.compile(r"\n\s*\n")
CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def thinking_of(reply: str) -> str:
    """The reasoning: between the tags, or before the closing one where the template opened it."""
    before, tag, _ = reply.partition(CLOSE)
    return before.partition(OPEN)[2] if OPEN in before else before if tag else ""


def finish(rule: FinishRule, one: Candidate) -> str | None:
    return None if one.finish_reason in rule.allowed else f"finish reason {one.finish_reason}"


def length(rule: LengthRule, one: Candidate) -> str | None:
    if rule.unit == "tokens":
        size = one.num_tokens
    else:
        size = len({"reply": str, "thinking": thinking_of, "answer": without_thinking}[rule.of](one.reply))
    if size < rule.min:
        return f"{rule.of} shorter than {rule.min} {rule.unit}"
    return f"{rule.of} longer than {rule.max} {rule.unit}" if rule.max is not None and size > rule.max else None


def think(_rule: ThinkRule, one: Candidate) -> str | None:
    opened, closed = one.reply.count(OPEN), one.reply.count(CLOSE)
    if closed != 1 or opened > 1:
        return "reasoning never ends" if closed == 0 else "several pairs of tags"
    before, _, after = one.reply.partition(CLOSE)
    if opened and before.partition(OPEN)[0].strip():
        return "text before the reasoning"
    if not thinking_of(one.reply).strip():
        return "no reasoning"
    return None if after.strip() else "no answer after the reasoning"


def code_in_thinking(_rule: CodeRule, one: Candidate) -> str | None:
    return "code block in the reasoning" if "```" in thinking_of(one.reply) else None


def paragraphs(rule: ParagraphRule, one: Candidate) -> str | None:
    longest = max((len(part) for part in PARAGRAPH.split(one.reply)), default=0)
    return f"a paragraph longer than {rule.max} characters" if longest > rule.max else None


def language(rule: LanguageRule, one: Candidate) -> str | None:
    text = CODE.sub("\n\n", one.reply.replace(OPEN, "").replace(CLOSE, "\n\n"))
    if (script := _foreign_script(rule, text)) is not None:
        return f"letters of another script: {script}"
    found = set()
    for part in PARAGRAPH.split(text):
        # Formulas and numbers are of no language.
        letters = sum(character.isalpha() for character in part)
        if len(part.strip()) >= rule.min_characters and letters * 2 > len(part):
            code, confidence = _identifier().classify(part)
            if confidence < rule.min_confidence:
                continue
            if code not in rule.allowed:
                return f"a paragraph in {code}: {' '.join(part.split())[:QUOTED]}"
            found.add(code)
    return f"languages mixed: {', '.join(sorted(found))}" if len(found) > 1 and not rule.mixed else None


def _foreign_script(rule: LanguageRule, text: str) -> str | None:
    """The most frequent script that none of the allowed languages is written in, where all of them together have more
    letters than allowed."""
    if text.isascii():
        return None
    native = LATIN.union(*(SCRIPTS[code] for code in rule.allowed))
    letters = Counter(_script_of(character) for character in text if character.isalpha())
    foreign = {script: count for script, count in letters.items() if script in KNOWN - native}
    if sum(foreign.values()) <= rule.max_foreign * letters.total():
        return None
    return max(sorted(foreign), key=lambda script: foreign[script]).capitalize().replace("Cjk", "Han")


@lru_cache(1 << 16)
def _script_of(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]


@cache
def _identifier() -> LanguageIdentifier:
    try:
        from py3langid import langid
    except ImportError as error:
        raise MissingExtra("py3langid", "curate", "the rule language") from error
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def repetition(rule: RepetitionRule, one: Candidate) -> str | None:
    found = words(one.reply)
    numbers = runs(found, rule.n)
    if len(numbers) and 1 - len(np.unique(numbers)) / len(numbers) > rule.max_share:
        return f"more than {rule.max_share:.0%} of its {rule.n}-grams stood before"
    if _loops(found, rule.max_loops) or _stutters(one.reply.rstrip(), rule.max_loops):
        return f"its end repeats itself more than {rule.max_loops} times"
    return None


def _loops(words: list[str], most: int) -> bool:
    """Whether the last words are one sequence more than `most` times over."""
    for size in range(1, min(len(words) // (most + 1), LONGEST_LOOP) + 1):
        # All copies are alike where the text equals itself a copy further on.
        if words[-size * (most + 1) : -size] == words[-size * most :]:
            return True
    return False


def _stutters(text: str, most: int) -> bool:
    """Whether the last characters are one sequence more than `most` times over, wherever it was cut off."""
    last = text[-END:]
    at = text.rfind(last, 0, len(text) - 1)
    while last and at >= 0:
        size = len(text) - len(last) - at
        span = max(size * (most + 1), SHORTEST_STUTTER)
        if span > len(text):
            return False
        if text[-span:-size] == text[-span + size :]:
            return True
        at = text.rfind(last, 0, at + len(last) - 1)
    return False


FILTERS: dict[str, Callable[..., str | None]] = {
    "finish": finish,
    "length": length,
    "think": think,
    "code_in_thinking": code_in_thinking,
    "paragraphs": paragraphs,
    "language": language,
    "repetition": repetition,
}
