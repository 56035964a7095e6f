"""Statements about targets that the label stage stores, against the teacher's own forward on single documents."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.errors import StoreError
from limbeck.losses import chunked
from limbeck.losses.terms import Terms
from limbeck.selftest.oracles import logits_alone, predicting
from limbeck.selftest.pair import CannotRun, Measure, Pair
from limbeck.train import sources
from limbeck.types import Dist, LiveTarget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from limbeck.store import TraceStore
    from limbeck.types import Row, Trace

SAMPLES = 16  # stores of draws whose mean is compared
FUNCTIONS = 16  # random signs over the vocabulary


def kept_mass(pair: Pair) -> Iterator[Measure]:
    """A truncated target says what it leaves out: its cells sum to 1 and its tail is the teacher's."""
    store = pair.label(target={"kind": "top_k", "k": min(2, pair.vocab - 1)})
    dist = store.dists(store.traces())
    for kind, one in (("top_k", dist), ("hybrid", _hybrid(pair))):
        sum_N = one.logp_NK.double().exp().sum(1) + one.tail_N.double().exp()
        yield Measure(f"sum of cells, {kind}: distance from 1", float((sum_N - 1).abs().max()), 1e-5)
    p_NV = torch.softmax(pair.teacher_alone.double(), 1)
    true = float(1 - p_NV.topk(dist.ids_NK.shape[1], 1).values.sum(1).mean())
    if true < 1e-6:
        raise CannotRun("the teacher is certain everywhere: there is no tail to keep")
    stored = float(dist.tail_N.double().exp().mean())
    yield Measure(
        f"tail of top-{dist.ids_NK.shape[1]} stored, the teacher's {true:.3f} being 1", stored / true, 1.15, 0.85
    )


def _hybrid(pair: Pair) -> Dist:
    store = pair.label(target={"kind": "hybrid"})
    return store.dists(store.traces())


def unbiased(pair: Pair) -> Iterator[Measure]:
    """Over many seeds the mean of what is drawn is the teacher: expectations of random functions."""
    rows = pair.rows[:2]
    generator = torch.Generator().manual_seed(0)
    signs_VF = torch.randint(0, 2, (pair.vocab, FUNCTIONS), generator=generator).double() * 2 - 1
    u_NV = torch.cat([z_nV.double().cpu() for z_nV in _no_grad(pair, rows)])
    truth_F = (torch.softmax(u_NV, 1) @ signs_VF).mean(0)
    for kind, target in (("sampled", {"kind": "sampled", "draws": 16}), ("hybrid", {"kind": "hybrid", "draws": 16})):
        found = []
        for seed in range(SAMPLES):
            store = pair.label(rows, seed=seed, target=target)
            found.append(_expectation(store.dists(store.traces()), signs_VF))
        found_SF = torch.stack(found)
        error_F = found_SF.std(0) / math.sqrt(SAMPLES) + 1e-6
        yield Measure(
            f"bias of {kind}, in standard errors", float(((found_SF.mean(0) - truth_F) / error_F).abs().max()), 7
        )


def _no_grad(pair: Pair, rows: Sequence[Row | Trace]) -> list[Tensor]:
    with torch.no_grad():
        return list(logits_alone(pair.teacher.model, rows, pair.vocab))


def _expectation(dist: Dist, signs_VF: Tensor) -> Tensor:
    """Mean over positions of sum_v p_v sign_vf; a tail without tokens adds nothing."""
    p_NK = dist.logp_NK.double().exp().masked_fill(dist.ids_NK < 0, 0.0)
    return (p_NK[:, :, None] * signs_VF[dist.ids_NK.clamp_min(0)]).sum(1).mean(0)


def alignment(pair: Pair) -> Iterator[Measure]:
    """A stored target belongs to its tokens: others are refused, and rows come in the order they were asked for."""
    store = pair.top_k
    traces = store.traces()
    yield Measure("other tokens that were accepted", _accepted(pair, store, traces), 0)
    yield Measure(
        "stored against the teacher on each document alone", _gap(store.dists(_in_order(pair, traces)), pair), 0.1
    )
    order = [*range(1, len(traces)), 0]
    target = sources.stored(store, pair.teacher.device)([traces[index] for index in order]).target
    assert isinstance(target, Dist)
    single = torch.cat([store.dist(traces[index]).logp_NK for index in order]).to(target.logp_NK.device)
    yield Measure("rows in another order: difference", float((target.logp_NK.exp() - single.exp()).abs().max()), 0)


def _in_order(pair: Pair, traces: Sequence[Trace]) -> list[Trace]:
    by_row = {trace.row_id: trace for trace in traces}
    return [by_row[row.id] for row in pair.rows]


