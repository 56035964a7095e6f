"""Asking until there is an answer: waits, retries, and the reasons to give up a request or the whole job.

A request is given up alone when the fault is its own: refused, malformed again and again, or failing for longer than
`retry_minutes` while others are answered. An endpoint that is overloaded or gone for so long ends the job instead: what
was answered is kept, and the rest is asked when it runs again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from limbeck.endpoint.budget import Ledger, charge_of, most_prompt_tokens, most_reply_tokens, worst_cost
from limbeck.endpoint.client import open_endpoint
from limbeck.endpoint.messages import ApiReply, ApiRequest
from limbeck.endpoint.rate_limit import Throttle, backoff, rate_within
from limbeck.endpoint.status import RequestRejected, RetryLater
from limbeck.errors import BudgetError, TeacherError
from limbeck.system.units import duration
from limbeck.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from limbeck.endpoint.client import Endpoint
    from limbeck.recipe import OpenAITeacher

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

HARMLESS = "Reply with the single word: yes"
CONTROL_TRIES = 3

UNKNOWN_SECONDS = 15.0
"""How long an endpoint that never answered may be out of reach: then its address is probably wrong."""


@dataclass(frozen=True)
class RequestOutcome:
    """The end of a request: its answer, or why there is none; what it cost, lost attempts included; attempts made."""

    found: ApiReply | RequestRejected
    cost: float
    attempts: int


@dataclass
class RetryingClient:
    """What all requests to one endpoint share. `on_message` hears of each new kind of trouble once."""

    endpoint: Endpoint
    throttle: Throttle
    ledger: Ledger
    on_message: Callable[[str], None]
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    troubles: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    answered_at: float = float("-inf")
    sending: set[asyncio.Task[Any]] = field(default_factory=set)
    cleared_at: float = float("-inf")  # when a harmless question was last sent, and answered
    refused: bool = False  # it was refused: the job ends
    _doubting: asyncio.Lock = field(default_factory=asyncio.Lock)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, endpoint: Endpoint, on_message: Callable[[str], None], spent: float = 0.0) -> RetryingClient:
        """With the limits of the endpoint's settings. `spent` is what earlier sittings cost."""
        settings = endpoint.settings
        requests, tokens = rate_within(settings.requests_per_minute), rate_within(settings.tokens_per_minute)
        throttle = Throttle(settings.concurrency, requests, tokens)
        return cls(endpoint, throttle, Ledger(settings.max_cost, spent), on_message)

    async def ask(self, ask: ApiRequest) -> RequestOutcome:
        """Raises TeacherError or BudgetError when the job cannot go on; other requests should then be let end."""
        settings, begun = self.endpoint.settings, asyncio.get_running_loop().time()
        cost, malformed, attempt = 0.0, 0, 0
        while True:
            found, paid, sent = await self._send(ask)
            cost, attempt = cost + paid, attempt + 1
            if isinstance(found, RequestRejected) and found.doubt:
                await self._require_harmless(found.doubt)
            if not isinstance(found, RetryLater):
                return RequestOutcome(found, cost, attempt)
            self._note(found)
            malformed += found.trouble == "malformed"
            if malformed >= settings.malformed_tries:
                return RequestOutcome(RequestRejected("malformed", found.reason), cost, attempt)
            if found.trouble == "overload":
                self.throttle.overloaded(sent, found.after)
            wait = max(backoff(attempt - 1, self.rng), found.after or 0.0)
            if self._is_hopeless(found, begun, wait):
                logger.info("a request is given up after %d attempts: %s", attempt, found.reason)
                return RequestOutcome(RequestRejected(found.trouble, found.reason), cost, attempt)
            logger.info("attempt %d, the next in %.1f s: %s: %s", attempt, wait, found.trouble, found.reason)
            await asyncio.sleep(wait)

    async def _require_harmless(self, doubt: str) -> None:
        """A prompt was refused in words that may mean every one: find out by a harmless question, one for all that wait
        to know. Raises TeacherError when that is refused too."""
        refused_at = asyncio.get_running_loop().time()
        async with self._doubting:
            if self.cleared_at >= refused_at:
                return
            if self.refused:
                raise TeacherError(doubt)
            asked_at = asyncio.get_running_loop().time()
            chat = self.endpoint.settings.endpoint == "chat"
            turns = ({"role": "user", "content": HARMLESS},) if chat else ()
            control = ApiRequest(turns, None if chat else HARMLESS, Sampling(max_tokens=16))
            for attempt in range(CONTROL_TRIES):
                found, _, _ = await self._send(control)
                if isinstance(found, ApiReply):
                    self.cleared_at = asked_at
                    return
                if isinstance(found, RequestRejected):
                    break
                await asyncio.sleep(max(backoff(attempt, self.rng), min(found.after or 0.0, UNKNOWN_SECONDS)))
            self.refused = True
            raise TeacherError(doubt)

    async def _send(self, ask: ApiRequest) -> tuple[ApiReply | RetryLater | RequestRejected, float, float]:
        """One attempt: what came, what it cost, when it was sent."""
        settings = self.endpoint.settings
        worst, tokens = worst_cost(settings, ask), most_prompt_tokens(settings, ask) + most_reply_tokens(ask)
        held, cost = await self._afford(worst), 0.0
        try:
            sent = await self.throttle.acquire(tokens)
            task = asyncio.current_task()
            assert task is not None
            self.sending.add(task)
            try:
                cost = held  # should it be cancelled under way, it may still be billed
                found = await self.endpoint.ask(ask)
                cost = charge_of(settings, ask, found)
            finally:
                self.sending.discard(task)
                self.throttle.release()
        finally:
            self.ledger.settle(held, cost)
            self._settled.set()
        if isinstance(found, ApiReply):
            self.ledger.learn(worst, cost)
            self.answered += 1
            self.answered_at = asyncio.get_running_loop().time()
            used = (found.prompt_tokens or 0) + (found.completion_tokens or 0)
            self.throttle.succeeded(tokens, used or tokens)
        return found, cost, sent

    async def _afford(self, worst: float) -> float:
        """Set the worst case aside, and return it; wait for requests under way where they hold what is missing."""
        while (held := self.ledger.promise(worst)) is None:
            if not self.ledger.num_promises:
                prices = self.endpoint.settings.prices
                raise BudgetError(
                    f"teacher.max_cost is {self.ledger.max_cost:g} {prices.currency if prices else ''}: "
                    f"{self.ledger.spent:.4f} is spent, and the next request may cost "
                    f"{worst * (self.ledger.excess or 1.0):.4f}. What was answered "
                    "is kept. Raise teacher.max_cost, or lower trace.mode.max_tokens, trace.mode.n or data.limit, and "
                    "run the same command again."
                )
            logger.debug("%.4f more may exceed max_cost: waiting for requests under way", worst)
            self._settled.clear()
            await self._settled.wait()
        return held

    def _note(self, found: RetryLater) -> None:
        self.troubles[found.trouble] += 1
        if self.troubles[found.trouble] == 1:
            self.on_message(f"{self.endpoint.where}: {found.trouble}: {found.reason}; it is tried again")

    def _is_hopeless(self, found: RetryLater, begun: float, wait: float) -> bool:
        """Whether to give this request up, alone. Raises TeacherError when the endpoint is what fails."""
        now, longest = asyncio.get_running_loop().time(), 60.0 * self.endpoint.settings.retry_minutes
        where, again = self.endpoint.where, "What was answered is kept; run the same command again to go on."
        if found.trouble == "connect" and not self.answered and now - begun + wait > min(UNKNOWN_SECONDS, longest):
            raise TeacherError(f"{where} cannot be reached: {found.reason}. Check teacher.base_url. {again}")
        if now - begun + wait <= longest:
            return False
        if found.after is not None and found.after > longest:
            asks = f"it asks to wait {duration(found.after)}, and teacher.retry_minutes allows {duration(longest)}"
            raise TeacherError(f"{where} is overloaded ({found.reason}): {asks}. {again}")
        if found.trouble in ("overload", "connect") or self.answered_at < begun:
            raise TeacherError(f"{where} fails for {duration(now - begun)}: {found.trouble}: {found.reason}. {again}")
        return True


