"""Stopping on request: the first SIGTERM, SIGHUP or Ctrl-C asks, the second leaves at once.

Work that has something to save looks whether a stop was asked for, and saves. All other work, between `interruptible`
and its end, is interrupted where it is, as by Ctrl-C: what it writes appears whole or not at all, so there is nothing
to wait for. A signal that was ignored when the process began stays so (`nohup`, jobs in the background).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = ("SIGTERM", "SIGINT", "SIGHUP")  # Windows has no SIGHUP

_INTERRUPTS = [False]  # as the handlers are, of the whole process


def stop_signals() -> list[signal.Signals]:
    """Those that ask for a stop and are not ignored."""
    known = [signal.Signals[name] for name in NAMES if name in signal.Signals.__members__]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a stop was asked for. After the first signal the default handlers are back,
    so a second one ends the process. Outside the main thread signals are left alone."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in stop_signals()}

    def ask(_number: int, _frame: object) -> None:
        asked.set()
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        if _INTERRUPTS[0]:
            raise KeyboardInterrupt

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interruptible(interrupts: bool = True) -> Iterator[None]:
    """Within the block a request to stop raises KeyboardInterrupt wherever the main thread is; with False it only asks.
    Elsewhere than under `stop_requests` this changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _INTERRUPTS[0] = _INTERRUPTS[0], interrupts
    try:
        yield
    finally:
        _INTERRUPTS[0] = before


def stop_on_signals(asked: asyncio.Event) -> None:
    """In an event loop: the first SIGTERM, SIGHUP or Ctrl-C asks, the second ends the process at once."""
    loop, numbers = asyncio.get_running_loop(), stop_signals()

    def ask() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        asked.set()

    for number in numbers:
        loop.add_signal_handler(number, ask)
