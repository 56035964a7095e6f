import ast
import errno
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from limbeck.errors import RunDirError
from limbeck.system import lock as module
from limbeck.system.lock import holder_of, is_held, locked, try_lock, wait_lock
from limbeck.system.rundir import RunDir

PACKAGE = Path(module.__file__).parents[1]
HOLD = "import sys, time; from pathlib import Path; from limbeck.system.lock import *\n"


def holding(path: Path, then: str = "time.sleep(60)") -> subprocess.Popen[str]:
    """A process that holds the lock, once it said so."""
    code = f"{HOLD}lock = wait_lock(Path({str(path)!r})); lock.sign(); print('held', flush=True); {then}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_one_is_refused_until_the_first_lets_go(tmp_path):
    path = tmp_path / ".lock"
    first = try_lock(path)
    assert first is not None and try_lock(path) is None and is_held(path)
    first.release()
    again = try_lock(path)
    assert again is not None
    again.release()
    assert path.exists() and not is_held(path)  # never removed: a waiter would hold another file of that name


def test_a_lock_that_is_not_there_is_not_held_and_not_made(tmp_path):
    assert not is_held(tmp_path / ".lock") and not (tmp_path / ".lock").exists()


def test_a_killed_holder_frees_it_and_its_name_stays_readable(tmp_path):
    path = tmp_path / ".lock"
    with holding(path) as process:
        assert try_lock(path) is None and holder_of(path).startswith(f"process {process.pid} on ")
        process.kill()
        process.wait()
        lock = try_lock(path)
        assert lock is not None
        lock.sign()
        assert holder_of(path).startswith(f"process {os.getpid()} on ") and path.read_text().count("\n") == 1
        lock.release()


def test_who_waits_gets_it_when_it_is_free(tmp_path):
    path = tmp_path / ".lock"
    first, taken = wait_lock(path), threading.Event()

    def wait() -> None:
        with locked(path):
            taken.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not taken.wait(0.1)
    first.release()
    assert taken.wait(30)
    waiting.join()
    assert not is_held(path)


def test_an_older_limbeck_and_this_one_share_a_lock(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / ".lock"
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert try_lock(path) is None
    lock = wait_lock(path)
    with path.open("a+") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.release()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_an_error_that_says_so(tmp_path, monkeypatch, number):
    opened = []

    def refuse(fd, **_):
        opened.append(fd)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "lock_descriptor", refuse)
    for take in (try_lock, wait_lock, lambda path: RunDir.open(path.parent).__enter__()):
        with pytest.raises(RunDirError, match="cannot be locked .* file system with locks"):
            take(tmp_path / ".lock")
    for fd in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_run_folder_in_use_names_its_holder(tmp_path):
    with holding(tmp_path / ".lock") as process:
        with pytest.raises(RunDirError, match=f"in use by process {process.pid} on "), RunDir.open(tmp_path):
            pass
        process.kill()
    with RunDir.open(tmp_path) as run:
        assert run.path == tmp_path


def test_no_module_imports_fcntl():
    """Also not within a function: there is one lock. Its platform is filelock's affair."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "fcntl" not in names, f"{file}:{getattr(node, 'lineno', 0)}"


@pytest.mark.slow
def test_every_module_is_imported_where_there_is_no_fcntl():
    names = sorted(
        "limbeck." + ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        for file in PACKAGE.rglob("*.py")
        if file.name not in ("__main__.py", "__init__.py") and "sandbox" not in file.parts
    )
    assert len(names) > 150 and all(importlib.util.find_spec(name) for name in names[:3])
    code = (
        "import builtins, importlib, sys\n"
        "real = builtins.__import__\n"
        "def without(name, globals=None, *rest, **more):\n"
        "    if name == 'fcntl' and str((globals or {}).get('__name__')).startswith(('limbeck', 'filelock')):\n"
        "        raise ImportError(name)\n"
        "    return real(name, globals, *rest, **more)\n"
        "builtins.__import__ = without\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "from filelock._unix import has_fcntl\n"
        "assert not has_fcntl\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
