"""Runs inside the sandbox, as `python -I -S -c`, with its neighbours `wire`, `program` and `judging`: only the standard
library, nothing of ours.

The program (a model wrote it) runs in a child process, its tests (they come with the data) in this one. Tests reach the
program's functions through pipes, and get plain data back: so a program cannot change what a test compares, end the run
early, or say that it passed. The child is forked before the tests are read, so they are nowhere in its memory; the file
that they come in and the channel on which the verdict leaves are closed in it before the program starts.

A verdict is True, False, or None where the tests cannot tell: they never ask the program, lack a module, or compute
with objects that do not cross a pipe.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys

from limbeck.curate.sandbox.judging import judge
from limbeck.curate.sandbox.program import serve
from limbeck.curate.sandbox.wire import Line


def confine(limits: dict[str, int]) -> None:
    """Give up the user's rights, where there is another user to become, and take on limits: for good."""
    if (user := limits.pop("user", None)) is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    sys.set_int_max_str_digits(0)  # results with more than 4,300 digits are results


def main() -> None:
    source, out = int(sys.argv[1]), int(sys.argv[2])
    confine(json.loads(sys.argv[3]))
    del sys.argv[1:]  # `unittest.main` reads them
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a KeyboardInterrupt could be caught by a test
    up_read, up_write = os.pipe()
    down_read, down_write = os.pipe()
    sys.stdout.flush()
    if os.fork() == 0:  # before the tests are read: a program that looks through its frames must not find them
        os.close(source)
        os.close(out)
        os.close(up_read)
        os.close(down_write)
        try:
            line = Line(down_read, up_write)
            serve(line.receive()["program"], line)
        finally:
            os._exit(0)
    os.close(up_write)
    os.close(down_read)
    with os.fdopen(source, "rb") as file:
        task = json.loads(file.read())
    line = Line(up_read, down_write)
    line.send({"program": task["program"]})
    verdict = judge(task, line)
    os.write(out, json.dumps(verdict).encode())
