"""Stages of a run: measured, recorded, skipped when current; under torchrun one rank works, the others wait."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.system.cost import disk_bytes, measure
from limbeck.system.ranks import first_rank
from limbeck.system.rundir import RunDir, StageRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from limbeck.types import OnProgress

logger = logging.getLogger(__name__)

NAMES = ("data", "label", "curate", "student", "train", "twin", "evaluate", "export", "report")


@dataclass(frozen=True)
class Stages:
    """What every stage of one run shares."""

    run: RunDir
    on_progress: OnProgress
    on_message: Callable[[str], None]
    stop_asked: Callable[[], bool]

    @property
    def is_first(self) -> bool:
        return first_rank()

    def do(
        self, name: str, fingerprint: str, work: Callable[[], object], *outputs: Path, collective: bool = False
    ) -> None:
        """Run one stage unless it is current. `outputs` are what it leaves on disk. A `collective` stage is worked on
        by every rank; of any other one, ranks beyond the first only await the end."""
        if self.run.is_current(name, fingerprint) and all(output.exists() for output in outputs):
            self.on_message(f"{name}: nothing changed, skipped")
            return
        if not self.is_first and not collective:
            self._await(name, fingerprint)
            return
        logger.info("stage %s begins", name)
        with measure() as cost:
            work()
        logger.info("stage %s took %.1f s", name, cost.seconds)
        if self.is_first:
            self.run.finish(StageRecord(name, fingerprint, cost.seconds, cost.peak_bytes, disk_bytes(*outputs)))
        elif collective:
            self._await(name, fingerprint)

    def _await(self, name: str, fingerprint: str) -> None:
        while not self.run.is_current(name, fingerprint):
            time.sleep(0.2)
