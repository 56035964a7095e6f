"""SIGKILL at any moment of any stage, and the polite signals."""

from __future__ import annotations

import signal
from functools import partial
from random import Random

from limbeck.errors import Stopped
from tests.soak.inject import kill_after, kill_at, signal_after
from tests.soak.kinds import Kind, Outcome, bad
from tests.soak.workspace import Workspace

START_SECONDS = 0.5  # from the fork to the first stage
POLITE_SECONDS = 15.0  # with other processes on the machine's cores
INTERRUPTED = 130


def moment(workspace: Workspace, stage: str, rng: Random) -> float:
    """Seconds after the start, in or shortly after a stage, or before all of them."""
    return rng.uniform(0.05, START_SECONDS + 1.5 * workspace.base.seconds[stage])


def kill(workspace: Workspace, rng: Random) -> Outcome:
    stage, killed = workspace.somewhere(rng), 0
    for _ in range(rng.randint(1, 3)):
        at = partial(kill_at, str(workspace.run), rng.randint(1, 60))
        after = partial(kill_after, moment(workspace, stage, rng))
        ended = workspace.limbeck(faults=[rng.choice([at, after])])
        if ended.wrong or ended.code not in (0, -signal.SIGKILL):
            return bad(f"killed from {stage} on", ended.wrong or f"exit code {ended.code}: {ended.tail}")
        killed += ended.code != 0
    problem = workspace.again()
    if problem:
        return bad(f"killed {killed} times from {stage} on", problem)
    return Outcome("healed" if killed else "survived", f"killed {killed} times from {stage} on")


def stop(workspace: Workspace, rng: Random) -> Outcome:
    """A stop that is asked for is heard within seconds, in every stage, and costs nothing."""
    number = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    stage = workspace.somewhere(rng)
    delay = moment(workspace, stage, rng)
    ended = workspace.limbeck(faults=[partial(signal_after, delay, number)])
    what = f"{number.name} {delay:.2f} s after the start, from {stage} on"
    if ended.wrong:
        return bad(what, ended.wrong)
    if ended.code is not None and ended.code != 0 and ended.seconds - delay > POLITE_SECONDS:
        return bad(what, f"heard only after {ended.seconds - delay:.1f} s. {ended.tail}")
    if ended.code not in (0, Stopped.exit_code, INTERRUPTED):
        begun = ended.said and workspace.differs() is not None
        if ended.code != -number or begun:  # nothing had begun, or all was done
            return bad(what, f"exit code {ended.code}: {ended.tail}")
    problem = workspace.again()
    return bad(what, problem) if problem else Outcome("healed" if ended.code else "survived", what)


KINDS = (
    Kind("kill", "SIGKILL at a random moment, or at a random file operation, of any stage; up to three times", kill),
    Kind("stop", "SIGTERM, SIGINT or SIGHUP at a random moment of any stage", stop),
)
