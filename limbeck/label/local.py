"""The label stage: the teacher reads or writes every row, and what it says goes into the trace store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.errors import DataError, Stopped, TeacherError
from limbeck.label.committer import BuiltShard, Committer, fill_store
from limbeck.label.plan import store_header, support_spec
from limbeck.label.rejection import rejection_sampler
from limbeck.label.traces import bare_record, make_trace, vote
from limbeck.losses.chunked import iter_logits
from limbeck.losses.support import Support, SupportSpec, join, select, split
from limbeck.models.finite import advice
from limbeck.recipe import GenerateMode, Recipe, Votes
from limbeck.system.atomic import fingerprint
from limbeck.system.meter import Meter
from limbeck.text.packing import labels_of, pack, plan_batches
from limbeck.types import Reply, Row, Sampling, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from limbeck.label.committer import WorkList
    from limbeck.label.rejection import RejectionSampler
    from limbeck.models.hf import HfLM
    from limbeck.store import StoreHeader, TraceStore
    from limbeck.types import Callbacks


def run_label(recipe: Recipe, path: Path, teacher: HfLM, rows: Sequence[Row], callbacks: Callbacks) -> TraceStore:
    """Fill the store at `path` with the traces of `rows`, shard by shard in this process: see `fill_store`.

    Raises Stopped when a stop was asked for (finished shards are kept).
    """
    header = store_header(recipe, teacher)

    def runner(work: WorkList, committer: Committer) -> None:
        left = sum(_cost(recipe, row) for shard in work.shards for row in shard.rows)
        total = sum(_cost(recipe, row) for row in work.rows)
        meter = Meter("label", "tokens", total, callbacks.on_progress, done=total - left)
        for shard in work.shards:
            seed = int(fingerprint(recipe.seed, [row.id for row in shard.rows])[:15], 16)
            stop = callbacks.stop_asked
            built = label_rows(recipe, header, teacher, shard.rows, seed, meter=meter, stop_asked=stop)
            committer.add(shard, lambda built=built: BuiltShard(*built))
            committer.commit_ready()

    return fill_store(recipe, path, header=header, rows=rows, runner=runner, on_message=callbacks.on_message)


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
    meter: Meter | None = None,
    stop_asked: Callable[[], bool] = lambda: False,
) -> tuple[list[Trace], list[bytes]]:
    """Traces and encoded records of one shard's rows: a pure function of teacher, rows and seed."""
    draws = torch.Generator().manual_seed(seed)
    rounding = np.random.default_rng(seed)
    spec, votes = support_spec(recipe.trace.target), isinstance(recipe.trace.target, Votes)
    traces: list[Trace] = []
    records: list[bytes] = []
    lengths = [_cost(recipe, row) for row in rows]
    with rejection_sampler(recipe) as rejection:
        for number, indices in enumerate(plan_batches(lengths, recipe.trace.batch_tokens)):
            if stop_asked():
                raise Stopped("stopped while labelling; finished shards are kept. Run the same command again to go on.")
            batch_rows = [rows[index] for index in indices]
            fresh = _speak(recipe, header, teacher, batch_rows, seed + number, rejection)
            processed = sum(len(trace.ids) for trace in fresh)
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
                meter.add(sum(lengths[index] for index in indices), processed)
    return traces, records


def score(
    teacher: HfLM, traces: Sequence[Row | Trace], spec: SupportSpec, temperature: float, generator: torch.Generator
) -> list[Support]:
    """The teacher's selected distributions on given text (teacher forcing), one Support per trace. The log-probs are
    raw: before temperature of sampling, top-p or penalties. Raises TeacherError, naming row and position, for logits
    that are not numbers: nothing is drawn from them."""
    hidden_ND = teacher.hidden(pack(traces, device=teacher.device))
    parts = []
    for part, z_nV in iter_logits(hidden_ND, teacher.head):
        bad_n = ~z_nV.amax(1).isfinite()
        if bool(bad_n.any()):
            raise TeacherError(_not_numbers(teacher, traces, part.start + int(bad_n.nonzero()[0])))
        parts.append(select(z_nV, spec, temperature, generator))
    return split(join(parts), [trace.num_supervised for trace in traces])


def _not_numbers(teacher: HfLM, traces: Sequence[Row | Trace], position: int) -> str:
    """Which row the supervised position of that number, over all traces, is in, with which token it begins, and what to
    do. (Attention may carry NaN backwards, by 0 x NaN: the shortest beginning of the row that has it tells which.)"""
    for trace in traces:
        if position < trace.num_supervised:
            break
        position -= trace.num_supervised
    low, high = 1, len(trace.ids)
    while low < high:
        middle = (low + high) // 2
        found = bool(teacher.logits(trace.ids[:middle])[-1].amax().isfinite())
        low, high = (middle + 1, high) if found else (low, middle)
    token = teacher.tokenizer.convert_ids_to_tokens(int(trace.ids[low - 1]))
    return (
        f"the teacher's logits are not finite numbers from token {low} ({token!r}) on of the row that begins with "
        f"{trace.text[:60]!r}. Nothing of its shard was stored. {advice(teacher.dtype)}"
    )


def _speak(
    recipe: Recipe,
    header: StoreHeader,
    teacher: HfLM,
    rows: Sequence[Row],
    seed: int,
    rejection: RejectionSampler | None,
) -> list[Trace]:
    """Traces without distributions: the rows themselves, or the teacher's replies to them."""
    mode = recipe.trace.mode
    if not isinstance(mode, GenerateMode):
        return [make_trace(row, header, row.ids, row.spans, row.text, 0, {}) for row in rows]
    sampling = Sampling(mode.temperature, mode.top_p, mode.n, mode.max_tokens, mode.stop, seed)
    if rejection is None:
        said = teacher.generate([row.ids for row in rows], sampling)
    else:
        said = _until_right(teacher, rows, sampling, rejection)
    traces = []
    for row, replies in zip(rows, said, strict=True):
        for draw, reply in enumerate(replies):
            if not len(reply.ids):
                raise DataError(f"{row.source}: the teacher answered with no token at all; remove the row.")
            ids = np.concatenate([row.ids, reply.ids]).astype(np.int32)
            meta = {"draw": draw, "finish_reason": reply.finish_reason, "reply": reply.text}
            traces.append(make_trace(row, header, ids, ((len(row.ids), len(ids)),), row.text + reply.text, draw, meta))
    return traces


def _until_right(
    teacher: HfLM, rows: Sequence[Row], sampling: Sampling, rejection: RejectionSampler
) -> list[list[Reply]]:
    """One reply to each row, then another one to each that has not enough right ones yet, at most `sampling.n`."""
    said: list[list[Reply]] = [[] for _ in rows]
    open_rows = list(range(len(rows)))
    for draw in range(sampling.n):
        seed = int(fingerprint(sampling.seed, draw)[:15], 16)
        fresh = teacher.generate([rows[i].ids for i in open_rows], replace(sampling, n=1, seed=seed))
        for i, replies in zip(open_rows, fresh, strict=True):
            said[i] += replies
        open_rows = [i for i in open_rows if not rejection.add(rows[i], said[i][-1].text)]
        if not open_rows:
            break
    for row in rows:
        rejection.forget(row)
    return said
