"""One measured statement: its figure and its bound."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    pass


class CannotRun(Exception):
    """A statement has nothing to measure on this pair; the message says why."""


class Measure(NamedTuple):
    """What was measured, its value, and the range that it has to be in. NaN is outside."""

    what: str
    value: float
    high: float = math.inf
    low: float = -math.inf

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high


def worst(what: str, errors: dict[str, float], high: float) -> Measure:
    """The largest of several errors, by name; one that is not a number counts as the largest."""
    name = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    return Measure(f"{what} ({name})" if len(errors) > 1 else what, errors[name], high)
