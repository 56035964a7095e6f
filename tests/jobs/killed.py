"""A run in a process of its own that kills itself with SIGKILL at a chosen moment."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

from limbeck.jobs.run import run_recipe
from limbeck.recipe import Recipe

CONTEXT = multiprocessing.get_context("forkserver")  # torch's thread pools do not survive a plain fork
CONTEXT.set_forkserver_preload(["tests.jobs.killed"])


def run_until_killed(recipe: Recipe, run: Path, *, fsync: int = 0, step: int = 0, seconds: float = 0.0) -> int:
    """Run up to the trained student; killed at the n-th fsync, the n-th training step, or after some seconds.

    Returns the exit code: 0 when it finished, minus the signal that ended it.
    """
    process = CONTEXT.Process(target=_work, args=(recipe, run, fsync, step, seconds))
    process.start()
    process.join(100)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def _work(recipe: Recipe, run: Path, fsync: int, step: int, seconds: float) -> None:
    counts = {"fsync": 0, "train": 0}

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def count(name: str, limit: int) -> None:
        counts[name] += 1
        if counts[name] == limit:
            die()

    real = os.fsync
    os.fsync = lambda fd: (count("fsync", fsync), real(fd))[1]
    if seconds:
        threading.Timer(seconds, die).start()
    watch = lambda p: count("train", step) if p.stage == "train" else None  # noqa: E731
    run_recipe(recipe, run, until="train", estimate=False, on_progress=watch)
    os._exit(0)
