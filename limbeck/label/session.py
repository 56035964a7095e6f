"""One sitting at an endpoint, live or in batches: requests come from the open draws, outcomes go into the reply log.

RUN/traces/journal.jsonl  the reply log: what was paid for, answered or finally failed
RUN/traces/failed.jsonl   rows without a usable reply, with the reason, by shard
RUN/traces/asked.json     counts: requests, troubles, tokens, cost, finish reasons, what is unusable, who answered
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from limbeck.endpoint.messages import ApiReply, answer_to_json
from limbeck.label.committer import BuiltShard, Committer
from limbeck.label.draws import OpenDraws
from limbeck.label.preflight import cost_of_probe, kept_record
from limbeck.label.rejection import rejection_sampler
from limbeck.label.replies import EndpointReply, TraceBuilder, ask_of, failures_and_replies, reply_text
from limbeck.label.usage import Tally, refuse_failures, refuse_mixture
from limbeck.recipe import GenerateMode, OpenAITeacher, Recipe, name_of
from limbeck.store import trace_id
from limbeck.store.reply_log import JOURNAL, ReplyLog
from limbeck.system.atomic import atomic_write
from limbeck.system.meter import Meter
from limbeck.text.finish import UNKNOWN, is_understood

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from limbeck.endpoint.messages import ApiRequest
    from limbeck.endpoint.retry import RequestOutcome
    from limbeck.label.committer import Shard, WorkList
    from limbeck.label.draws import Request
    from limbeck.store.reply_log import Entry
    from limbeck.types import Callbacks


@dataclass
class AskSession:
    """What both ways of asking share. `samples` draws are asked for at once; one, where the endpoint gives no more."""

    recipe: Recipe
    settings: OpenAITeacher
    builder: TraceBuilder
    draws: OpenDraws
    tally: Tally
    committer: Committer
    meter: Meter
    on_message: Callable[[str], None]
    samples: int
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # a shard is whole, or the end has come
    strange: set[str] = field(default_factory=set)  # finish reasons that are not known, once told
    durable: tuple[int, int] = (0, 0)  # draws that are done, and taken, and cannot be lost by a power cut

    @property
    def folder(self) -> Path:
        return self.committer.writer.path

    def requests(self) -> Iterator[Request]:
        """What is still to be asked. With rejection sampling all draws of a row: they are asked one after the other."""
        return self.draws.requests(self.draws.num_draws if self.draws.rejection else self.samples)

    def ask_of(self, request: Request) -> ApiRequest:
        """The request as the endpoint reads it."""
        if self.builder.ask is not None:
            return self.builder.ask(request.row, request.draws)
        return ask_of(self.recipe, request.row, request.draws, self.builder.logprobs)

    def take(self, request: Request, outcome: RequestOutcome) -> tuple[int, ...]:
        """Write down what came of a request; returns the draws that did not come. Raises TeacherError when another
        teacher answered, or too many replies failed."""
        before = set(self.tally.answered_by)
        got = self.record(request, outcome)
        if got < len(request.draws) and self.samples > 1:  # n is not heeded
            self.samples = 1
            self.on_message(
                f"{name_of(self.settings)} gives {got} of {len(request.draws)} replies at once: they are asked for one "
                "by one. Set teacher.samples_per_request to 1."
            )
        self._judge_teacher(before)
        self.judge_failures()
        return request.draws[got:]

    def record(self, request: Request, outcome: RequestOutcome) -> int:
        """Write down what came of a request, with what cannot be used of it; returns how many draws have ended."""
        found, draws = outcome.found, request.draws
        keys = [self.draws.key(request.row, draw) for draw in draws]
        entry: Entry = {"row": request.row.id, "draw": draws[0], "cost": outcome.cost, "attempts": outcome.attempts}
        if isinstance(found, ApiReply):
            got = len(found.choices)
            entry |= {"answer": answer_to_json(found)}
            if unusable := self._unusable(request, found, keys):
                entry["unusable"] = unusable
            self._tell_strange(found)
        else:
            got = len(draws)
            entry |= {"failed": {"kind": found.kind, "reason": found.reason}}
        self.write({"keys": keys[:got], **entry})
        self.draws.taken += got
        self.close(request, got)
        return got

    def _unusable(self, request: Request, found: ApiReply, keys: list[str]) -> dict[str, str]:
        """Why choices of an answer will not become traces, by key: they were paid for, and no shard will have them."""
        place, faults = f"{request.row.source}: ", {}
        for key, draw, choice in zip(keys, request.draws, found.choices, strict=False):
            said = EndpointReply(draw, choice, found.model, found.system_fingerprint)
            if why := self.builder.fault(request.row, said):
                faults[key] = why.removeprefix(place)
        return faults

    def _tell_strange(self, found: ApiReply) -> None:
        """A reason that nobody knows is told once, by its own name."""
        for reason in {choice.finish_reason for choice in found.choices if not is_understood(choice.finish_reason)}:
            if reason not in self.strange:
                self.strange.add(reason)
                said = "gives no reason why a reply ended" if reason == UNKNOWN else f"ends replies with {reason!r}"
                self.on_message(
                    f"{name_of(self.settings)} {said}: whether they came to their end is not known, so that they are "
                    "learnt without the end of their turn. They are counted in asked.json"
                )

    def has_enough(self, request: Request, outcome: RequestOutcome) -> bool:
        """Whether the row of a request has enough right replies now. Judges the fresh ones, and no others."""
        rejection = self.draws.rejection
        assert rejection is not None
        choices = outcome.found.choices if isinstance(outcome.found, ApiReply) else ()
        return any([rejection.add(request.row, reply_text(request.row, choice)) for choice in choices])

    def close(self, request: Request, num: int) -> None:
        """Nothing more is asked for `num` draws of a request: they came, failed, or are not needed."""
        if self.draws.close(request.shard, num):
            self._add(request.shard)

    def write(self, entry: dict[str, Any]) -> None:
        self.draws.log.append(entry)
        self.tally.add(entry)

    async def sync(self) -> None:
        """Make durable what came, in a thread: the disk may take its time."""
        now = self.draws.done, self.draws.taken
        await asyncio.to_thread(self.draws.log.sync)
        self.durable = now

    def report(self, **values: float) -> None:
        """Progress over what is durable."""
        done, taken = self.durable
        self.meter.add(done - self.meter.done, taken - self.meter.processed, values)

    def write_usage(self, troubles: Counter[str]) -> None:
        facts = {
            "replies": self.draws.total,
            **({"spared": self.draws.done - self.tally.ended} if self.draws.rejection else {}),
            **self.tally.facts(self.settings.prices),
            "troubles_of_last_sitting": dict(troubles),
        }
        atomic_write(self.folder / "asked.json", json.dumps(facts, indent=1, ensure_ascii=False))

    def _judge_teacher(self, before: set[str]) -> None:
        who = set(self.tally.answered_by)
        if before and who - before:
            refuse_mixture(self.tally, self.settings, self.folder)
            self.on_message(f"the teacher changed: {', '.join(sorted(who))}; every trace says who answered")

    def judge_failures(self) -> None:
        """Raises TeacherError when too many replies failed."""
        refuse_failures(self.tally, self.settings, self.folder, is_last=self.draws.done >= self.draws.total)

    def _add(self, shard: Shard) -> None:
        self.committer.add(shard, partial(build_shard, shard, self.draws, self.builder))
        self.changed.set()


def build_shard(shard: Shard, draws: OpenDraws, builder: TraceBuilder) -> BuiltShard:
    """A shard all of whose replies are in the log: a function of them alone, whenever they came. They are made durable
    before it is."""
    draws.log.sync()
    traces, records, lacking = [], [], []
    for row in shard.rows:
        keys = dict(enumerate(draws.keys(row)))
        if draws.rejection:
            keys = {draw: key for draw, key in keys.items() if key in draws.log}
        failed, replies = failures_and_replies(draws.log, keys)
        if draws.rejection:
            by_draw = {one.draw: reply_text(row, one.choice) for one in replies}
            needed = draws.rejection.needed(row, [by_draw.get(draw) for draw in range(draws.num_draws)])
            if needed is not None:  # however many were asked at once
                replies = [one for one in replies if one.draw < needed]
                failed = [one for one in failed if one.draw < needed]
        built = builder.make(row, replies)
        traces += [trace for trace, _ in built.traces]
        records += [record for _, record in built.traces]
        everything = sorted([*failed, *((draw, "unusable", reason) for draw, reason in built.failed)])
        facts = {"shard": shard.number, "row": row.id, "source": row.source}
        lacking += [{**facts, "draw": draw, "kind": kind, "reason": reason} for draw, kind, reason in everything]
    return BuiltShard(traces, records, lacking)


@contextlib.contextmanager
def open_session(
    recipe: Recipe, builder: TraceBuilder, work: WorkList, committer: Committer, callbacks: Callbacks
) -> Iterator[AskSession]:
    """Read the reply log, and find out what is left. Raises TeacherError when several teachers are in the log, and
    that is not allowed."""
    teacher, mode, folder = recipe.teacher, recipe.trace.mode, committer.writer.path
    assert isinstance(teacher, OpenAITeacher)
    settings = teacher.model_copy(update={"extra_body": {**builder.extra_body, **teacher.extra_body}})
    tally = Tally()
    with rejection_sampler(recipe) as rejection, _open_log(folder, settings, work, tally) as log:
        for line in log.damaged:
            callbacks.on_message(f"line {line} of {log.path.name} is damaged; its replies are asked for again")
        num_draws = mode.n if isinstance(mode, GenerateMode) else 1
        if settings.retry_failed:  # they get another chance before their share is judged
            tally.forgive(_still_unusable(work, log, builder, num_draws))
            if usable := [key for key in tally.unusable if key in log]:  # by the rules of today
                entry = {"keys": [], "cost": 0.0, "usable": usable}
                log.append(entry)
                tally.add(entry)
        draws = OpenDraws(work, log, builder.header, num_draws, rejection)
        refuse_mixture(tally, settings, folder)
        _charge_probe(teacher, folder, tally, log)
        meter = Meter("label", "replies", draws.total, callbacks.on_progress, done=draws.done)
        session = AskSession(
            recipe, settings, builder, draws, tally, committer, meter, callbacks.on_message,
            settings.samples_per_request, durable=(draws.done, 0),
        )  # fmt: skip
        for shard in work.shards:
            if not draws.left[shard.number]:
                session._add(shard)
        yield session


def _still_unusable(work: WorkList, log: ReplyLog, builder: TraceBuilder, num_draws: int) -> list[str]:
    """The draws of open rows whose replies cannot be used, by the rules of today, taken out of the log: to be asked
    again. What can be used now is kept: it is paid."""
    found = []
    for shard in work.shards:
        for row in shard.rows:
            keys = {draw: trace_id(row.id, builder.header, draw) for draw in range(num_draws)}
            keys = {draw: key for draw, key in keys.items() if key in log}
            _, replies = failures_and_replies(log, keys)
            found += [keys[one.draw] for one in replies if builder.fault(row, one)]
    log.forget(found)
    return found


def _charge_probe(teacher: OpenAITeacher, folder: Path, tally: Tally, log: ReplyLog) -> None:
    """What it cost to find out what the endpoint can do, once: it counts for `max_cost` like every other request."""
    record = kept_record(teacher, folder)
    if record is not None and record.identity not in tally.probes:
        cost = cost_of_probe(teacher, record)
        entry = {"keys": [], "cost": cost, "attempts": record.requests, "probe": record.identity}
        log.append(entry)
        tally.add(entry)


@contextlib.contextmanager
def _open_log(folder: Path, settings: OpenAITeacher, work: WorkList, tally: Tally) -> Iterator[ReplyLog]:
    """The reply log, read once: every entry is counted, and those of rows whose shard is not there are remembered."""
    open_rows = {row.id for shard in work.shards for row in shard.rows}

    def on_entry(entry: Entry) -> bool:
        tally.add(entry)
        return entry.get("row") in open_rows and not (settings.retry_failed and "failed" in entry)

    with contextlib.closing(ReplyLog.open(folder / JOURNAL, on_entry)) as log:
        yield log
