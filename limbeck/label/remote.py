"""The label stage with a teacher behind an endpoint: every reply is asked for once, and what came becomes the store.

Each answer is written to the journal (RUN/traces/journal.jsonl) before it counts. Shards are made of the journal, in
the order of the plan, as soon as all their replies are there: what is on disk in the end does not depend on when and in
which order answers came, nor on how often the job was killed.

    RUN/traces/journal.jsonl  what was paid for, answered or finally failed
    RUN/traces/failed.jsonl   rows without a usable reply, with the reason, by shard
    RUN/traces/asked.json     counts: requests, troubles, tokens, cost, finish reasons, who answered
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.endpoint.client import open_endpoint
from limbeck.endpoint.messages import ApiReply, answer_from_json, answer_to_json
from limbeck.endpoint.retry import RetryingClient, run_loop, settle
from limbeck.errors import Stopped, TeacherError
from limbeck.label.plan import plan_shards
from limbeck.label.rejection import enough_right
from limbeck.label.remote_batches import Request, ask_in_batches
from limbeck.label.replies import EndpointReply, TraceBuilder, ask_of, reply_text
from limbeck.label.usage import Tally
from limbeck.recipe import GenerateMode, OpenAITeacher, Recipe, name_of
from limbeck.store import StoreWriter, TraceStore, trace_id
from limbeck.store.failures import Failures
from limbeck.store.reply_log import ReplyLog
from limbeck.system.atomic import atomic_write
from limbeck.types import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from limbeck.endpoint.client import Endpoint
    from limbeck.endpoint.messages import ApiRequest
    from limbeck.endpoint.retry import RequestOutcome
    from limbeck.label.rejection import RejectionSampler
    from limbeck.types import OnProgress, Row

TICK = 0.05
"""Seconds between fsyncs of the journal: one serves all answers of that time."""

STOP_SECONDS = 15.0
"""How long answers under way are waited for when the job stops; torchrun kills after 30."""

ENOUGH = 20
"""Replies before the share of failed ones is judged."""


def run_ask(
    recipe: Recipe,
    path: Path,
    keeping: TraceBuilder,
    rows: Sequence[Row],
    *,
    on_progress: OnProgress,
    on_message: Callable[[str], None],
    stop_asked: Callable[[], bool] = lambda: False,
) -> TraceStore:
    """Fill the store at `path` with replies to `rows`; nothing that is in its journal is asked again.

    Raises Stopped when a stop was asked for, BudgetError before `max_cost` would be exceeded, TeacherError when the
    endpoint refuses everything, fails for too long, or is another one than before; whatever was answered is kept.
    StoreError when `path` holds another teacher's traces.
    """
    settings = recipe.teacher
    assert isinstance(settings, OpenAITeacher)
    writer = StoreWriter.open(path, keeping.header, plan_shards(recipe, rows))
    for shard, why in writer.drop_damaged().items():
        on_message(f"shard {shard} of {path.name} is made again from the journal: {why}")
    failures = Failures.open(path / "failed.jsonl")
    if settings.retry_failed:
        writer.drop(failures.shards())
    failures.keep(writer.done)
    with enough_right(recipe) as enough:
        asking = _Asking(recipe, keeping, writer, failures, on_message, enough)
        try:
            asking.resume(rows)
            run_loop(asking.run(on_progress, stop_asked))
        finally:
            asking.close()
    return TraceStore.open(path, verify=False)


@dataclass
class _Shard:
    number: int
    rows: list[Row]
    left: int = 0  # replies that are neither there nor failed


class _Asking:
    """One sitting: what is still to be asked, who asks it, and what is committed."""

    def __init__(
        self,
        recipe: Recipe,
        keeping: TraceBuilder,
        writer: StoreWriter,
        failures: Failures,
        on_message: Callable[[str], None],
        enough: RejectionSampler | None,
    ) -> None:
        settings, mode = recipe.teacher, recipe.trace.mode
        assert isinstance(settings, OpenAITeacher)
        self.recipe, self.keeping, self.writer, self.failures = recipe, keeping, writer, failures
        extra = {**keeping.extra_body, **settings.extra_body}
        self.on_message, self.settings = on_message, settings.model_copy(update={"extra_body": extra})
        self.num_draws = mode.n if isinstance(mode, GenerateMode) else 1
        self.enough = enough
        self.tally, self.shards = Tally(), list[_Shard]()
        self.journal: ReplyLog | None = None
        self.group = settings.samples_per_request
        self.total = self.done = self.durable = 0
        self.before: set[str] = set()
        self.closing = False
        self.changed = asyncio.Event()
        self.committer: asyncio.Task[None]

    # ---- before ----

    def resume(self, rows: Sequence[Row]) -> None:
        """Read the journal, and find out what is left."""
        by_id = {row.id: row for row in rows}
        pending = [(shard, [by_id[id] for id in ids if id in by_id]) for shard, ids in self.writer.pending()]
        open_rows = {row.id for _, shard_rows in pending for row in shard_rows}
        again = self.settings.retry_failed

        def on_entry(entry: dict[str, Any]) -> bool:
            self.tally.add(entry)
            return entry.get("row") in open_rows and not (again and "failed" in entry)

        journal = self.journal = ReplyLog.open(self.writer.path / "journal.jsonl", on_entry)
        for line in journal.damaged:
            self.on_message(f"line {line} of {journal.path.name} is damaged; its replies are asked for again")
        for number, shard_rows in pending:
            left = sum(len(self._missing(row)) for row in shard_rows)
            self.shards.append(_Shard(number, shard_rows, left))
        self.total = self.num_draws * sum(id in by_id for ids in self.writer.plan for id in ids)
        self.done = self.durable = self.total - sum(shard.left for shard in self.shards)
        if len(self.tally.answered_by) > 1 and self.settings.on_change == "stop":
            raise TeacherError(self._mixed())
        self.before = set(self.tally.answered_by)
        if again:  # they get another chance before their share is judged
            self.tally.failed_keys.clear()

    def _key(self, row: Row, draw: int) -> str:
        return trace_id(row.id, self.keeping.header, draw)

    def _missing(self, row: Row) -> list[int]:
        """Draws that are neither in the journal nor spared: a row that has enough right replies needs no more."""
        assert self.journal is not None
        missing = [draw for draw in range(self.num_draws) if self._key(row, draw) not in self.journal]
        if self.enough and 0 < len(missing) < self.num_draws and self._needed(row, self._replies(row)[0]) is not None:
            return []
        return missing

    def _needed(self, row: Row, said: Sequence[EndpointReply]) -> int | None:
        """The number of draws that hold enough right replies; None when there are none, or not yet."""
        assert self.enough is not None
        by_draw = {one.draw: reply_text(row, one.choice) for one in said}
        return self.enough.needed(row, [by_draw.get(draw) for draw in range(self.num_draws)])

    # ---- asking ----

    async def run(self, on_progress: OnProgress, stop_asked: Callable[[], bool]) -> None:
        """Ask for all that is left, and commit every shard that is whole."""
        assert self.journal is not None
        committer = self.committer = asyncio.create_task(self._commit_all())
        try:
            if any(shard.left for shard in self.shards):
                async with open_endpoint(self.settings) as endpoint:
                    desk = RetryingClient.of(endpoint, self.on_message, self.tally.cost)
                    meter = _ReplyMeter(self, desk, on_progress)
                    if self.settings.mode == "batch":
                        await self._ask_in_batches(endpoint, meter, stop_asked)
                    else:
                        await self._ask_all(desk, meter, stop_asked)
        finally:
            self.closing = True
            self.changed.set()
            await committer
        on_progress(Progress("label", self.total, self.total, "replies", 0.0, 0.0))

    async def _ask_all(self, desk: RetryingClient, meter: _ReplyMeter, stop_asked: Callable[[], bool]) -> None:
        assert self.journal is not None
        todo = self._todo()
        workers = [asyncio.create_task(self._work(desk, todo)) for _ in range(self.settings.concurrency)]
        try:
            waiting = set(workers)
            while waiting:
                ended, waiting = await asyncio.wait(waiting, timeout=TICK, return_when=asyncio.FIRST_EXCEPTION)
                for worker in ended:
                    worker.result()
                if self.committer.done():
                    self.committer.result()
                await self._sync()
                meter.tell()
                if stop_asked():
                    raise Stopped("stopped while asking; every answer is kept. Run the same command again to go on.")
        finally:
            self.closing = True
            await settle(workers, desk, STOP_SECONDS)
            lost = desk.ledger.spent - self.tally.cost
            if lost > 1e-9 * desk.ledger.spent:  # attempts of requests that did not end: the next sitting must know
                self._append({"keys": [], "cost": lost})
            await self._sync()
            self._write_tally(desk.troubles)

    async def _ask_in_batches(self, endpoint: Endpoint, meter: _ReplyMeter, stop_asked: Callable[[], bool]) -> None:
        sink, folder = _Sink(self, meter), self.writer.path
        try:
            await ask_in_batches(endpoint, sink, folder, on_message=self.on_message, stop_asked=stop_asked)
        finally:
            await self._sync()
            self._write_tally(Counter())

    def _todo(self) -> Iterator[tuple[_Shard, Row, list[int]]]:
        """What is neither in the journal nor asked, in the order of the plan."""
        assert self.journal is not None
        for shard in self.shards:
            if not shard.left:
                continue
            for row in shard.rows:
                draws = self._missing(row)
                size = self.num_draws if self.enough else self.group  # one after the other, or side by side
                while draws:
                    group, draws = draws[:size], draws[size:]
                    yield shard, row, group

    async def _work(self, desk: RetryingClient, todo: Iterator[tuple[_Shard, Row, list[int]]]) -> None:
        for shard, row, draws in todo:
            while draws:
                if self.closing:
                    return
                now, later = draws[: self.group], draws[self.group :]
                draws = await self._ask(desk, shard, row, now) + later
                if self.enough and draws and await asyncio.to_thread(self._has_enough, row):
                    self._spare(shard, draws)
                    break

    def _has_enough(self, row: Row) -> bool:
        return self._needed(row, self._replies(row)[0]) is not None

    def _spare(self, shard: _Shard, draws: list[int]) -> None:
        self.done += len(draws)
        shard.left -= len(draws)
        if not shard.left:
            self.changed.set()

    async def _ask(self, desk: RetryingClient, shard: _Shard, row: Row, draws: list[int]) -> list[int]:
        """Ask for some draws of a row and write down what came; returns those that did not come."""
        return self.take(shard, row, draws, await desk.ask(self.ask_of(row, draws)))

    def ask_of(self, row: Row, draws: Sequence[int]) -> ApiRequest:
        """The request for some draws of a row."""
        if self.keeping.ask is not None:
            return self.keeping.ask(row, draws)
        return ask_of(self.recipe, row, draws, self.keeping.logprobs)

    def take(self, shard: _Shard, row: Row, draws: list[int], outcome: RequestOutcome) -> list[int]:
        """Write down what came of a request for some draws of a row; returns those that did not come."""
        found = outcome.found
        entry: dict[str, Any] = {"row": row.id, "draw": draws[0], "cost": outcome.cost, "attempts": outcome.attempts}
        if isinstance(found, ApiReply):
            got = len(found.choices)
            entry |= {"answer": answer_to_json(found)}
        else:
            got = len(draws)
            entry |= {"failed": {"kind": found.kind, "reason": found.reason}}
        self._append({"keys": [self._key(row, draw) for draw in draws[:got]], **entry})
        self.done += got
        shard.left -= got
        if not shard.left:
            self.changed.set()
        if got < len(draws) and self.group > 1:  # n is not heeded
            self.group = 1
            self.on_message(
                f"{name_of(self.settings)} gives {got} of {len(draws)} replies at once: they are asked for one by one. "
                "Set teacher.samples_per_request to 1."
            )
        self._refuse_change()
        self._refuse_failures()
        return draws[got:]

    def _append(self, entry: dict[str, Any]) -> None:
        assert self.journal is not None
        self.journal.append(entry)
        self.tally.add(entry)

    async def _sync(self) -> None:
        assert self.journal is not None
        done = self.done
        await asyncio.to_thread(self.journal.sync)
        self.durable = done

    def _refuse_change(self) -> None:
        """The first answers say who the teacher is."""
        who = set(self.tally.answered_by)
        if self.before and who - self.before:
            if self.settings.on_change == "stop":
                raise TeacherError(self._mixed())
            self.on_message(f"the teacher changed: {', '.join(sorted(who))}; every trace says who answered")
        self.before = who

    def _mixed(self) -> str:
        who = ", ".join(f"{name} ({count} replies)" for name, count in self.tally.answered_by.items())
        return (
            f"the teacher changed: {who} answered. Replies of several teachers are not mixed silently. Set "
            f"teacher.on_change=annotate to go on, or move {self.writer.path} away to begin anew; nothing is lost."
        )

    def _refuse_failures(self) -> None:
        failed, ended = len(self.tally.failed_keys), self.tally.ended
        if failed > self.settings.max_failed * ended and (ended >= ENOUGH or self.done >= self.total):
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.tally.failed.most_common())
            allowed = f"teacher.max_failed={self.settings.max_failed:g}"
            raise TeacherError(
                f"{failed} of {ended} replies failed ({kinds}), more than {allowed} allows. Their reasons are in "
                f"{self.writer.path / 'journal.jsonl'}. Cure the cause and set teacher.retry_failed=true, or raise "
                "teacher.max_failed; what was answered is kept."
            )

    # ---- committing ----

    async def _commit_all(self) -> None:
        """Commit the shards in the order of the plan, each when all its replies are there."""
        for shard in self.shards:
            while shard.left:
                if self.closing:
                    return
                self.changed.clear()
                await self.changed.wait()
            if shard.rows:
                await asyncio.to_thread(self._commit, shard)

    def _commit(self, shard: _Shard) -> None:
        assert self.journal is not None
        self.journal.sync()
        traces, records, lacking = [], [], []
        for row in shard.rows:
            said, failed = self._replies(row)
            if self.enough and (needed := self._needed(row, said)) is not None:  # however many were asked at once
                said = [one for one in said if one.draw < needed]
                failed = [one for one in failed if one[0] < needed]
            made = self.keeping.make(row, said)
            traces += [trace for trace, _ in made.traces]
            records += [record for _, record in made.traces]
            failed += [(draw, "unusable", reason) for draw, reason in made.failed]
            facts = {"shard": shard.number, "row": row.id, "source": row.source}
            lacking += [{**facts, "draw": draw, "kind": kind, "reason": why} for draw, kind, why in sorted(failed)]
        self.failures.add(lacking)
        self.writer.commit(shard.number, traces, records)
        self.journal.forget(self._key(row, draw) for row in shard.rows for draw in range(self.num_draws))
        shard.rows = []

    def _replies(self, row: Row) -> tuple[list[EndpointReply], list[tuple[int, str, str]]]:
        """What was said to a row, and the draws that failed: (draw, kind, reason)."""
        assert self.journal is not None
        said, failed = [], []
        entry: dict[str, Any] = {"keys": []}
        for draw in range(self.num_draws):
            key = self._key(row, draw)
            if self.enough and key not in self.journal:
                continue
            entry = entry if key in entry["keys"] else self.journal.read(key)
            if "failed" in entry:
                failed.append((draw, entry["failed"]["kind"], entry["failed"]["reason"]))
                continue
            answer = answer_from_json(entry["answer"])
            choice = answer.choices[entry["keys"].index(key)]
            said.append(EndpointReply(draw, choice, answer.model, answer.system_fingerprint))
        return said, failed

    def _write_tally(self, troubles: Counter[str]) -> None:
        facts = {
            "replies": self.total,
            **({"spared": self.done - self.tally.ended} if self.enough else {}),
            **self.tally.facts(self.settings.prices),
            "troubles_of_last_sitting": dict(troubles),
        }
        atomic_write(self.writer.path / "asked.json", json.dumps(facts, indent=1, ensure_ascii=False))

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()


class _Sink:
    """The same job as batches see it."""

    def __init__(self, asking: _Asking, meter: _ReplyMeter) -> None:
        self.asking, self.meter = asking, meter
        self.homes = {row.id: (shard, row) for shard in asking.shards for row in shard.rows}

    @property
    def spent(self) -> float:
        return self.asking.tally.cost

    def request(self, row: str, draws: Sequence[int]) -> Request | None:
        if row not in self.homes:
            return None
        asking, home = self.asking, self.homes[row][1]
        return Request(asking._key(home, draws[0]), row, tuple(draws), asking.ask_of(home, draws))

    def todo(self) -> list[Request]:
        found = [self.request(row.id, draws) for _, row, draws in self.asking._todo()]
        return [request for request in found if request is not None]

    def take(self, request: Request, outcome: RequestOutcome) -> None:
        shard, row = self.homes[request.row]
        self.asking.take(shard, row, list(request.draws), outcome)

    async def sync(self) -> None:
        await self.asking._sync()

    def tell(self, waiting: int) -> None:
        self.meter.tell(waiting)


class _ReplyMeter:
    """Progress over replies that are durable, with the rate of this sitting."""

    def __init__(self, asking: _Asking, desk: RetryingClient, on_progress: OnProgress) -> None:
        self.asking, self.desk, self.on_progress = asking, desk, on_progress
        self.begun, self.first = time.monotonic(), asking.durable

    def tell(self, waiting: int = 0) -> None:
        """`waiting` replies are ready at the provider."""
        asking = self.asking
        rate = (asking.durable - self.first) / max(time.monotonic() - self.begun, 1e-9)
        eta = (asking.total - asking.durable) / rate if rate else 0.0
        values = {"in_flight": float(self.desk.throttle.in_flight), "at_once": float(int(self.desk.throttle.limit))}
        if asking.settings.prices:
            values["cost"] = self.desk.ledger.spent
        self.on_progress(Progress("label", asking.durable, asking.total, "replies", rate, eta, values))
