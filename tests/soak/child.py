"""Commands in processes of their own, forked from one that has the libraries loaded: a start takes milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

# What a command would load by itself, loaded here once.
import limbeck.evaluate.stage
import limbeck.pipeline.run
import limbeck.report.page
from limbeck.cli import main
from tests.soak.inject import Fault

CONTEXT = multiprocessing.get_context("forkserver")  # torch's thread pools do not survive a plain fork
CONTEXT.set_forkserver_preload(["tests.soak.child", "tests.pipeline.killed"])

PATIENCE = 240.0


@dataclass(frozen=True)
class Ended:
    """`code` is the exit code, minus the signal that ended the process, or None where it had to be killed for taking
    longer than it was given. `said` is all that it wrote."""

    code: int | None
    said: str
    seconds: float

    @property
    def wrong(self) -> str:
        """What no command may ever do; empty where it did not."""
        if self.code is None:
            return f"it did not end in {self.seconds:.0f} s. {self.tail}"
        if "Traceback (most recent call last)" in self.said:
            return f"a traceback. {self.tail}"
        return ""

    @property
    def tail(self) -> str:
        return self.said[-600:]


@dataclass(frozen=True)
class Child:
    """A command under way."""

    process: BaseProcess
    log: Path
    begun: float

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        if self.process.is_alive():
            os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE) -> Ended:
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        return Ended(code, said, time.monotonic() - self.begun)


def start(words: Sequence[str], log: Path, faults: Sequence[Fault] = ()) -> Child:
    """`limbeck WORDS`, with faults done to it before it begins; what it says goes to the file `log`."""
    process = CONTEXT.Process(target=partial(_work, list(words), str(log), list(faults)))
    process.start()
    return Child(process, log, time.monotonic())


def _work(words: list[str], log: str, faults: list[Fault]) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Seconds of measuring, of which nothing depends.
    limbeck.pipeline.run.estimate_costs = lambda _: None
    limbeck.evaluate.stage.SPEED_SECONDS = 0.01
    sys.argv = ["limbeck", *words]
    ends = [fault() for fault in faults]
    try:
        main()
    finally:
        for end in ends:
            if callable(end):
                end()


def each_line(log: Path, child: Child) -> Iterator[str]:
    """Lines of the log as they come, until the command ends."""
    with log.open() as file:
        while child.process.is_alive():
            line = file.readline()
            if line:
                yield line
            else:
                time.sleep(0.005)
