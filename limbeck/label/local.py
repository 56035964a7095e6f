"""The label stage: the teacher reads or writes every row, and what it says goes into the trace store."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.errors import DataError, Stopped
from limbeck.label.plan import plan_shards, store_header, support_spec
from limbeck.label.rejection import enough_right
from limbeck.label.votes import vote
from limbeck.losses.chunked import iter_logits
from limbeck.losses.support import Support, SupportSpec, join, select, split
from limbeck.recipe import GenerateMode, Recipe, Votes
from limbeck.store import StoreHeader, StoreWriter, TraceStore, context_hash, trace_id
from limbeck.system.atomic import fingerprint
from limbeck.text.packing import labels_of, pack, plan_batches
from limbeck.types import Progress, Reply, Row, Sampling, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from limbeck.label.rejection import RejectionSampler
    from limbeck.models.hf import HfLM
    from limbeck.types import OnProgress


@dataclass
class _Meter:
    """Progress over tokens, with the rate of this process only."""

    total: int
    done: int
    on_progress: OnProgress
    begun: float
    fresh: int = 0

    def add(self, tokens: int, estimate: int) -> None:
        """`tokens` really processed, for `estimate` of the planned total."""
        self.done += estimate
        self.fresh += tokens
        rate = self.fresh / max(time.monotonic() - self.begun, 1e-9)
        left = (self.total - self.done) * (self.fresh / max(self.fresh, 1))
        self.on_progress(Progress("label", self.done, self.total, "tokens", rate, left / max(rate, 1e-9)))


def run_label(
    recipe: Recipe,
    path: Path,
    teacher: HfLM,
    rows: Sequence[Row],
    *,
    on_progress: OnProgress,
    on_message: Callable[[str], None],
    stop_asked: Callable[[], bool] = lambda: False,
) -> TraceStore:
    """Fill the store at `path` with the traces of `rows`; what is there already is verified and kept.

    Damaged shards are named and labelled anew, alone. Raises Stopped when a stop was asked for (finished shards are
    kept), StoreError when `path` holds another teacher's traces.
    """
    writer = StoreWriter.open(path, store_header(recipe, teacher), plan_shards(recipe, rows))
    for shard, why in writer.drop_damaged().items():
        on_message(f"shard {shard} of {path.name} is labelled again: {why}")
    by_id = {row.id: row for row in rows}
    cost = {row.id: _cost(recipe, row) for row in rows}
    pending = [(shard, [by_id[i] for i in ids if i in by_id]) for shard, ids in writer.pending()]
    total = sum(cost.values())
    left = sum(cost[row.id] for _, shard_rows in pending for row in shard_rows)
    meter = _Meter(total, total - left, on_progress, time.monotonic())
    for shard, shard_rows in pending:
        if not shard_rows:
            continue
        seed = int(fingerprint(recipe.seed, [row.id for row in shard_rows])[:15], 16)
        traces, records = label_rows(
            recipe, writer.header, teacher, shard_rows, seed, meter=meter, stop_asked=stop_asked
        )
        writer.commit(shard, traces, records)
    return TraceStore.open(path, verify=False)


def _cost(recipe: Recipe, row: Row) -> int:
    mode = recipe.trace.mode
    return (len(row.ids) + mode.max_tokens) * mode.n if isinstance(mode, GenerateMode) else len(row.ids)


def label_rows(
    recipe: Recipe,
    header: StoreHeader,
    teacher: HfLM,
    rows: Sequence[Row],
    seed: int,
    *,
    meter: _Meter | None = None,
    stop_asked: Callable[[], bool] = lambda: False,
) -> tuple[list[Trace], list[bytes]]:
    """Traces and encoded records of one shard's rows: a pure function of teacher, rows and seed."""
    draws = torch.Generator().manual_seed(seed)
    rounding = np.random.default_rng(seed)
    spec, votes = support_spec(recipe.trace.target), isinstance(recipe.trace.target, Votes)
    traces: list[Trace] = []
    records: list[bytes] = []
    lengths = [_cost(recipe, row) for row in rows]
    with enough_right(recipe) as enough:
        for number, indices in enumerate(plan_batches(lengths, recipe.trace.batch_tokens)):
            if stop_asked():
                raise Stopped("stopped while labelling; finished shards are kept. Run the same command again to go on.")
            batch_rows = [rows[index] for index in indices]
            fresh = _speak(recipe, header, teacher, batch_rows, seed + number, enough)
            told = sum(len(trace.ids) for trace in fresh)
            if votes or spec.head or spec.draws:
                if votes:
                    fresh, supports = zip(*vote(fresh), strict=True)
                else:
                    supports = score(teacher, fresh, spec, header.temperature, draws)
                encode = header.codec.encode
                pairs = zip(supports, fresh, strict=True)
                records += [encode(s, labels_of(t), t.context_hash, rounding) for s, t in pairs]
            else:
                records += [bare_record(trace) for trace in fresh]
            traces += fresh
            if meter is not None:
                meter.add(told, sum(lengths[index] for index in indices))
    return traces, records


