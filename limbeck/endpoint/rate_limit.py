"""How fast requests may go: at most so many at once, per minute, and tokens per minute; less when the endpoint says so.

The number in flight follows AIMD (additive increase, multiplicative decrease; Chiu and Jain 1989): halved when the
endpoint is overloaded, and one more for every round of successes. Requests reserve their share of the limits per minute
ahead of time, so that late wake-ups lose no throughput. All times are of the loop's monotonic clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from limbeck.system.rate import Rate

if TYPE_CHECKING:
    import random

logger = logging.getLogger(__name__)

FIRST_DELAY = 0.5
LONGEST_DELAY = 60.0
BURST_SECONDS = 1.0
"""What a per-minute limit may hand out at once: the share of this many seconds."""


def backoff(attempt: int, rng: random.Random) -> float:
    """Seconds before attempt `attempt` + 1 (the first is 0): doubling from half a second to a minute, with jitter
    between half and all of it, so that many requests that failed together do not come back together."""
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(attempt, 30)) * rng.uniform(0.5, 1.0)


def rate_within(limit: float | None) -> Rate | None:
    """At most `limit` in any minute: what may come at once is taken off the steady flow, and their sum over a minute is
    the limit. Below one a second there are no bursts at all. None: without limit."""
    if limit is None:
        return None
    burst = BURST_SECONDS if limit * BURST_SECONDS >= 60.0 else 0.0
    return Rate(limit * (60.0 - burst) / 60.0, burst)


@dataclass
class Throttle:
    """The gate that every request passes. Use `acquire` before and `release` after it, and tell it what happened."""

    concurrency: int
    requests: Rate | None = None
    tokens: Rate | None = None
    limit: float = 0.0  # in flight at most, at present
    in_flight: int = 0
    num_cuts: int = 0
    _paused_until: float = float("-inf")
    _cut_at: float = float("-inf")
    _queue: deque[asyncio.Future[None]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.limit = self.limit or float(self.concurrency)

    async def acquire(self, tokens: float) -> float:
        """Wait for a place, for the end of a pause, and for `tokens` of the per-minute limits. Returns the time."""
        await self._place()
        try:
            loop = asyncio.get_running_loop()
            waits = []
            for rate, amount in ((self.requests, 1.0), (self.tokens, tokens)):
                if rate is not None:
                    waits.append(rate.wait(0.0, loop.time()))  # one request may be larger than any burst
                    rate.spend(amount, loop.time())
            if (wait := max(waits, default=0.0)) > 0.0:
                logger.debug("waiting %.2f s for the limits per minute", wait)
                await asyncio.sleep(wait)
            while (pause := self._paused_until - loop.time()) > 0.0:
                await asyncio.sleep(pause)
            return loop.time()
        except BaseException:  # cancelled while it waited
            self.release()
            raise

    def release(self) -> None:
        """The request ended, however it did."""
        self.in_flight -= 1
        self._admit()

    def succeeded(self, reserved: float, used: float) -> None:
        """A request was answered: one more place after a round of them, and the tokens it did not need are free."""
        self.limit = min(self.limit + 1.0 / self.limit, float(self.concurrency))
        if self.tokens is not None:
            self.tokens.refund(max(reserved - used, 0.0))
        self._admit()

    def overloaded(self, sent_at: float, retry_after: float | None) -> None:
        """The endpoint said that it is too much. Requests that were under way together cut the limit once; nothing
        is sent by anyone before `retry_after` seconds."""
        now = asyncio.get_running_loop().time()
        if sent_at >= self._cut_at:
            self.limit, self._cut_at = max(self.limit / 2.0, 1.0), now
            self.num_cuts += 1
            logger.info("the endpoint is overloaded: at most %d requests in flight", self.limit)
        if retry_after is not None:
            self._paused_until = max(self._paused_until, now + retry_after)
            logger.info("nothing is sent for %.1f s, as the endpoint wishes", retry_after)

    async def _place(self) -> None:
        if self.in_flight < int(self.limit) and not self._queue:
            self.in_flight += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # admitted and cancelled at the same moment
                self.release()
            raise

    def _admit(self) -> None:
        while self._queue and self.in_flight < int(self.limit):
            turn = self._queue.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
