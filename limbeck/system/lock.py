"""One process at a time: a lock on a file, which ends with the process that holds it, however that ends.

The lock is the system's own (flock, LockFileEx), taken on an open file by filelock: the file itself is never removed or
replaced by it, so a process that runs an older Limbeck waits for the same lock, and may stand in the file who holds it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filelock import lock_descriptor

from limbeck.errors import RunDirError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT_SECONDS = 0.02
"""Between two attempts of one that waits."""


@dataclass(frozen=True)
class HeldLock:
    """A lock that this process holds until `release`, or until it ends."""

    fd: int

    def sign(self) -> None:
        """Write into the file who holds it. On a full disk the lock holds without a name."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
            os.lseek(self.fd, 0, os.SEEK_SET)
            os.write(self.fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


def try_lock(path: Path, *, mode: int = 0o666) -> HeldLock | None:
    """Take the lock; None when another process (or this one) holds it. The file is made where there is none.

    Raises OSError when the file cannot be opened, RunDirError where the file system knows no locks."""
    return _lock(path, os.O_RDWR | os.O_CREAT, mode, wait=False)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock, and hold it for the block. Raises as `try_lock` does."""
    lock = wait_lock(path)
    try:
        yield
    finally:
        lock.release()


def wait_lock(path: Path) -> HeldLock:
    """Take the lock as soon as it is free. Raises as `try_lock` does."""
    lock = _lock(path, os.O_RDWR | os.O_CREAT, 0o666, wait=True)
    assert lock is not None
    return lock


def is_held(path: Path) -> bool:
    """Whether some process holds the lock; False where there is no such file."""
    try:
        lock = _lock(path, os.O_RDWR, 0o666, wait=False)
    except FileNotFoundError:
        return False
    if lock is not None:
        lock.release()
    return lock is None


def holder_of(path: Path) -> str:
    """Who signed the lock last."""
    try:
        return path.read_text(errors="replace").strip() or "another process"
    except OSError:
        return "another process"


def _lock(path: Path, flags: int, mode: int, *, wait: bool) -> HeldLock | None:
    fd = os.open(path, flags, mode)
    try:
        held = lock_descriptor(fd, blocking=wait, poll_interval=WAIT_SECONDS)
    except OSError as error:  # contention is no error: this is a file system without locks, or out of them
        os.close(fd)
        raise RunDirError(
            f"{path} cannot be locked ({error.strerror}), so two processes could write {path.parent} at once. Choose a "
            "folder on a file system with locks, such as a local disk."
        ) from error
    except BaseException:
        os.close(fd)
        raise
    if held:
        return HeldLock(fd)
    os.close(fd)
    return None
