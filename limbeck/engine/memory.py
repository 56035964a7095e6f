"""The memory of an engine: what holds keys and values, and what a token takes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from limbeck.engine.scheduler import PROBE
from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.types import LocalLM

Logits = Callable[[slice], Iterator[tuple[slice, Tensor]]]
"""Some of the rows that were asked for, in blocks: (where among those, logits_nV in fp32), reused for the next one."""


class SlotTokens(NamedTuple):
    """Tokens that follow the first `start` of the sequence in `slot`."""

    slot: int
    start: int
    ids: list[int]


class Memory(Protocol):
    """A model and the sequences that it is reading, each in its slot: up to `most` tokens, `most_bytes` all together.
    Used by one thread."""

    @property
    def copies(self) -> bool:
        """Whether what stands in one slot can be had in another."""
        ...

    @property
    def most(self) -> int: ...

    @property
    def most_bytes(self) -> int: ...

    @property
    def bytes(self) -> int:
        """What it takes now: a number that other threads may read."""
        ...

    def keep(self, source: int, slot: int, tokens: int) -> int:
        """A new sequence for the slot, which begins with the first tokens of `source`: how many of them it has."""
        ...

    def read(self, parts: Sequence[SlotTokens], num_single: int, rows: list[int]) -> Logits:
        """Read all parts, of which the first `num_single` have one token, and make logits behind those tokens of theirs
        that `rows` counts, in that order. They can be had until the next call."""
        ...

    def close(self) -> None: ...


def token_bytes_of(lm: LocalLM) -> int:
    """Bytes of keys and values that a token takes, measured on a few; 1 at least (where there is a state instead).

    Raises TeacherError for models without sessions."""
    with contextlib.closing(lm.session()) as session:
        session.feed(np.arange(min(PROBE, lm.vocab), dtype=np.int32))
        return max(session.token_bytes, 1)


def context_within(name: str, asked: int | None, own: int, fits: int) -> int:
    """Tokens of the longest sequence: as asked, or what the model can (`own`) and memory has room for (`fits`).

    Raises TeacherError where what is asked is more than is possible.
    """
    most = min(own, fits)
    if most < 2 or (asked is not None and not 2 <= asked <= most):
        what = "the context" if asked is None else f"a context of {asked:,} tokens"
        raise TeacherError(
            f"{what} is not possible for {name}: here it can have 2 to {own:,} tokens, and memory for keys and values "
            f"has room for {fits:,} in each slot. Ask for a shorter context, fewer slots, or more memory."
        )
    return asked or most
