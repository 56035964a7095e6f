"""One writer for training metrics: a JSON line per step, and trackers where asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.system.atomic import atomic_write
from limbeck.system.jsonl import LineFile
from limbeck.system.refusals import disk_errors
from limbeck.system.sealed import line_value, sealed_line, sealed_lines
from limbeck.train.trackers import TrackedJob, Trackers, job_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from limbeck.recipe import Train
    from limbeck.train.checkpoint import FitState


class MetricsWriter:
    """Appends to OUT/metrics.jsonl. A resumed run first drops the lines of steps that its checkpoint does not hold."""

    def __init__(self, out: Path, step: int, settings: Train, *, write: bool) -> None:
        self._file, self._trackers = None, None
        if not write:
            return
        path = out / "metrics.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(path, b"".join(_lines_until(step, path)))
        if settings.all_trackers:
            name = f"{out.parent.parent.name}-{out.name}"  # RUN/train/student
            job = TrackedJob(name, out, step, job_id(out, step), settings.model_dump(mode="json"))
            self._trackers = Trackers(settings.all_trackers, job)
        self._file = LineFile.open(path)

    def write(self, state: FitState, values: dict[str, float], *, rate: float) -> None:
        if self._file is None:
            return
        line = {
            "step": state.step,
            "tokens": state.tokens,
            "positions": state.positions,
            "seconds": round(state.seconds, 3),
            **values,
            "tokens_per_second": round(rate, 1),
        }
        with disk_errors(self._file.path):
            self._file.append(sealed_line(line))
        if self._trackers is not None:
            self._trackers.log(state.step, {**values, "tokens_per_second": rate})

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._trackers is not None:
            self._trackers.finish()


def _lines_until(step: int, path: Path) -> Iterator[bytes]:
    """As they are: a line that is damaged stays, and whoever reads it says so."""
    for line in sealed_lines(path) if path.exists() else ():
        value = line_value(line)
        number = value.get("step") if isinstance(value, dict) else None
        if isinstance(number, int) and number > step:
            return
        yield line.rstrip(b"\n") + b"\n"
