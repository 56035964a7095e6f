"""Problems that can be checked, with worked steps, made from a seed: what reasoning is tried on without any data set.

Families:
- `chain`: `level` operations modulo 10, from left to right. "5+9*4 mod 10": "5+9=4;4*4=6", then 6. A small model can do
  each step, and cannot do all of them at once.
- `sum`: two numbers of `level` digits. "58+67": "8+7=15;5+6+1=12", then 125.
- `story`: the same in words, `level` things that happen to someone's apples, coins or books: what a model that has read
  text can be asked. "... Ana has 9 apples. Ben gives Ana 4 more. ...": "9+4=13", then 13.

A problem is a pure function of (family, level, seed, index, part). The space of all problems is divided into PARTS
disjoint parts by a hash of the problem's text, so what is drawn from one part is never in another, whatever the seed.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.text.encode import Example

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.recipe import ProblemsSource

PARTS = 4
MODULUS = 10
ALPHABET = "0123456789+-*=; mod\n"
"""Every character of problems, steps and answers of `chain` and `sum`, besides the think tags."""

NAMES = ("Ana", "Ben", "Chen", "Dara", "Emil", "Fatima", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena", "Mara", "Nils")
THINGS = ("apples", "coins", "books", "marbles", "pencils", "stamps", "shells", "cards", "buttons", "beads")
MOST = 500
"""No story's number grows beyond this."""


@dataclass(frozen=True)
class SyntheticProblem:
    """`prompt` ends where a reply begins; `steps` lead to `answer`."""

    family: str
    level: int
    prompt: str
    steps: tuple[str, ...]
    answer: str

    @property
    def worked(self) -> str:
        """The reply with its steps."""
        return f"<think>{';'.join(self.steps)}</think>{self.answer}"


def make_problem(family: str, level: int, *, seed: int, index: int, part: int = 0) -> SyntheticProblem:
    """The `index`-th problem of this seed and part. Raises ValueError for a family, level or part that is not there."""
    if family not in _MAKERS or level < 1 or not 0 <= part < PARTS:
        raise ValueError(
            f"there is no problem of family {family!r}, level {level}, part {part}; families are "
            f"{', '.join(_MAKERS)}, levels begin at 1, parts are 0 to {PARTS - 1}"
        )
    draws = random.Random(f"{family}:{level}:{seed}:{index}:{part}")
    while True:  # one draw in PARTS is of the part
        prompt, steps, answer = _MAKERS[family](draws, level)
        if part_of(prompt) == part:
            return SyntheticProblem(family, level, f"{prompt}\n", tuple(steps), answer)


def part_of(prompt: str) -> int:
    """The part of the space that a problem belongs to, by its text without the line end."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) % PARTS


def read_problems(source: ProblemsSource) -> Iterator[Example]:
    """`source.count` problems, levels in turn; the topic is the level."""
    for index in range(source.count):
        level = source.levels[index % len(source.levels)]
        found = make_problem(source.family, level, seed=source.seed, index=index, part=source.part)
        yield Example(
            prompt=found.prompt,
            completion=found.worked if source.completion == "worked" else found.answer,
            reference=found.answer,
            topic=f"level {level}",
            source=f"{source.family} problem {index}",
        )


def _chain(draws: random.Random, level: int) -> tuple[str, list[str], str]:
    value = draws.randrange(MODULUS)
    text, steps = str(value), []
    for _ in range(level):
        sign = draws.choice("+-*")
        operand = draws.randrange(2 if sign == "*" else 1, MODULUS)
        result = {"+": value + operand, "-": value - operand, "*": value * operand}[sign] % MODULUS
        text += f"{sign}{operand}"
        steps.append(f"{value}{sign}{operand}={result}")
        value = result
    return f"{text} mod {MODULUS}", steps, str(value)


def _sum(draws: random.Random, level: int) -> tuple[str, list[str], str]:
    low = 10 ** (level - 1) if level > 1 else 0
    first, second = (draws.randrange(low, 10**level) for _ in range(2))
    steps, carry = [], 0
    for place in range(level):
        a, b = (number // 10**place % 10 for number in (first, second))
        total = a + b + carry
        steps.append(f"{a}+{b}+1={total}" if carry else f"{a}+{b}={total}")
        carry = total // 10
    return f"{first}+{second}", steps, str(first + second)


def _story(draws: random.Random, level: int) -> tuple[str, list[str], str]:
    (name, friend), things = draws.sample(NAMES, 2), draws.choice(THINGS)
    value = draws.randrange(2, 60)
    told, steps = [f"{name} has {value} {things}."], []
    for _ in range(level):
        sentence, step, result = _event(draws, name, friend, value)
        told.append(sentence)
        steps.append(f"{value}{step}={result}")
        value = result
    return f"{' '.join(told)} How many {things} does {name} have now?", steps, str(value)


def _event(draws: random.Random, name: str, friend: str, value: int) -> tuple[str, str, int]:
    """Something that happens to `value` things: the sentence, the operation, what is left."""
    few, more = draws.randrange(2, 6), draws.randrange(2, 20)
    possible = [(f"{friend} gives {name} {more} more.", f"+{more}", value + more)]
    if value > more:
        possible.append((f"{name} gives {more} to {friend}.", f"-{more}", value - more))
    if value * few <= MOST:
        possible.append((f"A year later {name} has {few} times as many.", f"*{few}", value * few))
    if value % few == 0 and value > few:
        share = f"{name} shares them equally among {few} people and keeps one share."
        possible.append((share, f"/{few}", value // few))
    return draws.choice(possible)


_MAKERS = {"chain": _chain, "sum": _sum, "story": _story}
