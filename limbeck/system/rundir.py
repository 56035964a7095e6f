"""The run folder: one process at a time, stages that are skipped when nothing they depend on changed, atomic writes.

RUN/recipe.yaml            the resolved recipe of the last run
RUN/.lock                  held (flock) by the running process: pid and host
RUN/stages/NAME.json       written last by a finished stage: fingerprint, seconds, peak memory, disk
RUN/data/                  encoded rows
RUN/traces/                the trace store
RUN/student/               the student before training
RUN/train/{student,twin}/  checkpoints, metrics.jsonl, artifact
RUN/evaluate/              per-row scores
RUN/export/KIND-QUANT/     the student in other formats
RUN/summary.json RUN/report.html
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import RunDirError
from limbeck.system.atomic import fsync_dir, sweep_tree
from limbeck.system.lock import holder_of, try_lock
from limbeck.system.sealed import read_json_or, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

ROOMS = ("stages", "data", "traces*", "curate", "student", "train", "evaluate*", "export")
"""What a run writes into, besides the folder itself."""


@dataclass(frozen=True)
class StageRecord:
    """What a finished stage leaves behind: `fingerprint` of what it depends on, what it cost, `identity` of its
    outputs, as they say themselves, and a digest by name of the `inputs` that the recipe names. Records of earlier
    versions have neither: "" and None."""

    name: str
    fingerprint: str
    seconds: float
    peak_bytes: int
    disk_bytes: int
    identity: str = ""
    inputs: dict[str, str] | None = None


@dataclass(frozen=True)
class RunDir:
    """A run folder, opened with `RunDir.open`, which locks it for the life of the context."""

    path: Path

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[RunDir]:
        """Create and lock the folder. Raises RunDirError when another process holds it or it cannot be written."""
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = try_lock(path / ".lock")
        except OSError as error:
            raise RunDirError(
                f"the run folder {path} cannot be written: {error.strerror}. Choose another with --run-dir."
            ) from error
        if lock is None:
            raise RunDirError(
                f"the run folder {path} is in use by {holder_of(path / '.lock')}. Wait for it, stop it, or choose "
                "another with --run-dir."
            )
        try:
            lock.sign()
            sweep_tree(path, ROOMS)
            yield cls(path)
        finally:
            lock.release()

    def record_file(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def record(self, stage: str) -> StageRecord | None:
        """None where there is none that can be believed: the stage counts as not done."""
        path = self.record_file(stage)
        facts = read_json_or(path, dict[str, Any]())
        try:
            return StageRecord(**facts) if facts else None
        except TypeError as error:
            logger.info("%s cannot be read (%s): the stage counts as not done", path, error)
            return None

    def is_current(self, stage: str, fingerprint: str) -> bool:
        """True when the stage finished with exactly these inputs."""
        record = self.record(stage)
        return record is not None and record.fingerprint == fingerprint

    def finish(self, record: StageRecord) -> None:
        write_json(self.record_file(record.name), asdict(record))

    def forget(self, stage: str) -> None:
        """Make a finished stage unfinished, durably, and with it the run: before any of its outputs is touched."""
        self.unfinish()
        _remove(self.record_file(stage))

    def unfinish(self) -> None:
        """Take the summary away: it is not true of what comes now."""
        _remove(self.path / "summary.json")


def _remove(file: Path) -> None:
    if file.exists():
        file.unlink()
        fsync_dir(file.parent)
