"""Experts in memory: opened when they are first asked, one engine each, closed when they are idle or room is needed.

Each is opened in a thread of its own; whoever asks for that one meanwhile waits, and nobody else does. What is in use
is never closed. Experts are strangers' work: one that cannot be opened, for whatever reason, is refused alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from limbeck.engine.batching import BatchEngine
from limbeck.engine.serial import SerialEngine
from limbeck.errors import LimbeckError, TeacherError
from limbeck.models.hf import HfLM
from limbeck.models.llamacpp import LlamaLM
from limbeck.models.open import open_lm
from limbeck.models.weights import weight_bytes
from limbeck.serve.errors import ApiError
from limbeck.serve.threads import Turns, in_thread
from limbeck.system.device import taken_memory
from limbeck.system.units import size
from limbeck.text.token_bytes import TokenBytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from limbeck.engine.api import Engine
    from limbeck.experts import Expert
    from limbeck.serve.logs import Log
    from limbeck.serve.prometheus import Metrics
    from limbeck.serve.settings import Serving
    from limbeck.types import LocalLM

logger = logging.getLogger(__name__)

FAILED_SECONDS = 15.0
"""An expert that could not be opened is not tried again for so long."""
STUCK_SECONDS = 3600.0
"""Nor one whose opening did not end: its thread may still be at it."""
RETRY = 2.0
CLOSING_SECONDS = 5.0
"""So long the end of the server waits for an opening under way."""
LONGEST_REASON = 400


@dataclass(frozen=True)
class LoadedExpert:
    """A model, its engine, and the `turns` in which prompts are read for it."""

    lm: LocalLM
    engine: Engine
    turns: Turns

    @cached_property
    def token_bytes(self) -> TokenBytes | None:
        """What each token is in bytes; None where the tokenizer does not let us know."""
        try:
            return TokenBytes.of_tokenizer(self.lm.tokenizer)
        except (TeacherError, AttributeError) as error:
            logger.info("%s: the bytes of its tokens are not known: %s", self.lm.name, error)
            return None

    def bytes_of(self, token: int) -> bytes | None:
        table = self.token_bytes
        return table.of[token] if table is not None and token < len(table.of) else None

    def text_of(self, token: int) -> str:
        """A token as log-probs show it; "bytes:\\xe2" where it is no whole character."""
        value = self.bytes_of(token)
        if value is None:
            return str(self.lm.tokenizer.convert_ids_to_tokens(token))
        try:
            return value.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in value)


@dataclass(eq=False)
class _PoolSlot:
    """One expert, open or opening. `users` hold it; `num_bytes` is what it is counted with. `alone`: no other one was
    being opened at any time while it was."""

    expert: Expert
    num_bytes: int
    alone: bool = True
    opening: asyncio.Task[LoadedExpert] | None = None
    users: int = 0
    since: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return f"{self.expert.name}@{self.expert.version}"

    @property
    def opened(self) -> LoadedExpert | None:
        done = self.opening is not None and self.opening.done() and not self.opening.cancelled()
        return self.opening.result() if self.opening and done and not self.opening.exception() else None


@dataclass
class ExpertPool:
    """`open_expert` opens an expert with its engine, in a thread, within the bytes for keys and values that it is
    given; `check` raises ExpertError where its files are no longer those that the registry found. `budget` is in bytes,
    None without limit: of weights, and of the most that keys and values can come to, at most `sequence_bytes` of each.
    `measure` gives the bytes that this process takes."""

    open_expert: Callable[[Expert, int], LoadedExpert]
    check: Callable[[Expert], None]
    budget: int | None
    sequence_bytes: int
    open_seconds: float
    metrics: Metrics
    log: Log
    measure: Callable[[], int] = taken_memory

    def __post_init__(self) -> None:
        self.places: dict[str, _PoolSlot] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._opening: set[_PoolSlot] = set()
        self._making_room = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def used(self) -> int:
        return sum(place.num_bytes for place in self.places.values())

    @contextlib.asynccontextmanager
    async def use(self, expert: Expert) -> AsyncIterator[LoadedExpert]:
        """The expert, open for as long as the block runs. Raises ApiError 503 when it cannot be opened, or when what is
        in use leaves no room for it."""
        place = self._place(expert)
        place.users += 1
        try:
            assert place.opening is not None
            yield await asyncio.shield(place.opening)
        finally:
            place.users -= 1
            place.since = time.monotonic()
            self._freed.set()

    def _place(self, expert: Expert) -> _PoolSlot:
        name = f"{expert.name}@{expert.version}"
        place = self.places.get(name)
        if place is not None and place.opened is not None and place.opened.engine.stats.dead:
            self.log.event("engine_dead", "error", expert=name, reason=place.opened.engine.stats.dead)
            self._forget(place, "dead")
            place = None
        if place is None:
            until, reason = self._failed.get(name, (0.0, ""))
            if (wait := until - time.monotonic()) > 0:
                raise _cannot_open(name, reason, wait)
            place = self.places[name] = _PoolSlot(expert, 0)
            place.opening = asyncio.create_task(self._open(place))
            place.opening.add_done_callback(_seen)
        return place

    async def _open(self, place: _PoolSlot) -> LoadedExpert:
        """Make room, open, and measure what it took. What goes wrong is told, and is this expert's alone."""
        begun = time.monotonic()
        try:
            opened = await self._opened(place)
        except ApiError:
            self._drop(place)
            raise
        except Exception as error:  # a stranger's model makes anything fail anywhere
            told = isinstance(error, LimbeckError)
            reason = str(error) if told else f"{type(error).__name__}: {error}"
            raise self._failure(place, reason, FAILED_SECONDS) from error
        except BaseException:
            self._drop(place)
            raise
        seconds = time.monotonic() - begun
        self.metrics.count("limbeck_loads_total", model=place.expert.name, result="opened")
        self.metrics.observe("limbeck_load_seconds", seconds, model=place.expert.name)
        logger.info("opened %s in %.1f s: %d bytes", place.name, seconds, place.num_bytes)
        self.log.event("expert_opened", expert=place.name, seconds=round(seconds, 3), bytes=place.num_bytes)
        return opened

    async def _opened(self, place: _PoolSlot) -> LoadedExpert:
        card = place.expert.card
        weights = max(card.memory_bytes or card.bytes, weight_bytes(place.expert.model_path))
        async with self._making_room:
            sequences = self._sequences(place, weights)
            await self._make_room(place, weights + sequences)
            place.num_bytes = weights + sequences
        before = self.measure()
        for one in (*self._opening, *([place] if self._opening else [])):
            one.alone = False
        self._opening.add(place)
        thread = asyncio.ensure_future(in_thread(self._open_intact, place.expert, sequences))
        try:
            if not (await asyncio.wait([thread], timeout=self.open_seconds))[0]:
                thread.add_done_callback(_close_late)
                raise self._failure(place, f"opening it took more than {self.open_seconds:g} s", STUCK_SECONDS)
        finally:
            self._opening.discard(place)
        opened = thread.result()
        taken = self.measure() - before if place.alone else 0  # else what others took would be in it
        place.num_bytes = max(weights, taken) + opened.engine.stats.most_memory_bytes
        return opened

    def _open_intact(self, expert: Expert, sequences: int) -> LoadedExpert:
        """Its files are looked at again before and after: the registry's look was a while ago; opening takes time."""
        self.check(expert)
        opened = self.open_expert(expert, sequences)
        try:
            self.check(expert)
        except BaseException:
            opened.engine.close()
            raise
        return opened

    def _failure(self, place: _PoolSlot, reason: str, wait: float) -> ApiError:
        """It is not tried again for a while. Clients are told why, but not where it lies."""
        self._drop(place)
        shown = reason.replace(str(place.expert.path), place.name)[:LONGEST_REASON]
        logger.info("%s cannot be opened: %s; tried again after %.0f s", place.name, reason, wait)
        self._failed[place.name] = (time.monotonic() + wait, shown)
        self.metrics.count("limbeck_loads_total", model=place.expert.name, result="failed")
        self.log.event("expert_failed", "error", expert=place.name, reason=reason)
        return _cannot_open(place.name, shown, wait)

    def _sequences(self, place: _PoolSlot, weights: int) -> int:
        """Bytes that its keys and values may take. Raises ApiError for an expert that can never fit."""
        if self.budget is not None and weights > self.budget:
            raise ApiError(
                503,
                f"The expert {place.name} needs {size(weights)}, and memory_budget is {size(self.budget)}.",
                param="model",
                code="over_memory_budget",
            )
        return self.sequence_bytes if self.budget is None else min(self.sequence_bytes, self.budget - weights)

    async def _make_room(self, place: _PoolSlot, need: int) -> None:
        """Close idle experts, those first that were idle longest, until `need` bytes fit."""
        if self.budget is None:
            return
        while self.used + need > self.budget:
            idle = sorted((one for one in self.places.values() if _is_idle(one)), key=lambda one: one.since)
            if idle:
                await self._close(idle[0], "room")
                continue
            self._freed.clear()
            try:
                await asyncio.wait_for(self._freed.wait(), RETRY)
            except TimeoutError:
                raise ApiError(
                    503,
                    f"There is no room for the expert {place.name}: those in memory are in use.",
                    param="model",
                    code="no_memory",
                    retry_after=RETRY,
                ) from None

    async def keep_tidy(self, ttl: float | None) -> None:
        """Close experts that were idle for `ttl` seconds, until cancelled."""
        while ttl is not None:
            await asyncio.sleep(min(ttl / 4, 5.0))
            for place in list(self.places.values()):
                if _is_idle(place) and time.monotonic() - place.since >= ttl:
                    await self._close(place, "idle")

    async def _close(self, place: _PoolSlot, why: str) -> None:
        opened = self._forget(place, why)
        if opened is not None:
            await asyncio.to_thread(opened.engine.close)
            del opened
            place.opening = None
            gc.collect()

    def _forget(self, place: _PoolSlot, why: str) -> LoadedExpert | None:
        """Take it out, so that nobody new gets it."""
        opened = place.opened
        self._drop(place)
        self.metrics.count("limbeck_unloads_total", model=place.expert.name, why=why)
        logger.info("closed %s: %s", place.name, why)
        self.log.event("expert_closed", expert=place.name, why=why)
        return opened

    def _drop(self, place: _PoolSlot) -> None:
        if self.places.get(place.name) is place:
            del self.places[place.name]

    async def close(self) -> None:
        """Close all of them; replies under way end with an error."""
        for place in list(self.places.values()):
            if place.opening is not None:
                await asyncio.wait([place.opening], timeout=CLOSING_SECONDS)
            await self._close(place, "stopping")


