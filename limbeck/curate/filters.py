"""Rules that look at one reply: each says why it is left out, or nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from limbeck.curate.verify import without_thinking
from limbeck.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable

    from limbeck.curation import (
        CodeRule,
        FinishRule,
        LanguageRule,
        LengthRule,
        ParagraphRule,
        RepetitionRule,
        ThinkRule,
    )
    from limbeck.types import Candidate

OPEN, CLOSE = "<think>", "</think>"
LONGEST_LOOP = 400
"""Words of a loop that is looked for at the end of a reply."""


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
    longest = max((len(part) for part in re.split(r"\n\s*\n", one.reply)), default=0)
    return f"a paragraph longer than {rule.max} characters" if longest > rule.max else None


def language(rule: LanguageRule, one: Candidate) -> str | None:
    found = set()
    for part in re.split(r"\n\s*\n", one.reply.replace(OPEN, "").replace(CLOSE, "\n\n")):
        # Formulas and numbers are of no language.
        letters = sum(character.isalpha() for character in part)
        if len(part.strip()) >= rule.min_characters and letters * 2 > len(part):
            code = _language_of(part)
            if code not in rule.allowed:
                return f"a paragraph in {code}"
            found.add(code)
    return f"languages mixed: {', '.join(sorted(found))}" if len(found) > 1 and not rule.mixed else None


def _language_of(text: str) -> str:
    try:
        import py3langid
    except ImportError as error:
        raise MissingExtra("py3langid", "curate", "the rule language") from error
    return str(py3langid.classify(text)[0])


def repetition(rule: RepetitionRule, one: Candidate) -> str | None:
    words = one.reply.split()
    grams = [tuple(words[index : index + rule.n]) for index in range(len(words) - rule.n + 1)]
    if grams and 1 - len(set(grams)) / len(grams) > rule.max_share:
        return f"more than {rule.max_share:.0%} of its {rule.n}-grams stood before"
    return f"its end repeats itself more than {rule.max_loops} times" if _loops(words, rule.max_loops) else None


def _loops(words: list[str], most: int) -> bool:
    """Whether the last words are one sequence more than `most` times over."""
    for size in range(1, min(len(words) // (most + 1), LONGEST_LOOP) + 1):
        last = words[-size:]
        if all(words[-size * (turn + 1) : -size * turn] == last for turn in range(1, most + 1)):
            return True
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
