"""Progress of a job: bars on a terminal, else a plain line now and then."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from limbeck.system.units import duration
from limbeck.text.visible import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import TaskID

    from limbeck.types import Progress

LINE_SECONDS = 10.0
SHOWN = ("loss", "kl", "ce")


@dataclass
class ProgressLines:
    """Plain lines through `write`: at most one every LINE_SECONDS per stage, the first and the last always."""

    write: Callable[[str], None]
    last: dict[str, float] = field(default_factory=dict)

    def on_progress(self, progress: Progress) -> None:
        now, finished = time.monotonic(), progress.done >= progress.total
        last = self.last.get(progress.stage, float("-inf"))
        if now - last >= LINE_SECONDS or (finished and last != float("inf")):
            self.last[progress.stage] = float("inf") if finished else now
            share = progress.done / progress.total if progress.total else 1.0
            self.write(f"{progress.stage:<9}{share:4.0%} of {progress.total:,.0f} {progress.unit}  {speed(progress)}")


@dataclass
class ProgressBars:
    """One bar per stage, below the messages."""

    bars: RichProgress
    tasks: dict[str, TaskID] = field(default_factory=dict)

    def on_progress(self, progress: Progress) -> None:
        if progress.stage not in self.tasks:
            self.tasks[progress.stage] = self.bars.add_task(progress.stage, total=progress.total, speed="")
        task = self.tasks[progress.stage]
        self.bars.update(task, completed=progress.done, total=progress.total, speed=speed(progress))

    def on_message(self, text: str) -> None:
        self.bars.console.print(Text(visible(text, keep="\n")))


@contextlib.contextmanager
def bars(console: Console) -> Iterator[ProgressBars]:
    """Bars on `console` while the context lasts."""
    columns = (TextColumn("{task.description:<9}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with RichProgress(*columns, TextColumn("{task.fields[speed]}", markup=False), console=console) as progress:
        yield ProgressBars(progress)


def speed(progress: Progress) -> str:
    """ "812 tokens/s  loss 1.25  3 min 05 s left"."""
    values = [f"{key} {progress.values[key]:.4g}" for key in SHOWN if key in progress.values]
    left = [f"{duration(progress.eta)} left"] if progress.eta > 0 and progress.done < progress.total else []
    tokens = progress.values.get("tokens_per_second", progress.rate if progress.unit == "tokens" else None)
    digits = ".2f" if progress.rate < 10 else ",.0f"
    rate = f"{progress.rate:{digits}} {progress.unit}/s" if tokens is None else f"{tokens:,.0f} tokens/s"
    return "  ".join([rate, *values, *left])
