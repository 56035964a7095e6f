"""A meter: how much of a piece of work is done, how fast it goes here, and how long the rest will take."""

from __future__ import annotations

import time
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

from limbeck.types import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from limbeck.types import OnProgress


@dataclass
class Meter:
    """Reports progress of a stage in planned units. `done` are units that were there before: they count as done, but
    not into the rate. `every` are the least seconds between two reports; the last report is always sent.

    Plan and work differ where a plan is an upper bound: a reply is planned as long as it may become, and mostly ends
    earlier. So the rate is of what was processed, and the time left of what was planned: both are true.
    """

    stage: str
    unit: str
    total: float
    on_progress: OnProgress
    _: KW_ONLY
    done: float = 0.0
    every: float = 0.0
    clock: Callable[[], float] = time.monotonic
    planned: float = field(default=0.0, init=False)  # units of the plan that are done by this process
    processed: float = field(default=0.0, init=False)  # units that they really took

    def __post_init__(self) -> None:
        self._begun, self._reported = self.clock(), float("-inf")

    def add(self, planned: float, processed: float | None = None, values: Mapping[str, float] | None = None) -> None:
        """Count `planned` units of the total as done, which took `processed` units (None: as many), and report."""
        self.done += planned
        self.planned += planned
        self.processed += planned if processed is None else processed
        now = self.clock()
        if now - self._reported >= self.every or self.done >= self.total:
            self._reported = now
            self.on_progress(self._progress(now, dict(values or {})))

    def _progress(self, now: float, values: dict[str, float]) -> Progress:
        seconds = max(now - self._begun, 1e-9)
        eta = max(self.total - self.done, 0.0) * seconds / self.planned if self.planned else 0.0
        return Progress(self.stage, self.done, self.total, self.unit, self.processed / seconds, eta, values)