def ask_all(
    settings: OpenAITeacher, asks: Sequence[ApiRequest], on_message: Callable[[str], None], spent: float = 0.0
) -> list[RequestOutcome]:
    """The outcomes of a few requests, in their order, as many at once as the settings allow. Nothing is written down:
    for judges. `spent` is what earlier calls cost. Raises as `RetryingClient.ask`, after what was under way ended."""

    async def work() -> list[RequestOutcome]:
        async with open_endpoint(settings) as endpoint:
            desk = RetryingClient.of(endpoint, on_message, spent)
            tasks = [asyncio.create_task(desk.ask(ask)) for ask in asks]
            try:
                return await asyncio.gather(*tasks)
            finally:
                await settle(tasks, desk, settings.timeout_seconds)

    return run_loop(work())


def run_loop(work: Coroutine[Any, Any, Found]) -> Found:
    """`asyncio.run`, in a thread of its own where this one has a loop already (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def settle(tasks: Sequence[asyncio.Task[Any]], desk: RetryingClient, grace: float) -> None:
    """End the tasks of a job: those that are not waiting for an answer at once, the others when it came, or after
    `grace` seconds: what is under way is paid already. Their errors are not raised."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace
    while waiting := [task for task in tasks if not task.done()]:
        for task in waiting:
            if task not in desk.sending or loop.time() >= deadline:
                task.cancel()
        await asyncio.wait(waiting, timeout=0.05)
    await asyncio.gather(*tasks, return_exceptions=True)
