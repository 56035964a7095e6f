"""One writer for training metrics: a JSON line per step, and TensorBoard events where asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from limbeck.errors import MissingExtra
from limbeck.system.atomic import atomic_write, raise_if_full

if TYPE_CHECKING:
    from pathlib import Path

    from limbeck.train.checkpoint import FitState


class MetricsWriter:
    """Appends to OUT/metrics.jsonl. A resumed run first drops the lines of steps that its checkpoint does not hold."""

    def __init__(self, out: Path, step: int, *, tensorboard: bool, write: bool) -> None:
        self._file, self._board = None, None
        if not write:
            return
        path = out / "metrics.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        atomic_write(path, "".join(line + "\n" for line in kept))
        self._path = path
        self._file = path.open("a")
        if tensorboard:
            self._board = _board(out / "tensorboard", step)

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
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise_if_full(error, self._path)
            raise
        if self._board is not None:
            for name, value in (*values.items(), ("tokens_per_second", rate)):
                self._board.add_scalar(f"train/{name}", value, state.step)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _lines(path: Path) -> list[str]:
    """Whole lines only: a kill can leave half of the last one."""
    if not path.exists():
        return []
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard", "tensorboard", "train.tensorboard: true") from error
    return SummaryWriter(str(folder), purge_step=step + 1)
