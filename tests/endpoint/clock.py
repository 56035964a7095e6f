"""An event loop whose clock jumps to the next timer: minutes of waiting in no time, in the order of a real clock."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Jump(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list:
        found = super().select(0)
        if not found and timeout:
            self.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jump = _Jump()
        super().__init__(self.jump)

    def time(self) -> float:
        return self.jump.now


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` on a virtual clock. Nothing may wait for a real socket or thread."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
