"""Comparisons that may never end, in a process of its own that is killed when one takes too long.

A pattern that backtracks, a schema that refers to itself and a formula that grows hold up a thread for ever, and no
signal reaches it. The process is started with the interpreter alone, so that a script which calls us is not run again
(as `multiprocessing` would), and ends by itself when nobody is left who asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from limbeck.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_SECONDS = 0.2
START_SECONDS = 120.0
"""For the first answer: imports of large packages are no comparison's time."""

START = "import sys; sys.path[:] = {path!r}; from limbeck.curate.comparisons import answer_all; answer_all()"


class TooLate(Exception):
    """No answer in time, or none at all; in words for a verdict's reason."""


class BoundedWorker:
    """Answers questions of one kind (a key of `comparisons.COMPARISONS`), one at a time. `stop_asked` is looked at
    while it waits. Not for several threads."""

    def __init__(self, kind: str, seconds: float, stop_asked: Callable[[], bool] = lambda: False) -> None:
        self.kind, self.seconds, self.stop_asked = kind, seconds, stop_asked
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, *question: str) -> Any:
        """The answer, as JSON has it. Raises TooLate, and Stopped where a stop was asked for."""
        if self.process is None:
            self.process = self._start()
            self._answer([self.kind], START_SECONDS)
        return self._answer([self.kind, self.seconds, *question], self.seconds)

    def close(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C is ours to handle.
        return subprocess.Popen(
            [sys.executable, "-c", START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _answer(self, question: list[Any], seconds: float) -> Any:
        try:
            return self._exchange(json.dumps(question).encode() + b"\n", time.monotonic() + seconds)
        except OSError as error:
            self.close()
            raise TooLate("the process that compares has ended; memory may have run out") from error
        except BaseException:
            self.close()
            raise

    def _exchange(self, question: bytes, end: float) -> Any:
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        received = bytearray()
        os.set_blocking(process.stdin.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdin, selectors.EVENT_WRITE)
            selector.register(process.stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if time.monotonic() >= end:
                    raise TooLate(f"the comparison took longer than {self.seconds:g} s")
                if self.stop_asked():
                    raise Stopped("stopped while verifying; run the same command again to go on.")
                for key, _ in selector.select(LOOK_SECONDS):
                    if key.fileobj is process.stdin:
                        question = question[os.write(key.fd, question[:65536]) :]
                        if not question:
                            selector.unregister(process.stdin)
                        continue
                    chunk = os.read(key.fd, 65536)
                    if not chunk:
                        raise BrokenPipeError("the process has ended")
                    received += chunk
        return json.loads(received)
