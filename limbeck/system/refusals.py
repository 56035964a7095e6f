"""What a machine refuses, as errors that say what to do: a disk that is full, failing or read-only, no memory left, no
more open files, a path that is too long.

Libraries put the system's error number in many words. Python and Arrow raise OSError with it; safetensors and
tokenizers, written in Rust, errors of their own that end in "(os error 28)"; numpy an OSError without a number. Memory
ends in MemoryError (Python, Arrow) or in a RuntimeError (torch, whose allocator for the CPU has no class of its own).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.errors import BudgetError, LimbeckError, RecipeError, RunDirError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV, errno.ESTALE)
EXHAUSTED = (errno.ENOMEM, errno.EAGAIN)  # the second of threads, whose stacks need memory
RUST = re.compile(r"\(os error (\d+)\)|Os \{ code: (\d+)")
SHORT_WRITE = re.compile(r"^\d+ requested and \d+ written$")
NO_MEMORY = (
    "DefaultCPUAllocator: ",
    "out of memory",
    "Cannot allocate memory",
    "could not create a primitive",  # oneDNN's word for it
    "can't start new thread",
    "Failed to launch worker thread",  # Arrow's
    "failed to map segment from shared object",  # the loader's, of a library that is imported
)
SHOWN = 200
RESUMES = "Nothing finished was lost; run the same command again, and it resumes."


def disk_errors(path: Path) -> contextlib.AbstractContextManager[None]:
    """What a disk refuses while `path` is written or read becomes BudgetError (full) or RunDirError (anything else)."""

    def judge(error: BaseException) -> LimbeckError | None:
        found = os_error(error)
        return None if found is None else _of_the_disk(found, path)

    return _told(judge)


@contextlib.contextmanager
def machine_errors() -> Iterator[None]:
    """Around a whole job: whatever the machine refuses, wherever it is met, becomes the error that says what to do. So
    does the error of a reader that took exhaustion for a fault of its file: memory and open files are none of its."""
    try:
        with _told(machine_error):
            yield
    except LimbeckError as error:
        cause = error.__cause__
        if isinstance(error, BudgetError) or cause is None or not _exhausted(cause):
            raise
        told = machine_error(cause)
        assert told is not None
        raise told from error


@contextlib.contextmanager
def _told(judge: Callable[[BaseException], LimbeckError | None]) -> Iterator[None]:
    try:
        yield
    except LimbeckError:
        raise
    except BaseException as error:  # tokenizers raises nothing more special, and panics; all else goes on as it is
        told = judge(error)
        if told is None:
            raise
        raise told from error


def machine_error(error: BaseException) -> LimbeckError | None:
    """The error that says what to do; None for what is none of the machine's."""
    if out_of_memory(error):
        return BudgetError(
            "out of memory. Free some, or read and train on less at a time (trace.batch_tokens, train.batch_tokens, "
            f"evaluate.batch_tokens). {RESUMES}"
        )
    found = os_error(error)
    if found is None:
        return None
    if found.errno in (errno.EMFILE, errno.ENFILE):
        return BudgetError(f"{found.strerror}: allow more with `ulimit -n 4096`. {RESUMES}")
    if found.errno == errno.ENAMETOOLONG:
        return RecipeError(f"{_shown(found.filename)}: {found.strerror}. Give a shorter path.")
    named = isinstance(found.filename, str | bytes | os.PathLike)
    return _of_the_disk(found, Path(os.fsdecode(found.filename))) if named else _of_the_disk(found, None)


def _exhausted(error: BaseException) -> bool:
    found = os_error(error)
    return out_of_memory(error) or (found is not None and found.errno in (errno.EMFILE, errno.ENFILE))


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in the words of Python, Arrow, torch or the system."""
    if isinstance(error, RuntimeError | ImportError) or type(error).__module__.startswith("pyarrow"):
        return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)
    found = os_error(error)
    return isinstance(error, MemoryError) or (found is not None and found.errno in EXHAUSTED)


def os_error(error: BaseException) -> OSError | None:
    """The system's error in what a library raised."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if isinstance(error, OSError) and SHORT_WRITE.match(str(error)):  # numpy's tofile
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if isinstance(error, ImportError) and os.strerror(errno.EMFILE) in str(error):  # the loader's
        return OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    number = None if isinstance(error, LimbeckError) else RUST.search(str(error))
    code = int(number[1] or number[2]) if number else 0
    return OSError(code, os.strerror(code)) if code else None


def raise_if_full(error: OSError, path: Path) -> None:
    """Turn "no space left" (or a quota or file-size limit) into an error that says what to do."""
    if error.errno in FULL:
        told = _of_the_disk(error, path)
        assert told is not None
        raise told from error


def _of_the_disk(error: OSError, path: Path | None) -> LimbeckError | None:
    if error.errno in FULL:
        why = f"{error.strerror}{_free(path)}"
        return BudgetError(f"the disk is full: writing {_shown(path)} failed ({why}). Free some space. {RESUMES}")
    if error.errno in REFUSED and path is not None:
        named = error.filename if isinstance(error.filename, str) else path
        return RunDirError(
            f"{_shown(named)} cannot be read or written: {error.strerror}. Look at the disk, and at the permissions of "
            f"its folder. {RESUMES}"
        )
    return None


def _free(path: Path | None) -> str:
    with contextlib.suppress(OSError):
        return "" if path is None else f"; {shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free"
    return ""


def _shown(path: object) -> str:
    text = "a file" if path is None else str(path)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"
