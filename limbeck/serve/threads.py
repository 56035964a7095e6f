"""Threads for what strangers' models do: opening them, and reading a prompt through their template and tokenizer.

Both can take for ever, and a thread cannot be ended from outside. So each has a thread of its own, which is left behind
where it does not end, and which ends with the process; a pool's threads could all be taken, and then nothing went on.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from limbeck.errors import EngineFull

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """What `work(*args)` gives, made in a new thread. Cancelling leaves the thread behind, and its result is lost."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if done.done():
            return
        done.set_exception(error) if error else done.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = work(*args)
        except BaseException as caught:  # it is raised where it is waited for
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await done


class Turns:
    """Work on one expert: a piece at a time, in threads, so that one that does not end holds up this expert alone."""

    def __init__(self, most: int) -> None:
        self._most, self._waiting, self._turn = most, 0, asyncio.Lock()

    async def take(self, work: Callable[..., T], *args: Any) -> T:
        """As `in_thread`, after those that came before. Raises EngineFull where too many wait."""
        if self._waiting >= self._most:
            raise EngineFull(f"{self._waiting} prompts wait to be read; no more may.")
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        task = asyncio.ensure_future(in_thread(work, *args))
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Future[Any]) -> None:
        """The next one's turn begins only when the thread has ended, whoever still waits for it."""
        self._turn.release()
        if not task.cancelled():
            task.exception()
