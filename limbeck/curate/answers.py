"""Where the answer of a reply stands, and when two answers are the same."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import TYPE_CHECKING

from limbeck.curate.numbers import Found, first_number, last_number, read_number
from limbeck.curate.verdicts import Verdict, shorten, unreadable
from limbeck.metrics.pass_at_k import last_boxed

if TYPE_CHECKING:
    from limbeck.recipe import Exact, Numeric


def without_thinking(reply: str) -> str:
    """What stands behind the reasoning. A reply that never ended its reasoning has no answer."""
    before, tag, after = reply.rpartition("</think>")
    if tag:
        return after.strip()
    return before.strip() if "<think>" in reply else reply.strip()


def find_answer(reply: str, where: str, marker: str) -> str | None:
    """The answer in a reply; None where it does not stand. Behind a marker it is the rest of the line, or the next line
    with anything on it."""
    text = without_thinking(reply)
    if where == "last_line":
        return text.splitlines()[-1].strip() if text else None
    if where == "last_number":
        found = last_number(text)
        return found.text if found else None
    if where == "boxed":
        return boxed.strip() if (boxed := last_boxed(text)) is not None else None
    if where == "marker":
        return (text.rpartition(marker)[2].strip().splitlines() or [""])[0].strip() if marker in text else None
    return text


# ---- letter by letter ------------------------------------------------------------------------------------------------


def compare_exactly(verifier: Exact, reply: str, reference: str) -> Verdict:
    answer = find_answer(reply, verifier.answer, verifier.marker)
    if answer is None:
        return Verdict(False, f"no answer was found ({verifier.answer})")
    fold = folded if verifier.normalize else str.strip
    return Verdict(fold(answer) == fold(reference), f"the answer is {shorten(answer)}")


MINUS = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d"), "-")
DASH = re.compile(
    r"(?<=[^\W\d_]{2})\s*-\s*(?=[^\W\d_])|(?<=[^\W\d_])\s*-\s*(?=[^\W\d_]{2})|(?:^|\s)-+\s+(?=[^\W\d_]{2})"
)
FORMULA = re.compile(r"[\d+=<>^±√∞\u222a\u2229≤≥≠]|(?:\b|[)\]])\s*[*/|-]\s*(?:\b|[(\[])")
HEADING = re.compile(r"(?<!\w)#+")
EMPHASIS = re.compile(r"(?<![\w)\]]) ?\*+|\*+(?![\w(\[ ])|\*\*")
IN_NUMBERS = re.compile(r"(?<=\d)[.,:](?=\d)")
KEPT = "-+*/%&@#\\"
IN_FORMULAS = "()[]{}!|'"


def folded(text: str) -> str:
    """Case, punctuation, runs of white space and how letters are composed left aside. Signs and operators are no
    punctuation: -5 is not 5, x<y not x>y, C++ not C#; nor are brackets and decimal points beside them."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).translate(MINUS)
    text = EMPHASIS.sub("", HEADING.sub("", DASH.sub(" ", text))).replace("`", "")
    kept = KEPT + (IN_FORMULAS if FORMULA.search(text) else "")
    points = {found.start() for found in IN_NUMBERS.finditer(text)}
    plain = "".join(
        char if at in points or char in kept or not unicodedata.category(char).startswith(("P", "Z", "C")) else " "
        for at, char in enumerate(text)
    )
    return " ".join(plain.split()) or " ".join(text.split())


# ---- numbers ---------------------------------------------------------------------------------------------------------


def compare_numbers(verifier: Numeric, reply: str, reference: str) -> Verdict:
    wanted = read_number(reference) or (found.reading if (found := last_number(reference)) else None)
    if wanted is None:
        return unreadable(reference, "is no number that is understood; use another verifier for this row")
    found = _number_of(verifier, reply)
    if found is None:
        return Verdict(False, f"no number was found ({verifier.answer})")
    if found.reading is None:
        # In a box or behind a marker stands the answer, and it is none; in prose it may be elsewhere.
        ok = False if verifier.answer in ("boxed", "marker") else None
        return Verdict(ok, f"{shorten(found.text)} is no number that is understood")
    return Verdict(found.reading.equals(wanted, Fraction(verifier.tolerance)), f"the answer is {shorten(found.text)}")


def _number_of(verifier: Numeric, reply: str) -> Found | None:
    """The answer as a number, or else the number in it: the first behind a marker, the last in prose; none in a box."""
    if verifier.answer == "last_number":
        return last_number(without_thinking(reply))
    text = find_answer(reply, verifier.answer, verifier.marker)
    if text is None:
        return None
    whole = read_number(text)
    if whole is not None or verifier.answer == "boxed":
        return Found(text, whole)
    return (first_number if verifier.answer == "marker" else last_number)(text)