def _accepted(pair: Pair, store: TraceStore, traces: Sequence[Trace]) -> int:
    """How many of these are taken although the stored distributions were computed on something else."""
    one, other = traces[:2]
    ids = one.ids.copy()
    ids[0] = (ids[0] + 1) % pair.vocab
    (start, end), *rest = one.spans
    shorter = ((start, end - 1), *rest) if end - start > 1 else ((start, end), (end, end + 1))
    wrong = [replace(one, ids=ids), replace(one, spans=shorter), replace(other, id=one.id)]
    return sum(_is_accepted(store, trace) for trace in wrong)


def _is_accepted(store: TraceStore, trace: Trace) -> bool:
    try:
        store.dists([trace])
    except StoreError:
        return False
    except (ValueError, IndexError):  # past the check, it could not even be read
        return True
    return True


def _gap(dist: Dist, pair: Pair, logits_NV: Tensor | None = None) -> float:
    """Mean over positions of the absolute differences of probabilities on the stored support."""
    u_NV = pair.teacher_alone if logits_NV is None else logits_NV
    p_NV = torch.softmax(u_NV.double().cpu(), 1)
    valid_NK = dist.ids_NK >= 0
    true_NK = p_NV.gather(1, dist.ids_NK.clamp_min(0))
    return float(torch.where(valid_NK, (dist.logp_NK.double().exp() - true_NK).abs(), 0.0).sum(1).mean())


def raw(pair: Pair) -> Iterator[Measure]:
    """Replies are sampled at T = 0.7 and top-p 0.9; what is stored of them is the teacher at T = 1, nothing cut."""
    traces = pair.replies.traces()
    u_NV = torch.cat(_no_grad(pair, traces))
    yield Measure("stored against the teacher's raw probabilities", _gap(pair.replies.dists(traces), pair, u_NV), 0.1)


def shift(pair: Pair) -> Iterator[Measure]:
    """The next token, once: what a batch carries is the teacher's own word on it, and no neighbour's; a teacher that is
    the labels themselves makes of KL the cross-entropy."""
    batch = pair.live_batch
    assert isinstance(batch.target, LiveTarget)
    parts = [z_nV.clone() for _, z_nV in chunked.iter_logits(batch.target.hidden_ND, batch.target.head)]
    logq_NV = torch.log_softmax(torch.cat(parts).double(), 1)
    whole = _no_grad(pair, [replace(row, spans=((1, len(row.ids) + 1),)) for row in pair.rows])
    gaps = {by: _kl_at(logq_NV, whole, pair, by) for by in (-1, 0, 1)}
    yield Measure("nats between target and teacher at shift 0", gaps[0], 1e-3 if pair.exact else 0.1)
    yield Measure("nats at the next best shift", min(gaps[-1], gaps[1]), low=max(0.01, 2 * gaps[0]))
    wanted = [int(row.ids[at + 1]) for row, ats in zip(pair.rows, predicting(pair.rows), strict=True) for at in ats]
    wrong = [a != b for a, b in zip(wanted, batch.labels_N.tolist(), strict=True)]
    yield Measure("labels that are not the next token", sum(wrong), 0)
    if pair.apart is None:
        yield from _student_shift(pair, wanted)


def _kl_at(logq_NV: Tensor, whole: Sequence[Tensor], pair: Pair, by: int) -> float:
    """Mean KL from the teacher's own forward `by` tokens further on to the target, over positions that have one."""
    values, row = [], 0
    for z_TV, ats in zip(whole, predicting(pair.rows), strict=True):
        for at in ats:
            if 0 <= at + by < len(z_TV):
                logp_V = torch.log_softmax(z_TV[at + by].double(), 0)
                values.append(float((logp_V.exp() * (logp_V - logq_NV[row])).sum()))
            row += 1
    return float(np.mean(values))


def _student_shift(pair: Pair, wanted: list[int]) -> Iterator[Measure]:
    labels_N = torch.tensor(wanted, device=pair.teacher.device)
    tail_N = torch.full((len(wanted),), -math.inf, device=pair.teacher.device)
    certain = Dist(labels_N[:, None], torch.zeros_like(labels_N[:, None], dtype=torch.float32), tail_N)
    with torch.no_grad():
        out = pair.forward(replace(pair.live_batch, target=certain), Terms())
    truth = float(-torch.log_softmax(pair.student_alone.double(), 1).gather(1, labels_N[:, None]).mean())
    yield Measure(
        "nats between the student's cross-entropy and shift 0", abs(float(out.terms["ce"]) / out.num - truth), 1e-3
    )
    yield Measure("nats between KL to the labels and it", abs(float(out.loss - out.terms["ce"])) / out.num, 1e-3)
