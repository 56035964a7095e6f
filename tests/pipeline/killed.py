"""A run in a process of its own that kills itself with SIGKILL at a chosen moment."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

from limbeck.pipeline import run as job
from limbeck.recipe import Recipe
from limbeck.train import stage

CONTEXT = multiprocessing.get_context("forkserver")  # torch's thread pools do not survive a plain fork
CONTEXT.set_forkserver_preload(["tests.pipeline.killed"])


def run_until_killed(
    recipe: Recipe, run: Path, *, at: str = "", count: int = 1, delay: float = 0.0, until: str = "train"
) -> int:
    """Run up to the stage `until`. Killed `delay` seconds after the `count`-th event of a kind: "start", "fsync",
    "label", "train" or "export" (progress of that stage), "artifact" (its writing begins).

    Returns the exit code: 0 when it finished, minus the signal that ended it.
    """
    process = CONTEXT.Process(target=_work, args=(recipe, run, at, count, delay, until))
    process.start()
    process.join(100)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def _work(recipe: Recipe, run: Path, at: str, count: int, delay: float, until: str) -> None:
    seen: dict[str, int] = {}

    def event(kind: str) -> None:
        seen[kind] = seen.get(kind, 0) + 1
        if kind == at and seen[kind] == count:
            if not delay:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    fsync, save = os.fsync, stage.save_artifact
    os.fsync = lambda fd: (event("fsync"), fsync(fd))[1]
    stage.save_artifact = lambda *args, **kwargs: (event("artifact"), save(*args, **kwargs))[1]
    event("start")
    job.run_recipe(recipe, run, until=until, estimate=False, on_progress=lambda p: event(p.stage))
    os._exit(0)
