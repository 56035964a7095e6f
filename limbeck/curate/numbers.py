"""Numbers as people write them, exactly: 1,000, 70 000, 2 1/2, \\frac{3}{4}, 6.02 x 10^23, -$3.50, 12 %, 5 million.

A text is first made plain (`_plain`): one sign for minus, one for a space, LaTeX as ordinary characters. Then the
*expression* that the last (or first) number belongs to is taken as a whole, so that what cannot be read is never judged
by its last digits: in `3\\sqrt{2}`, `(2, 3)`, `x^2`, `5:30` and `2020-05-06` no number is found.
"""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

LONGEST_NUMBER = 400
"""Characters of a number: beyond, exact arithmetic takes longer than it is worth."""

LARGEST_EXPONENT = 999


class Reading(NamedTuple):
    """A number, and what a word behind it makes of it: 1/100 for percent, a million. 60 and 60 % are told apart by
    nothing but the question, so that where one of two has a scale and the other has none, both readings count."""

    value: Fraction
    scale: Fraction = Fraction(1)

    def equals(self, wanted: Reading, tolerance: Fraction) -> bool:
        """Within `tolerance` of `wanted`'s size (absolute below 1)."""
        pairs = [(self.value * self.scale, wanted.value * wanted.scale)]
        if self.scale == 1 or wanted.scale == 1:
            pairs.append((self.value, wanted.value))
        return any(abs(ours - theirs) <= tolerance * max(abs(theirs), 1) for ours, theirs in pairs)


class Found(NamedTuple):
    """The expression that a number belongs to; `reading` is None where it is no number."""

    text: str
    reading: Reading | None


def read_number(text: str) -> Reading | None:
    """A text that is one number, with a name before and a unit behind it at most; None for anything else."""
    tokens = _tokens(_plain(text))
    found = _expressions(tokens)
    if len(found) != 1:
        return None
    start, end = found[0]
    outside = {token.text for token in (*tokens[:start], *tokens[end:]) if token.kind == "mark"}
    if outside & set("[]⟦⟧^*+-<>≤≥±√∞=") or (outside & set("()") and outside & set(",;")):
        return None
    return _reading(tokens, start, end)


def last_number(text: str) -> Found | None:
    """The last expression in a text that has a number in it; None without one."""
    return _found(text, -1)


def first_number(text: str) -> Found | None:
    return _found(text, 0)


def _found(text: str, which: int) -> Found | None:
    tokens = _tokens(_plain(text))
    found = _expressions(tokens)
    if not found:
        return None
    start, end = found[which]
    shown = "".join(token.text for token in tokens[start:end]).strip()
    listed = which == -1 and len(found) > 1 and _ends_a_list(tokens, found[-2][1], start, end)
    return Found(shown, None if listed else _reading(tokens, start, end))


def to_number(text: str | None) -> Fraction | None:
    """The value of a text that is one number; None for what is none (or is written with more than 400 characters)."""
    if text is None or len(text) > LONGEST_NUMBER or (reading := read_number(text)) is None:
        return None
    return reading.value * reading.scale


# ---- plain text ------------------------------------------------------------------------------------------------------


MINUS = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"), "-")
SPACES = dict.fromkeys(
    map(ord, "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f"), " "
)
MARKS = dict.fromkeys(map(ord, "\u2019\u02bc\u2018\uff07"), "'") | dict.fromkeys(map(ord, "\u2044\u2215\u00f7"), "/")
MARKS |= dict.fromkeys(map(ord, "\u00d7\u22c5\u00b7\u2219\u2217"), "*") | dict.fromkeys(map(ord, "\u066a\uff05"), "%")
PLAIN = MINUS | SPACES | MARKS | dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"), None)
POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")

