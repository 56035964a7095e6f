"""What must not be written: keys always, and personal data by named rules. Text goes in, text comes out.

The rules look for shapes, so they miss what has none (names, addresses) and sometimes hit what is harmless. Numbers
with a check digit are checked: a card number must pass Luhn (ISO/IEC 7812-1), an IBAN mod 97 (ISO 13616).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MIN_SECRET = 8
LONG_SECRET, LONG_WORD = 24, 12
"""Servers that need no key are given one that is a word ("anything", "not-needed"). A value that is shorter than
MIN_SECRET, or is made of words of at most LONG_WORD letters and shorter than LONG_SECRET, keeps nobody out, and is not
looked for in texts."""

WORDS = re.compile(r"(?:[A-Za-z]?[a-z]+|[A-Z]+)(?:[-_. ](?:[A-Za-z]?[a-z]+|[A-Z]+))*")

KEYS = re.compile(
    r"""
      -----BEGIN\ [A-Z ]{0,30}PRIVATE\ KEY-----[^-]{0,10000}(?:-----END\ [A-Z ]{0,30}PRIVATE\ KEY-----)?
    | (?<![A-Za-z0-9])(?:
          sk-[A-Za-z0-9_-]{16,}                             # OpenAI, Anthropic, OpenRouter and those who follow
        | (?:sk|rk|pk|whsec)_(?:live_|test_)?[A-Za-z0-9]{16,}   # Stripe
        | gh[opusr]_[A-Za-z0-9]{20,} | github_pat_[A-Za-z0-9_]{20,} | glpat-[A-Za-z0-9_-]{16,}
        | hf_[A-Za-z0-9]{20,} | gsk_[A-Za-z0-9]{20,} | r8_[A-Za-z0-9]{20,} | npm_[A-Za-z0-9]{20,}
        | (?:xai|pplx|nvapi|fw|csk|tgp)[-_][A-Za-z0-9_-]{20,}
        | (?:AKIA|ASIA)[A-Z0-9]{16} | AIza[A-Za-z0-9_-]{30,} | ya29\.[A-Za-z0-9_-]{20,}
        | xox[abeoprs]-[A-Za-z0-9-]{10,}
        | eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*   # JSON web tokens
      )
    | (?<=bearer\ )[A-Za-z0-9._~+/=-]{16,} | (?<=Bearer\ )[A-Za-z0-9._~+/=-]{16,}
    | (?<=BEARER\ )[A-Za-z0-9._~+/=-]{16,}
    """,
    re.VERBOSE,
)
ASSIGNED = re.compile(
    r"(?i)((?<![a-z0-9])(?:api[_-]?key|access[_-]?token|auth[_-]?token|client[_-]?secret)\\?[\"']?\s{0,4}[:=]\s{0,4}"
    r"\\?[\"']?)[a-z0-9._~+/=-]{16,}"
)
MARKS = (
    *("sk-", "sk_", "rk_", "pk_", "whsec_", "gho_", "ghp_", "ghs_", "ghu_", "ghr_", "github_pat_", "glpat-", "hf_"),
    *("gsk_", "r8_", "npm_", "xai", "pplx", "nvapi", "fw-", "fw_", "csk", "tgp", "AKIA", "ASIA", "AIza", "ya29."),
    *("xox", "eyJ", "PRIVATE KEY", "earer ", "EARER "),
)
"""Without one of these in a text, KEYS need not be tried: most texts have none, and looking for words is fast."""

# Patterns begin with what they look for, and look back afterwards: so the engine can skip to where they may begin.
LOCAL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}\Z")
DOMAIN = re.compile(
    r"(?:[A-Za-z0-9-]{1,63}\.){1,8}(?:xn--[A-Za-z0-9-]{1,59}|[A-Za-z]{2,24})(?![A-Za-z0-9-])"
    r"|(?:[^\W_](?:[\w-]{0,61}[^\W_])?[.\u3002]){1,8}[^\W\d_]{2,24}(?![\w-])"  # in any script
)
IPV4 = re.compile(r"[0-9](?<![\w.][0-9])\d{0,2}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\w|\.\d)")
PHONES = (
    re.compile(r"\+(?<![\w.+]\+)[1-9](?:[ ().-]{0,2}\d){6,14}(?!\d)"),
    re.compile(r"00(?<![\w.+]00)[1-9](?:[ ().-]{0,2}\d){6,14}(?!\d)"),
    re.compile(r"\((?<![\w.-]\()\d{3}\) ?\d{3}[ .-]\d{4}(?![\w-])"),  # North American, as the next
    re.compile(r"[0-9](?<![\w.-][0-9])\d\d[.-]\d{3}[ .-]\d{4}(?![\w-])"),
)
DIGITS = re.compile(r"[0-9](?<!\w[0-9])(?<![0-9]\.[0-9])(?:[ -]?\d){12,40}(?!\w|\.\d)")  # no decimals of a number
GROUPS = {
    (4, 4, 4, 4),
    (4, 6, 5),
    (4, 6, 4),
    (4, 4, 4, 4, 3),
    (4, 4, 5),
    (8, 8),
    (6, 13),
    (4, 4, 4, 4, 2),
    (4, 4, 4, 4, 1),
}
"""How the digits of a card are set apart, where they are."""
IBAN = re.compile(r"[A-Z](?<![A-Za-z0-9][A-Z])[A-Z]\d{2}(?: ?[A-Z0-9]){11,40}")


def is_secret(value: str) -> bool:
    """Whether a value of a key header may be one: not so for what is a word or a few."""
    if len(value) < MIN_SECRET or not value.strip():
        return False
    words = re.split(r"[-_. ]", value.removeprefix("Bearer "))
    plain = WORDS.fullmatch(value) and max(map(len, words)) <= LONG_WORD
    return not plain or len(value) >= LONG_SECRET


def luhn(digits: str) -> bool:
    """Whether the check digit at the end is right."""
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    return (sum(map(int, digits[::-2])) + sum(value // 10 + value % 10 for value in doubled)) % 10 == 0


def iban_holds(text: str) -> bool:
    return int("".join(str(int(letter, 36)) for letter in text[4:] + text[:4])) % 97 == 1


def _keys(text: str) -> str:
    if any(mark in text for mark in MARKS):
        text = KEYS.sub("[key]", text)
    low = text.lower()
    return ASSIGNED.sub(r"\1[key]", text) if "key" in low or "token" in low or "secret" in low else text


def _emails(text: str) -> str:
    parts, kept = [], 0
    at = text.find("@")
    while at >= 0:
        domain = DOMAIN.match(text, at + 1)
        local = LOCAL.search(text[max(at - 65, kept) : at]) if domain else None
        if domain and local:
            parts += [text[kept : at - len(local[0])], "[email]"]
            kept = domain.end()
        at = text.find("@", domain.end() if domain and local else at + 1)
    return "".join([*parts, text[kept:]])


def _phones(text: str) -> str:
    for pattern in PHONES:
        text = pattern.sub("[phone]", text)
    return text


def _card(run: str) -> str:
    """A run of digits with the longest card number that begins and ends at its groups taken out: what stands beside a
    card (its date, its code) is often typed in the same style."""
    groups = [match.span() for match in re.finditer(r"\d+", run)]
    found = []
    for first, (start, _) in enumerate(groups):
        digits = ""
        for begin, end in groups[first:]:
            digits += run[begin:end]
            if len(digits) > 19:
                break
            if len(digits) >= 13 and is_card(digits) and _is_grouped(groups[first:], end):
                found.append((len(digits), start, end))
    if not found:
        return run
    _, start, end = max(found)
    return f"{run[:start]}[card]{run[end:]}"


def _is_grouped(groups: list[tuple[int, int]], end: int) -> bool:
    sizes = tuple(last - begin for begin, last in groups if last <= end)
    return len(sizes) == 1 or sizes in GROUPS


def is_card(digits: str) -> bool:
    """Whether an issuer gives numbers of this beginning and length (ISO/IEC 7812-1), with a right check digit."""
    size, two = len(digits), int(digits[:2] or 0)
    if digits.startswith("4"):
        issued = size in (13, 16, 19)
    elif two in (34, 37):
        issued = size == 15
    elif two in (30, 36, 38, 39):
        issued = size in (14, 16)
    elif digits.startswith("2"):
        issued = size == 16 and 2221 <= int(digits[:4]) <= 2720
    else:
        issued = (13 <= size <= 19 and digits[:1] in ("5", "6")) or (size >= 16 and two == 35)
    return issued and luhn(digits)


def _iban(run: str) -> str:
    """Words in capitals behind an IBAN look as if they belonged to it: the longest beginning that holds is taken."""
    for end in range(len(run), 14, -1):
        bare = run[:end].replace(" ", "")
        if 15 <= len(bare) <= 34 and run[end - 1] != " " and iban_holds(bare):
            return f"[iban]{run[end:]}"
    return run


def _address(match: re.Match[str]) -> str:
    return "[ipv4]" if all(int(part) < 256 for part in match[0].split(".")) else match[0]


BUILT_IN: dict[str, Callable[[str], str]] = {
    "email": _emails,
    "iban": lambda text: IBAN.sub(lambda match: _iban(match[0]), text),
    "card": lambda text: DIGITS.sub(lambda match: _card(match[0]), text),
    "phone": _phones,
    "ipv4": lambda text: IPV4.sub(_address, text),
}


@dataclass(frozen=True)
class Redactor:
    """`rules` are applied in order. `secrets` are the keys of one request, taken out wherever they stand."""

    rules: tuple[Callable[[str], str], ...]
    secrets: tuple[str, ...] = ()

    def with_secrets(self, secrets: Iterable[str]) -> Redactor:
        kept = sorted({one for one in secrets if is_secret(one)}, key=lambda one: (-len(one), one))
        return Redactor(self.rules, tuple(kept))

    def text(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "[key]")
        for rule in self.rules:
            text = rule(text)
        return text

    def value(self, value: Any) -> Any:
        """JSON with every string in it redacted, keys of objects too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(one) for one in value]
        if isinstance(value, dict):
            return {self.text(key): self.value(one) for key, one in value.items()}
        return value


