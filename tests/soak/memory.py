"""Too little memory, from the start on or from a random moment on."""

from __future__ import annotations

import signal
from functools import partial
from random import Random

from limbeck.errors import BudgetError
from tests.soak import inject
from tests.soak.kills import moment
from tests.soak.kinds import Kind, Outcome, bad
from tests.soak.workspace import Workspace

DIED = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)
"""A library that does not look whether it was given memory. Nothing that is written in Python can tell it."""


def memory(workspace: Workspace, rng: Random) -> Outcome:
    stage, more = workspace.somewhere(rng), int(2 ** rng.uniform(21, 29))
    delay = rng.choice([0.0, moment(workspace, stage, rng)])
    what = f"{more >> 20} MiB more after {delay:.2f} s, from {stage} on"
    ended = workspace.limbeck(faults=[partial(inject.little_memory, more, delay)], patience=90.0)
    if ended.wrong:
        return bad(what, ended.wrong)
    if ended.code not in (0, BudgetError.exit_code, *DIED):
        return bad(what, f"exit code {ended.code}: {ended.tail}")
    problem = workspace.again()
    return bad(what, problem) if problem else Outcome("healed" if ended.code else "survived", what)


KINDS = (Kind("memory", "a limit on addresses, 2 to 512 MiB above what is taken, at a random moment", memory),)