UNITS = r"(?:[^\W\d_]{2,}|[msghlLbBkKMVAWNJ])"
LATEX: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), text)
    for pattern, text in (
        (r"\\!|\\(?:left|right|displaystyle|bf|rm|mathbf)(?![a-zA-Z])", ""),
        (r"\\[,;: ]|\\quad(?![a-zA-Z])|\\qquad(?![a-zA-Z])|~", " "),
        (r"\{,\}", ","),
        (r"\\([%&#_$])", r"\1"),
        (r"\\\{", "⟦"),
        (r"\\\}", "⟧"),
        (r"\^\s*\{?\s*\\circ\s*\}?|°", " degrees "),
        (r"\\(?:text|mathrm|textbf|textit|mbox|operatorname|boxed|fbox|mathbf|mathit)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\times(?![a-zA-Z])|\\cdot(?![a-zA-Z])", "*"),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\pm(?![a-zA-Z])", "±"),
        (r"\\approx(?![a-zA-Z])", "≈"),
        (r"\\leq?(?![a-zA-Z])", "≤"),
        (r"\\geq?(?![a-zA-Z])", "≥"),
        (r"\\infty(?![a-zA-Z])", "∞"),
        (r"\\sqrt\s*\[", "√[["),
        (r"\\sqrt(?![a-zA-Z])", "√"),
        (r"\\[dt]?frac\s*(\d)\s*(\d)", r"((\1)/(\2))"),
        (r"\\[dt]?frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    )
]
FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*(?:\{([^{}]*)\}|(\d))")
HELD = re.compile(r"([√^])\s*\{([^{}]*)\}")
PER_CENT = re.compile(r"(?i)\bper cents?\b")
CURRENCY = re.compile(r"([-+])\s*[$€£¥₹]\s*(?=[\d.])")
SIGNS = re.compile(r"[$€£¥₹`]|\\[()\[\]]")
RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
UNIT_POWER = re.compile(rf"(?<![^\W\d_])({UNITS})\s*\^\s*[({{]?\s*-?\d\s*[)}}]?")
STARS = re.compile(r"(?<=\d)\*\*(?=\d)")
BOLD = re.compile(r"\*\*|__|(?<![\w)\]*])\*(?=[^\s*])|(?<=[^\s*])\*(?![\w(\[\\*.])")
TIMES_TEN = re.compile(r"(?<=[\d)])\s*[xX]\s*(?=10\s*\^)")


def _plain(text: str) -> str:
    text = text.translate(PLAIN)
    text = VULGAR.sub(
        lambda found: "(({})/({}))".format(*unicodedata.normalize("NFKC", found[0]).split("\u2044")), text
    )
    text = RAISED.sub(lambda found: f"^({found[0].translate(POWERS)})", text)
    text = unicodedata.normalize("NFKC", text)
    if "\\" in text or "{" in text or "~" in text or "°" in text:
        for pattern, instead in LATEX:
            text = pattern.sub(instead, text)
        for _ in range(4):  # fractions in fractions
            text = HELD.sub(r"\1(\2)", text)
            text = FRACTION.sub(lambda found: f"(({found[1]})/({found[2] or found[3]}))", text)
        text = text.replace("{", "(").replace("}", ")")
    text = SIGNS.sub(" ", CURRENCY.sub(r"\1", text))
    text = TIMES_TEN.sub("*", BOLD.sub(" ", STARS.sub("^", text)))
    return PER_CENT.sub("percent", UNIT_POWER.sub(r"\1", text))


# ---- expressions -----------------------------------------------------------------------------------------------------


NUMBER = (
    r"(?:\d{1,3}(?P<apart>[,' _])\d{3}(?:(?P=apart)\d{3}){0,99}(?!\d)|\d{1,2}(?:,\d{2}){1,9},\d{3}(?!\d)|\d+)(?:\.\d+)?"
    r"(?:[eE][-+]?\d+(?![\w]))?|\.\d+(?:[eE][-+]?\d+(?![\w]))?"
)
TOKEN = re.compile(rf"(?P<number>{NUMBER})|(?P<word>[^\W\d_]+)|(?P<space>[ \t]+)|(?P<break>\n)|(?P<mark>.)", re.DOTALL)
BINARY = "+*/^=≈<>≤≥±-"
OPENING, CLOSING = "([⟦√", ")]⟧"
SCALES = {"%": Fraction(1, 100), "percent": Fraction(1, 100), "percents": Fraction(1, 100), "pct": Fraction(1, 100)}
SCALES |= {"hundred": Fraction(100), "k": Fraction(1000), "thousand": Fraction(1000), "million": Fraction(10**6)}
SCALES |= {"m": Fraction(10**6), "billion": Fraction(10**9), "bn": Fraction(10**9), "b": Fraction(10**9)}
SCALES |= {"trillion": Fraction(10**12)}
UNIT_LETTERS = set("msghlLbBkKMVAWNJCF")


class _Token(NamedTuple):
    kind: str
    text: str


NOTHING = _Token("break", "")


def _tokens(text: str) -> list[_Token]:
    return [_Token(found.lastgroup or "", found[0]) for found in TOKEN.finditer(text)]


def _expressions(tokens: list[_Token]) -> list[tuple[int, int]]:
    """Where expressions with a number in them stand: [start, end) in order."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < len(tokens):
        if tokens[at].kind == "number" and not _of_a_name(tokens, at):
            start, end = _left(tokens, at, found[-1][1] if found else 0), _right(tokens, at + 1)
            found.append((start, end))
            at = end
        else:
            at += 1
    return found


def _of_a_name(tokens: list[_Token], at: int) -> bool:
    """H2O, x_1, COVID-19, Q3: digits of a name are no number."""
    one, two, three = (_at(tokens, at - back) for back in (1, 2, 3))
    if one.kind == "word":
        return two.kind != "number" and not (two.kind == "mark" and two.text in BINARY + CLOSING)
    if one.text == "_":
        return two.kind == "word"
    return one.text == "-" and two.kind == "word" and (len(two.text) > 1 or three.kind == "word")


def _at(tokens: list[_Token], at: int) -> _Token:
    return tokens[at] if 0 <= at < len(tokens) else NOTHING


def _left(tokens: list[_Token], at: int, stop: int) -> int:
    """Where the expression of a number begins: over operators, brackets and what they hold together."""
    start = at
    while start > stop:
        spaced = _at(tokens, start - 1).kind == "space"
        place = start - 1 - spaced
        one, here, before = _at(tokens, place), tokens[start], _at(tokens, place - 1)
        if place < stop or one.kind in ("break", "space"):
            break
        if one.kind == "mark" and one.text == "-" and spaced:  # a dash, or the sign of a list's item, is no minus
            behind = _at(tokens, place - 2) if before.kind == "space" else before
            fits = behind.kind == "number" or behind.text in [*CLOSING, "=", "≈", "*", "/"]
            fits = fits or (behind.kind == "word" and len(behind.text) == 1)
        elif one.kind == "mark":
            fits = one.text in BINARY or one.text in OPENING or (one.text in CLOSING and _joins(here))
            fits = fits or (one.text in ".:'_,;" and not spaced and before.kind == "number")
            fits = fits or (one.text == "," and _inside(tokens, place))
        elif one.kind == "word":
            fits = len(one.text) == 1 and (not spaced or _joins(here)) and before.kind != "word"
        else:  # a number
            fits = True
        if not fits:
            break
        start = place
    return start


def _joins(token: _Token) -> bool:
    return token.kind == "mark" and token.text in BINARY


def _inside(tokens: list[_Token], place: int) -> bool:
    """Whether a comma stands in brackets that open nearby: (2, 3) is one expression, and `2, 3` are two."""
    depth = 0
    for back in range(place - 1, max(place - 40, -1), -1):
        token = tokens[back]
        if token.kind == "break" or (token.kind == "word" and len(token.text) > 1):
            return False
        if token.kind == "mark" and token.text in CLOSING:
            depth += 1
        elif token.kind == "mark" and token.text in "([⟦":
            if not depth:
                return True
            depth -= 1
    return False


def _right(tokens: list[_Token], end: int) -> int:
    """Where the expression of a number ends."""
    while True:
        spaced = _at(tokens, end).kind == "space"
        place = end + spaced
        one, then = _at(tokens, place), _at(tokens, place + 1)
        after = _at(tokens, place + 2) if then.kind == "space" else then
        operand = after.kind == "number" or (after.kind == "mark" and after.text in "([⟦√-∞.")
        operand = operand or (after.kind == "word" and len(after.text) == 1)
        if one.kind == "number":
            fits = True
        elif one.kind == "mark" and one.text in "+*^=≈<>≤≥±":
            fits = operand
        elif one.text in ("-", "/"):
            fits = operand and not (one.text == "-" and spaced != (then.kind == "space"))
            fits = fits and not (one.text == "/" and after.text in UNIT_LETTERS)
        elif one.kind == "mark" and one.text in CLOSING:
            fits = True
        elif one.kind == "mark" and one.text in OPENING:
            fits = not spaced
        elif one.text == ",":
            fits = then.kind == "number" or (after.kind in ("number", "mark", "word") and _inside(tokens, place))
        elif one.kind == "mark" and one.text in ".:'_;":
            fits = not spaced and then.kind == "number"
        elif one.text in "%∞" and one.kind == "mark":
            fits = True
        elif one.kind == "word":
            scale = one.text.casefold() in SCALES and len(one.text) > spaced
            fits = scale or _is_variable(tokens, place, spaced)
        else:
            fits = False
        if not fits:
            return end
        end = place + 1


def _is_variable(tokens: list[_Token], place: int, spaced: bool) -> bool:
    """4x and 5n are no numbers; 5m and 5 a day are. A unit's letter is a variable where it is computed with."""
    letter, then = tokens[place], _at(tokens, place + 1)
    if len(letter.text) > 1:
        return False
    if _joins(_at(tokens, place - 1 - spaced)):
        return True
    computed = then.kind == "mark" and then.text in "^([⟦"
    return not spaced and (computed or letter.text not in UNIT_LETTERS)


def _ends_a_list(tokens: list[_Token], before: int, start: int, end: int) -> bool:
    """`2, 3` or `2 and 3` at the end of a line or sentence are several answers, of which the last is not the answer."""
    between = "".join(token.text for token in tokens[before:start]).strip()
    after = next((token for token in tokens[end:] if token.kind != "space" and token.text not in ".!?)*"), NOTHING)
    return between.casefold() in (",", "and", "or", ", and", ", or", ";", "&") and after.kind == "break"


# ---- values ----------------------------------------------------------------------------------------------------------


def _reading(tokens: list[_Token], start: int, end: int) -> Reading | None:
    """The value of an expression: behind its last `=`, without brackets that hold nothing else."""
    part = tokens[start:end]
    signs = [at for at, token in enumerate(part) if token.kind == "mark" and token.text in "=≈"]
    part = part[signs[-1] + 1 :] if signs else part
    if sum(len(token.text) for token in part) > LONGEST_NUMBER:
        return None
    scale = Fraction(1)
    part = _trimmed(part)
    while part and part[-1].text.casefold() in SCALES:
        scale *= SCALES[part[-1].text.casefold()]
        part = _trimmed(part[:-1])
    try:
        value = _Parser(part).whole()
    except (ValueError, ZeroDivisionError, IndexError, OverflowError, RecursionError):
        return None
    return Reading(value, scale)


def _trimmed(part: list[_Token]) -> list[_Token]:
    """Without spaces at the ends, and without a bracket that has no partner."""
    part = list(part)
    while part and (part[0].kind == "space" or part[0].text in ("≈", "+")):
        part.pop(0)
    while part and part[-1].kind == "space":
        part.pop()
    opened = sum(token.text in "([⟦" for token in part if token.kind == "mark")
    closed = sum(token.text in CLOSING for token in part if token.kind == "mark")
    if part and closed > opened and part[-1].text in CLOSING:
        return _trimmed(part[:-1])
    if part and opened > closed and part[0].text in "([⟦":
        return _trimmed(part[1:])
    return part


class _Parser:
    """A product of powers: what numbers are written as. Sums are questions, not answers."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens, self.at = tokens, 0

    def whole(self) -> Fraction:
        value = self.signed()
        if self.at < len(self.tokens):
            raise ValueError("something is left")
        return value

    def peek(self) -> _Token:
        return _at(self.tokens, self.at)

    def take(self, texts: str) -> str | None:
        """The next token where it is one of these, spaces before it aside."""
        place = self.at + (self.peek().kind == "space")
        token = _at(self.tokens, place)
        if token.kind != "mark" or token.text not in texts:
            return None
        self.at = place + 1
        return token.text

    def signed(self) -> Fraction:
        sign = self.take("-+")
        value = self.product()
        return -value if sign == "-" else value

    def product(self) -> Fraction:
        value = self.mixed()
        while (operator := self.take("*/")) is not None:
            right = self.power()
            if operator == "/" and self.take("/"):
                raise ValueError("a date")
            value = value * right if operator == "*" else value / right
        return value

    def mixed(self) -> Fraction:
        """2 1/2, and a whole number before a fraction or a root."""
        literal = self.peek()
        value = self.power()
        if literal.kind != "number" or not literal.text.isdigit():
            return value
        spaced = self.peek().kind == "space"
        here = [_at(self.tokens, self.at + spaced + ahead) for ahead in range(3)]
        if [token.kind for token in here] == ["number", "mark", "number"] and here[1].text == "/" and spaced:
            self.at += spaced + 3
            return value + Fraction(int(here[0].text), int(here[2].text))
        if here[0].text == "(" and here[1].text == "(":
            return value + self.power()
        return value * self.power() if here[0].text == "√" else value

    def power(self) -> Fraction:
        base = self.base()
        if self.take("^") is None:
            return base
        exponent = self.exponent()
        if abs(exponent) > LARGEST_EXPONENT or exponent.denominator != 1:
            raise ValueError("an exponent that is none")
        if len(str(base)) * abs(exponent) > 10 * LARGEST_EXPONENT:
            raise ValueError("too large")
        return base**exponent.numerator

    def exponent(self) -> Fraction:
        return -self.base() if self.take("-") else self.base()

    def base(self) -> Fraction:
        if self.take("("):
            value = self.signed()
            if self.take(")") is None:
                raise ValueError("a bracket stays open")
            return value
        if self.take("√"):
            return _root(self.base())
        token = self.peek()
        if token.kind == "space":
            self.at += 1
            token = self.peek()
        if token.kind != "number":
            raise ValueError("no number")
        self.at += 1
        return _literal(token.text)


def _literal(text: str) -> Fraction:
    exponent = re.search(r"[eE][-+]?(\d+)$", text)
    if exponent and int(exponent[1][:6]) > LARGEST_EXPONENT:
        raise ValueError("an exponent that is none")
    return Fraction(re.sub(r"[,' _]", "", text))


def _root(value: Fraction) -> Fraction:
    """The square root to thirty digits; exactly where it is rational."""
    scale = 10**30
    top, bottom = math.isqrt(value.numerator * scale**2), math.isqrt(value.denominator * scale**2)
    return Fraction(top, bottom)
