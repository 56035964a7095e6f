"""Disks that are full, damaged, read-only, or that cannot do what a local disk can; logs that nobody reads."""

from __future__ import annotations

import errno
from functools import partial
from random import Random

from limbeck.errors import BudgetError, RunDirError
from tests.soak import inject
from tests.soak.kinds import Kind, Outcome, bad
from tests.soak.workspace import Workspace

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EIO, errno.EROFS, errno.EACCES)


def told(workspace: Workspace, what: str, codes: tuple[int, ...], *faults: inject.Fault) -> Outcome:
    """The run ends well, or with one of the codes and a sentence; the same command again leads to the same files."""
    ended = workspace.limbeck(faults=faults)
    if ended.wrong:
        return bad(what, ended.wrong)
    if ended.code not in (0, *codes) or (ended.code and "error: " not in ended.said):
        return bad(what, f"exit code {ended.code}: {ended.tail}")
    inject.take_back(workspace.run)
    problem = workspace.again()
    return bad(what, problem) if problem else Outcome("healed" if ended.code else "survived", what)


def full_disk(workspace: Workspace, rng: Random) -> Outcome:
    """A disk of its own for the run folder, which becomes full."""
    stage, room = workspace.somewhere(rng), int(2 ** rng.uniform(12, 21))
    what = f"{room} bytes free from {stage} on"
    return told(workspace, what, (BudgetError.exit_code,), partial(inject.small_disk, str(workspace.run), room))


def small_files(workspace: Workspace, rng: Random) -> Outcome:
    """A limit on the size of files, which every library meets in its own way."""
    stage, size = workspace.somewhere(rng), int(2 ** rng.uniform(8, 19))
    what = f"files of at most {size} bytes from {stage} on"
    return told(workspace, what, (BudgetError.exit_code,), partial(inject.small_files, size))


def refusing(workspace: Workspace, rng: Random) -> Outcome:
    """The n-th change of a file is refused, and with it all that follow, or not."""
    code, number, once = rng.choice([*FULL, *REFUSED]), rng.randint(1, 60), rng.random() < 0.5
    stage = workspace.somewhere(rng)
    what = f"{errno.errorcode[code]} at change {number}{' only' if once else ' and after'}, from {stage} on"
    allowed = (BudgetError.exit_code,) if code in FULL else (RunDirError.exit_code,)
    fault = partial(inject.refuse_from, str(workspace.run), number, code, once=once)
    return told(workspace, what, allowed, fault)


def read_only(workspace: Workspace, rng: Random) -> Outcome:
    stage = workspace.somewhere(rng)
    fault = partial(inject.small_disk, str(workspace.run), 2**20, read_only=True)
    return told(workspace, f"a read-only disk from {stage} on", (RunDirError.exit_code,), fault)


def no_locks(workspace: Workspace, rng: Random) -> Outcome:
    """Without locks two processes could write at once: it is refused, and not as "in use"."""
    stage = workspace.somewhere(rng)
    ended = workspace.limbeck(faults=[inject.no_locks])
    right = ended.code == RunDirError.exit_code and "cannot be locked" in ended.said and "in use" not in ended.said
    if ended.wrong or not right:
        return bad(f"no flock, before {stage}", ended.wrong or f"exit code {ended.code}: {ended.tail}")
    problem = workspace.again()
    return bad("after it", problem) if problem else Outcome("found", f"no flock, before {stage}")


def no_folder_fsync(workspace: Workspace, rng: Random) -> Outcome:
    """A file system that cannot bring a folder to the disk (some network and FUSE ones) is worked on all the same."""
    stage, code = workspace.somewhere(rng), rng.choice([errno.EINVAL, errno.ENOTSUP])
    what = f"folders cannot be fsynced ({errno.errorcode[code]}) from {stage} on"
    return told(workspace, what, (), partial(inject.folders_without_fsync, code))


def few_files(workspace: Workspace, rng: Random) -> Outcome:
    stage, more = workspace.somewhere(rng), rng.randint(0, 24)
    what = f"{more} files may be opened, from {stage} on"
    return told(workspace, what, (BudgetError.exit_code,), partial(inject.few_files, more))


def unread_log(workspace: Workspace, rng: Random) -> Outcome:
    """Nobody reads what a run says, or the log's disk is full: the run goes on."""
    stage, how = workspace.somewhere(rng), rng.choice(["closed", "pipe", "full"])
    return told(workspace, f"its log is {how}, from {stage} on", (), partial(inject.unread_log, how))


KINDS = (
    Kind("full disk", "the run folder's disk becomes full (ENOSPC)", full_disk),
    Kind("small files", "no file may grow beyond a random size (EFBIG), whichever library writes it", small_files),
    Kind("refusing disk", "ENOSPC, EDQUOT, EFBIG, EIO, EROFS or EACCES at a random change of a file", refusing),
    Kind("read-only disk", "the run folder's disk is read-only", read_only),
    Kind("no locks", "a file system without flock", no_locks),
    Kind("no folder fsync", "a file system on which folders cannot be fsynced", no_folder_fsync),
    Kind("few files", "a limit on open files (ulimit -n), 0 to 24 above those that are open", few_files),
    Kind("unread log", "stderr is closed, a pipe that nobody reads, or on a full disk", unread_log),
)