def score(
    teacher: HfLM, traces: Sequence[Row | Trace], spec: SupportSpec, temperature: float, generator: torch.Generator
) -> list[Support]:
    """The teacher's selected distributions on given text (teacher forcing), one Support per trace. The log-probs are
    raw: before temperature of sampling, top-p or penalties."""
    hidden_ND = teacher.hidden(pack(traces, device=teacher.device))
    parts = [select(z_nV, spec, temperature, generator) for _, z_nV in iter_logits(hidden_ND, teacher.head)]
    return split(join(parts), [trace.num_supervised for trace in traces])


def _speak(
    recipe: Recipe, header: StoreHeader, teacher: HfLM, rows: Sequence[Row], seed: int, enough: RejectionSampler | None
) -> list[Trace]:
    """Traces without distributions: the rows themselves, or the teacher's replies to them."""
    mode = recipe.trace.mode
    if not isinstance(mode, GenerateMode):
        return [make_trace(row, header, row.ids, row.spans, row.text, 0, {}) for row in rows]
    sampling = Sampling(mode.temperature, mode.top_p, mode.n, mode.max_tokens, mode.stop, seed)
    if enough is None:
        said = teacher.generate([row.ids for row in rows], sampling)
    else:
        said = _until_right(teacher, rows, sampling, enough)
    traces = []
    for row, replies in zip(rows, said, strict=True):
        for draw, reply in enumerate(replies):
            if not len(reply.ids):
                raise DataError(f"{row.source}: the teacher answered with no token at all; remove the row.")
            ids = np.concatenate([row.ids, reply.ids]).astype(np.int32)
            meta = {"draw": draw, "finish_reason": reply.finish_reason, "reply": reply.text}
            traces.append(make_trace(row, header, ids, ((len(row.ids), len(ids)),), row.text + reply.text, draw, meta))
    return traces


def _until_right(teacher: HfLM, rows: Sequence[Row], sampling: Sampling, enough: RejectionSampler) -> list[list[Reply]]:
    """One reply to each row, then another one to each that has not enough right ones yet, at most `sampling.n`."""
    said: list[list[Reply]] = [[] for _ in rows]
    open_rows = list(range(len(rows)))
    for draw in range(sampling.n):
        seed = int(fingerprint(sampling.seed, draw)[:15], 16)
        fresh = teacher.generate([rows[i].ids for i in open_rows], replace(sampling, n=1, seed=seed))
        for i, replies in zip(open_rows, fresh, strict=True):
            said[i] += replies
        open_rows = [i for i in open_rows if enough.needed(rows[i], [reply.text for reply in said[i]]) is None]
        if not open_rows:
            break
    return said


def bare_record(trace: Trace) -> bytes:
    """The record of a trace of which nothing but text is kept."""
    return bytes.fromhex(trace.context_hash)


def make_trace(row: Row, header: StoreHeader, ids: np.ndarray, spans: tuple, text: str, draw: int, meta: dict) -> Trace:
    """What an LM said to a row: `ids` are prompt and reply, `spans` the reply, `text` both."""
    return Trace(
        id=trace_id(row.id, header, draw),
        row_id=row.id,
        split=row.split,
        topic=row.topic,
        text=text,
        ids=ids,
        spans=spans,
        lm=header.lm,
        tokenizer=header.tokenizer_hash,
        context_hash=context_hash(ids, spans),
        meta={"source": row.source, **meta},
    )
