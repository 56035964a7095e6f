"""What a kind of fault is, and how a round of it can end. The list of all kinds is in `soak.py`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from tests.soak.workspace import Workspace

Verdict = Literal["survived", "healed", "found", "BAD"]
VERDICTS: tuple[Verdict, ...] = ("survived", "healed", "found", "BAD")


class Outcome(NamedTuple):
    """How a round ended; `note` says what was done, and what came of it.

    survived: the command did what an undisturbed one does. healed: it ended, or told what is wrong, and the same
    command again led to the same files. found: it was refused with a sentence and the documented exit code, and the
    sentence says what to do. BAD: anything else (a traceback, another file, a loss, a hang).
    """

    verdict: Verdict
    note: str = ""


class Kind(NamedTuple):
    """`fault` does one round: it breaks something, runs what should get over it, and judges. All of its choices are of
    the generator that it is given: the same seed is the same round."""

    name: str
    says: str
    fault: Callable[[Workspace, Random], Outcome]


def bad(*notes: str) -> Outcome:
    return Outcome("BAD", ": ".join(note for note in notes if note))
