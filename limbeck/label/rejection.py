"""Rejection sampling: a prompt is asked until it has so many right replies, and no further."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from limbeck.curate.verifiers import Checker
from limbeck.recipe import GenerateMode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from limbeck.curate.verdicts import Verdict
    from limbeck.recipe import Recipe
    from limbeck.types import Row


@dataclass
class RejectionSampler:
    """Rejection sampling (`trace.mode.rejection`). Each reply is judged once, whenever it comes.

    Whether to go on is decided by a count, at the cost of the newest reply alone. What is kept of a row in the end
    depends on its replies in the order of their draws, so that it does not matter when they came.
    """

    checker: Checker
    right: int
    _known: dict[str, dict[bytes, Verdict]] = field(default_factory=lambda: defaultdict(dict))  # by row and reply
    _right: Counter[str] = field(default_factory=Counter)  # replies by row

    def add(self, row: Row, reply: str) -> bool:
        """Count one more reply to a row; whether the row has enough right ones now, or never will: no reply is right
        by a reference that cannot be read. Raises what verification raises."""
        verdict = self._verdict(row, reply)
        self._right[row.id] += verdict.ok is True
        return verdict.blames_reference or self._right[row.id] >= self.right

    def needed(self, row: Row, replies: Iterable[str | None]) -> int | None:
        """How many of the replies (None: there is none for this draw), from the first on, hold as many right ones as
        are wanted; None when all together do not. Raises what verification raises."""
        right = 0
        for number, reply in enumerate(replies, 1):
            right += reply is not None and self._verdict(row, reply).ok is True
            if right >= self.right:
                return number
        return None

    def forget(self, row: Row) -> None:
        self._known.pop(row.id, None)
        self._right.pop(row.id, None)

    def _verdict(self, row: Row, reply: str) -> Verdict:
        known = self._known[row.id]
        digest = hashlib.sha256(reply.encode(errors="surrogatepass")).digest()
        if digest not in known:
            known[digest] = self.checker.verdict(reply, row.reference)
        return known[digest]


@contextlib.contextmanager
def rejection_sampler(recipe: Recipe) -> Iterator[RejectionSampler | None]:
    """None where every prompt gets `trace.mode.n` replies."""
    mode = recipe.trace.mode
    if not isinstance(mode, GenerateMode) or mode.rejection is None:
        yield None
        return
    with contextlib.closing(Checker(mode.rejection.verifier)) as checker:
        yield RejectionSampler(checker, mode.rejection.num_correct)
