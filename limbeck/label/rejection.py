"""Rejection sampling: a prompt is asked until it has so many right replies, and no further."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from limbeck.curate.verifiers import Checker
from limbeck.recipe import GenerateMode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from limbeck.recipe import Recipe
    from limbeck.types import Row


@dataclass
class RejectionSampler:
    """Rejection sampling (`trace.mode.rejection`). Each reply is judged once. What is needed of a row depends on its
    replies in the order of their draws alone, so that it does not matter when they came."""

    checker: Checker
    right: int
    _known: dict[tuple[str, bytes], bool] = field(default_factory=dict)

    def needed(self, row: Row, replies: Iterable[str | None]) -> int | None:
        """How many of the replies (None: there is none for this draw), from the first on, hold as many right ones as
        are wanted; None when all together do not. Raises what verification raises."""
        right = 0
        for number, reply in enumerate(replies, 1):
            right += reply is not None and self._is_right(row, reply)
            if right >= self.right:
                return number
        return None

    def _is_right(self, row: Row, reply: str) -> bool:
        key = (row.id, hashlib.sha256(reply.encode(errors="surrogatepass")).digest())
        if key not in self._known:
            self._known[key] = self.checker.verdict(reply, row.reference).ok is True
        return self._known[key]


@contextlib.contextmanager
def enough_right(recipe: Recipe) -> Iterator[RejectionSampler | None]:
    """None where every prompt gets `trace.mode.n` replies."""
    mode = recipe.trace.mode
    if not isinstance(mode, GenerateMode) or mode.rejection is None:
        yield None
        return
    with contextlib.closing(Checker(mode.rejection.verifier)) as checker:
        yield RejectionSampler(checker, mode.rejection.num_correct)
