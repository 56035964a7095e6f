"""Faults that a process does to itself: called in the child before the command begins, so that it can be killed at a
chosen file operation, or finds a disk and a memory that refuse.

A fault is a function without arguments that can be pickled: one of these, or `functools.partial` of one. What it
returns, where it returns a function, is called when the command ends.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import resource
import shutil
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Fault = Callable[[], object]

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000  # sched.h
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 16384, 1 << 18  # sys/mount.h

CHANGES = ("replace", "rename", "unlink", "mkdir", "rmdir", "fsync", "link")


def kill_at(folder: str, number: int) -> None:
    """SIGKILL before the `number`-th operation that changes a file in `folder`."""

    def act(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    on_changes(folder, act)


def kill_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def signal_after(seconds: float, number: int) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def refuse_from(folder: str, number: int, code: int, *, once: bool) -> None:
    """The `number`-th operation that changes a file in `folder` fails with the error `code`, and all that follow unless
    it is to be `once`."""

    def act(count: int) -> None:
        if count == number or (count > number and not once):
            raise OSError(code, os.strerror(code), folder)

    on_changes(folder, act)


def no_locks() -> None:
    """A file system without flock."""
    fcntl.flock = lambda *_: _refuse(errno.ENOTSUP)


def folders_without_fsync(code: int = errno.EINVAL) -> None:
    """A file system on which a folder cannot be brought to the disk."""
    fsync = os.fsync

    def only_files(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            _refuse(code)
        fsync(fd)

    os.fsync = only_files  # type: ignore[assignment]


def small_files(size: int) -> None:
    """No file can grow beyond `size` bytes, whoever writes it (Python, Rust, C++)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def little_memory(more: int, delay: float = 0.0) -> None:
    """No more than `more` bytes of addresses beyond those that the process has then."""

    def limit() -> None:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))

    if delay:
        timer = threading.Timer(delay, limit)
        timer.daemon = True
        timer.start()
    else:
        limit()


def small_disk(folder: str, room: int, *, read_only: bool = False) -> Callable[[], None]:
    """Give `folder` a disk of its own (a tmpfs that only this process sees) with `room` bytes free above its present
    files. What is on it at the end is copied to FOLDER.after, for `take_back`."""
    copy, after = Path(f"{folder}.before"), Path(f"{folder}.after")
    shutil.copytree(folder, copy)
    _own_mounts()
    page = resource.getpagesize()
    files = sum(-(-path.stat().st_size // page) * page + page for path in copy.rglob("*")) + 2 * page
    _mount(b"tmpfs", folder, 0, f"size={files + room}")
    shutil.copytree(copy, folder, dirs_exist_ok=True)
    shutil.rmtree(copy)
    if read_only:
        _mount(b"tmpfs", folder, MS_REMOUNT | MS_RDONLY, "")
    return lambda: shutil.copytree(folder, after) and None


def take_back(folder: Path) -> None:
    """In the parent: the folder becomes what it was on its own disk, where it had one."""
    after = Path(f"{folder}.after")
    if after.exists():
        shutil.rmtree(folder)
        after.rename(folder)


def _own_mounts() -> None:
    """Mounts of this process are its own from here on, also where it is nobody special."""
    user, group = os.getuid(), os.getgid()
    if LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    _mount(b"none", "/", MS_REC | MS_PRIVATE, "")


def _mount(kind: bytes, folder: str, flags: int, options: str) -> None:
    if LIBC.mount(kind, folder.encode(), kind, flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {folder}")


def few_files(more: int) -> None:
    """`more` files can be opened beside those that are open."""
    taken = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1 + more, taken + 1 + more))


def unread_log(how: str) -> None:
    """stderr: "closed", a "pipe" that nobody reads, or on a "full" disk."""
    if how == "closed":
        os.close(2)
        return
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer if how == "pipe" else os.open("/dev/full", os.O_WRONLY), 2)


def on_changes(folder: str, act: Callable[[int], None]) -> None:
    """Call `act` with 1, 2 ... before each operation of Python's own that changes a file in `folder`."""
    count = [0]
    main = os.getpid()

    def before(path: Any) -> None:
        if os.getpid() == main and _inside(folder, path):
            count[0] += 1
            act(count[0])

    for name in CHANGES:
        setattr(os, name, _after(before, getattr(os, name)))
    io.open = _opening(before, io.open)  # pathlib's door


def _after(before: Callable[[Any], None], real: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any, *args: Any, **kwargs: Any) -> Any:
        before(path)
        return real(path, *args, **kwargs)

    return call


def _opening(before: Callable[[Any], None], real: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wax+"):
            before(path)
        return real(path, mode, *args, **kwargs)

    return call


def _inside(folder: str, path: Any) -> bool:
    try:
        where = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.path.abspath(os.fspath(path))
    except (OSError, TypeError):
        return False
    return where.startswith(folder)


def _refuse(code: int) -> None:
    raise OSError(code, os.strerror(code))
