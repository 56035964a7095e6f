"""The label stage with a teacher behind an endpoint: every reply is asked for once, and what came becomes the store.

Each answer is written to the reply log before it counts. Shards are made of the log, in the order of the plan, as soon
as all their replies are there: what is on disk in the end does not depend on when and in which order answers came, nor
on how often the job was killed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from limbeck.endpoint.client import open_endpoint
from limbeck.endpoint.retry import RetryingClient, run_loop, settle
from limbeck.errors import Stopped, TeacherError
from limbeck.label.committer import fill_store
from limbeck.label.remote_batches import ask_in_batches
from limbeck.label.session import open_session
from limbeck.label.usage import brief
from limbeck.system.jsonl import read_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from limbeck.endpoint.client import Endpoint
    from limbeck.label.committer import Committer, WorkList
    from limbeck.label.draws import Request
    from limbeck.label.replies import TraceBuilder
    from limbeck.label.session import AskSession
    from limbeck.recipe import Recipe
    from limbeck.store import TraceStore
    from limbeck.types import Callbacks, Row

TICK = 0.05
"""Seconds between fsyncs of the reply log: one serves all answers of that time."""

STOP_SECONDS = 15.0
"""How long answers under way are waited for when the job stops; torchrun kills after 30."""


def run_ask(recipe: Recipe, path: Path, builder: TraceBuilder, rows: Sequence[Row], callbacks: Callbacks) -> TraceStore:
    """Fill the store at `path` with replies to `rows`: see `fill_store`. What is in its reply log is not asked again.

    Raises Stopped when a stop was asked for, BudgetError before `max_cost` would be exceeded, TeacherError when the
    endpoint refuses everything, fails for too long, is another one than before, or gave nothing that a student can
    learn; whatever was answered is kept.
    """

    def runner(work: WorkList, committer: Committer) -> None:
        with open_session(recipe, builder, work, committer, callbacks) as session:
            run_loop(_run(session, callbacks.stop_asked))

    store = fill_store(recipe, path, header=builder.header, rows=rows, runner=runner, on_message=callbacks.on_message)
    failed = path / "failed.jsonl"
    lines = list(read_values(failed))
    if not store.traces("train") and any(row.split == "train" for row in rows):
        raise TeacherError(
            f"not one reply to the training rows can be learnt from ({_reasons(lines) or 'none came'}). Each has its "
            f"reason in {failed}. Cure the cause and set teacher.retry_failed=true; what was answered is kept."
        )
    if lines:
        callbacks.on_message(f"{len(lines)} replies are missing ({_reasons(lines)}); each has its reason in {failed}")
    return store


def _reasons(lines: Sequence[dict[str, Any]]) -> str:
    """Those that came up most, of lines of failed.jsonl."""
    reasons = Counter(f"{one['kind']}: {brief(one['reason'].removeprefix(one['source'] + ': '))}" for one in lines)
    return "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))


async def _run(session: AskSession, stop_asked: Callable[[], bool]) -> None:
    """Ask for all that is left, and commit every shard that is whole meanwhile."""
    ended = asyncio.Event()
    commits = asyncio.create_task(_commit_all(session, ended))

    def stop() -> bool:
        if commits.done():  # it failed: a full disk
            commits.result()
        return stop_asked()

    try:
        if any(session.draws.left.values()):
            async with open_endpoint(session.settings) as endpoint:
                if session.settings.mode == "batch":
                    await _ask_batches(session, endpoint, stop)
                else:
                    await _ask_live(session, endpoint, stop)
        else:
            session.write_usage(Counter())
    finally:
        ended.set()
        session.changed.set()
        await commits
    await session.sync()
    session.report()


async def _commit_all(session: AskSession, ended: asyncio.Event) -> None:
    """Commit shards as they become whole, in a thread beside the asking; those that are whole at the end as well."""
    while True:
        is_last = ended.is_set()
        session.changed.clear()
        for shard in await asyncio.to_thread(session.committer.commit_ready):
            session.draws.forget(shard)
        if is_last:
            return
        await session.changed.wait()


async def _ask_batches(session: AskSession, endpoint: Endpoint, stop_asked: Callable[[], bool]) -> None:
    try:
        await ask_in_batches(endpoint, session, stop_asked)
    finally:
        await session.sync()
        session.write_usage(Counter())


async def _ask_live(session: AskSession, endpoint: Endpoint, stop_asked: Callable[[], bool]) -> None:
    """Workers take one request after the other, until there is none, one of them fails, or a stop is asked for."""
    client = RetryingClient.of(endpoint, session.on_message, session.tally.cost)
    todo, ended = session.requests(), asyncio.Event()
    workers = [asyncio.create_task(_work(session, client, todo, ended)) for _ in range(session.settings.concurrency)]
    try:
        waiting = set(workers)
        while waiting:
            finished, waiting = await asyncio.wait(waiting, timeout=TICK, return_when=asyncio.FIRST_EXCEPTION)
            for worker in finished:
                worker.result()
            await session.sync()
            spent = {"cost": client.ledger.spent} if session.settings.prices else {}
            session.report(in_flight=client.throttle.in_flight, at_once=int(client.throttle.limit), **spent)
            if stop_asked():
                raise Stopped("stopped while asking; every answer is kept. Run the same command again to go on.")
    finally:
        ended.set()
        await settle(workers, client, STOP_SECONDS)
        lost = client.ledger.spent - session.tally.cost
        if lost > 1e-9 * client.ledger.spent:  # attempts of requests that did not end: the next sitting must know
            session.write({"keys": [], "cost": lost})
        await session.sync()
        session.write_usage(client.troubles)


async def _work(session: AskSession, client: RetryingClient, todo: Iterator[Request], ended: asyncio.Event) -> None:
    """One request at a time; with rejection sampling the draws of a row one after the other, until enough are right."""
    for request in todo:
        left = request.draws
        while left:
            if ended.is_set():
                return
            now = replace(request, draws=left[: session.samples])
            outcome = await client.ask(session.ask_of(now))
            left = session.take(now, outcome) + left[len(now.draws) :]
            if session.draws.rejection and left and await asyncio.to_thread(session.has_enough, now, outcome):
                session.close(request, len(left))
                break