def make_redactor(names: Sequence[str]) -> Redactor:
    """Rules by name: `all`, `none`, those of BUILT_IN, or NAME=REGEX of one's own. Keys are always taken out.

    Raises CaptureError for a name that does not exist and for a pattern that is none or matches nothing at all.
    """
    own, wanted = [], set()
    for name in names:
        label, equals, pattern = name.partition("=")
        if equals:
            own.append(_own_rule(label, pattern))
        elif name in BUILT_IN:
            wanted.add(name)
        elif name == "all":
            wanted.update(BUILT_IN)
        elif name not in ("none", "keys"):
            allowed = ", ".join(["all", "none", "keys", *BUILT_IN])
            raise CaptureError(f"--redact {name} is no rule; allowed are {allowed}, or NAME=REGEX for one of your own.")
    if "none" in names and wanted:
        raise CaptureError("--redact none stands beside other rules; keep the one or the others.")
    if not names or (own and len(own) == len(names)):  # rules of one's own come on top of the usual ones
        wanted.update(BUILT_IN)
    return Redactor((_keys, *own, *(rule for name, rule in BUILT_IN.items() if name in wanted)))


def _own_rule(label: str, pattern: str) -> Callable[[str], str]:
    if not re.fullmatch(r"[a-z0-9_-]{1,32}", label):
        raise CaptureError(f"--redact {label!r}=...: the name must be of a-z, 0-9, - and _, such as ticket=TCK-[0-9]+.")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise CaptureError(f"--redact {label}={pattern} is no regular expression: {error}.") from error
    if compiled.match(""):
        raise CaptureError(f"--redact {label}={pattern} matches the empty text; it must ask for at least a character.")
    return lambda text: compiled.sub(f"[{label}]", text)
