"""Where training metrics also go: TensorBoard events, trackio, Weights & Biases.

A tracker is watched, never relied on: one that fails is named once in the log and dropped, and training goes on.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from limbeck.errors import MissingExtra
from limbeck.system.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)
PROJECT = "limbeck"


class TrackedJob(NamedTuple):
    """What a tracker is started with. `step` is the one that training resumes at; `id` is the same whenever the job is
    resumed, and another one when it begins anew."""

    name: str
    out: Path
    step: int
    id: str
    config: Mapping[str, Any]


class Tracker(Protocol):
    """An open one."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self) -> None: ...


class TensorBoardTracker:
    """Event files in OUT/tensorboard; those of steps that a resumed job takes again are purged."""

    def __init__(self, job: TrackedJob) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(job.out / "tensorboard"), purge_step=job.step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class TrackioTracker:
    """A local dashboard (`trackio show --project limbeck`), or a Space where TRACKIO_SPACE_ID names one."""

    def __init__(self, job: TrackedJob) -> None:
        import trackio  # type: ignore[import-not-found]

        name = f"{job.name}-{job.id[:6]}"  # by which a run is found again
        self._run = trackio.init(project=PROJECT, name=name, config=dict(job.config), resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()


class WandbTracker:
    """Weights & Biases. Where and whether it sends is said by its own environment variables (WANDB_MODE=offline)."""

    def __init__(self, job: TrackedJob) -> None:
        import wandb  # type: ignore[import-not-found]

        self._run = wandb.init(
            project=PROJECT, name=job.name, id=job.id, dir=str(job.out), config=dict(job.config), resume="allow"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[TrackedJob], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "trackio": TrackioTracker,
    "wandb": WandbTracker,
}


def job_id(out: Path, step: int) -> str:
    """From OUT/tracker-id; a job that begins at step 0 gets a new one."""
    file = out / "tracker-id"
    if step == 0 or not file.exists():
        atomic_write(file, uuid.uuid4().hex)
    return file.read_text()


class Trackers:
    """All trackers of a job. Raises MissingExtra for one whose package is not installed; nothing else."""

    def __init__(self, names: Sequence[str], job: TrackedJob) -> None:
        self._open: dict[str, Tracker] = {}
        for name in names:
            with self._dropped_when_it_fails(name):
                try:
                    self._open[name] = TRACKERS[name](job)
                except ImportError as error:
                    raise MissingExtra(name, name, f"the tracker {name!r} of train.trackers") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, tracker in list(self._open.items()):
            with self._dropped_when_it_fails(name):
                tracker.log(step, {f"train/{key}": value for key, value in values.items()})

    def finish(self) -> None:
        for name, tracker in list(self._open.items()):
            with self._dropped_when_it_fails(name):
                tracker.finish()

    @contextlib.contextmanager
    def _dropped_when_it_fails(self, name: str) -> Any:
        """Libraries that talk to services raise whatever they like. What they print is no result of ours."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except MissingExtra:
            raise
        except Exception as error:
            self._open.pop(name, None)
            logger.warning("tracker %s is dropped, training goes on: %s: %s", name, type(error).__name__, error)