def _is_idle(place: _PoolSlot) -> bool:
    return place.users == 0 and place.opened is not None


def _cannot_open(name: str, reason: str, wait: float) -> ApiError:
    return ApiError(
        503, f"The expert {name} cannot be opened: {reason}", param="model", code="expert_damaged", retry_after=wait
    )


def _seen(task: asyncio.Task[LoadedExpert]) -> None:
    """Its error is told to those who wait; when nobody does, it is in the log."""
    if not task.cancelled():
        task.exception()


def _close_late(thread: asyncio.Future[LoadedExpert]) -> None:
    """An opening that nobody waits for any more has ended."""
    if not thread.cancelled() and thread.exception() is None:
        thread.result().engine.close()


def opener(settings: Serving) -> Callable[[Expert, int], LoadedExpert]:
    """What opens an expert, in a thread: its model, and the engine that fits its kind. The other number are the bytes
    that keys and values may take."""

    def open_expert(expert: Expert, sequence_bytes: int) -> LoadedExpert:
        fixed = expert.card.format != "safetensors"  # the precision of other formats is their own
        lm = open_lm(expert.model_path, dtype="auto" if fixed else settings.dtype)
        if isinstance(lm, HfLM):
            lm.leave_files()
        return LoadedExpert(lm, _engine(lm, settings, sequence_bytes), Turns(settings.waiting))

    return open_expert


def _engine(lm: LocalLM, settings: Serving, sequence_bytes: int) -> Engine:
    """Models of transformers and llama.cpp are written in batches; all others have sessions, which take turns."""
    if isinstance(lm, HfLM | LlamaLM):
        return BatchEngine(lm, slots=settings.slots, waiting=settings.waiting, memory_bytes=sequence_bytes)
    return SerialEngine(lm, slots=settings.slots, waiting=settings.waiting, memory_bytes=sequence_bytes)
