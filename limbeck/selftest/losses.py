"""Statements about losses, on a few hidden rows and the heads of the user's pair: each yields what it measured.

The numbers in the table of `run` are those of docs/reference/correctness.md.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from limbeck.losses import chunked
from limbeck.losses.divergences import DIVERGENCES
from limbeck.losses.terms import Terms
from limbeck.selftest.oracles import Side, fused, plain
from limbeck.selftest.pair import Measure, Pair, worst
from limbeck.train import sources
from limbeck.types import Dist, Head, LiveTarget

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

FP64 = 1e-3  # largest relative error of float32 products against float64, logits of large models included
ZERO = 1e-5
PRECISION = 1e-3  # nats, of a single position
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)


# ---- value and gradient ----------------------------------------------------------------------------------------------


def self_distillation(pair: Pair) -> Iterator[Measure]:
    """Teacher = student: no loss and no gradient, whatever the divergence."""
    side, labels_N = pair.side, pair.labels
    own = LiveTarget.of(side.hidden_ND, side.head)
    size = float(fused(side, None, Terms(ce_weight=1.0), labels_N).hidden_ND.abs().max())
    values, grads = {}, {}
    for name in pair.names:
        found = fused(side, own, Terms(name), labels_N)
        values[name] = abs(found.loss) / len(labels_N)
        grads[name] = float(found.hidden_ND.abs().max()) / size
    yield worst("loss per position", values, ZERO)
    yield worst("gradient, cross-entropy's being 1", grads, 10 * ZERO)
    batch = sources.live(pair.student, pair.columns)(pair.rows)
    out = pair.forward(batch, replace(pair.terms, ce_weight=0.0))
    yield Measure("loss per position, whole model", abs(float(out.loss.detach())) / max(out.num, 1), ZERO)


def fused_is_plain_live(pair: Pair) -> Iterator[Measure]:
    """The fused loss on a live teacher, against float64 by autograd."""
    for temperature in (1.0, 2.0):
        names = [name for name in pair.names if temperature == 1.0 or DIVERGENCES[name].tempered]
        errors = {name: _error(pair, pair.other, Terms(name, temperature, 0.3)) for name in names}
        if errors:
            yield worst(f"error at T = {temperature:g}", errors, FP64)


def _error(pair: Pair, target: Dist | Side, terms: Terms) -> float:
    given = LiveTarget.of(target.hidden_ND, target.head) if isinstance(target, Side) else target
    return fused(pair.side, given, terms, pair.labels).error(plain(pair.side, target, terms, pair.labels))


def fused_is_plain_stored(pair: Pair) -> Iterator[Measure]:
    """The fused loss on targets from a store (and on a full support), against float64 by autograd."""
    kinds = {
        "top_k": {"kind": "top_k", "k": min(8, pair.vocab - 1)},
        "sampled": {"kind": "sampled", "draws": 16},
        "hybrid": {"kind": "hybrid", "head": min(4, pair.vocab - 1), "draws": 16},
    }
    for kind, target in kinds.items():
        temperature = 2.0 if kind == "top_k" else 1.0
        store = pair.label(temperature=temperature, target=target)
        dist = _few(store.dists(store.traces()).to(pair.teacher.device), pair.few)
        errors = {name: _error(pair, dist, Terms(name, temperature, 0.3)) for name in fitting(pair, dist)}
        if errors:
            yield worst(f"error, {kind} at T = {temperature:g}", errors, FP64)
    full = cells_of(pair, pair.vocab)
    errors = {name: _error(pair, full, Terms(name, 1.0, 0.3)) for name in fitting(pair, full)}
    if errors:
        yield worst("error, every token", errors, FP64)


def fitting(pair: Pair, dist: Dist) -> list[str]:
    """The divergences under test that this target has enough for."""
    offered = ("sample",) if dist.offers == "sample" else ("sample", "cells")
    return [name for name in pair.names if DIVERGENCES[name].needs in offered]


def _few(dist: Dist, few_N: Tensor) -> Dist:
    entropy_N = None if dist.entropy_N is None else dist.entropy_N[few_N]
    return Dist(dist.ids_NK[few_N], dist.logp_NK[few_N], dist.tail_N[few_N], entropy_N, dist.spread)


def cells_of(pair: Pair, k: int) -> Dist:
    """The teacher's k most probable tokens and its tail, exactly, from float64."""
    logp_NV = torch.log_softmax(pair.other.logits_NV, 1)
    ordered = logp_NV.sort(1, descending=True)
    tail_N = torch.full_like(logp_NV[:, 0], -math.inf) if k == pair.vocab else ordered.values[:, k:].logsumexp(1)
    return Dist(ordered.indices[:, :k].contiguous(), ordered.values[:, :k].float().contiguous(), tail_N.float())


# ---- temperature and direction ---------------------------------------------------------------------------------------


def temperature(pair: Pair) -> Iterator[Measure]:
    """T^2 once and one T on both sides: the gradient on logits is T (q - p), whose size hardly depends on T."""
    sizes, errors = {}, {}
    z_NV, u_NV = pair.side.logits_NV, pair.other.logits_NV
    likely = torch.cat([u_NV.topk(min(16, pair.vocab), 1).indices.flatten(), pair.labels])
    some = torch.cat([likely, torch.arange(0, pair.vocab, max(pair.vocab // 256, 1), device=likely.device)]).unique()
    z_NV, u_NV = z_NV[:, some], u_NV[:, some]
    for t in TEMPERATURES:
        zeros_N = torch.zeros_like(pair.labels)
        found = fused(_on_logits(z_NV), _target_on_logits(u_NV), Terms("forward_kl", t), zeros_N)
        truth_NV = t * (torch.softmax(z_NV / t, 1) - torch.softmax(u_NV / t, 1))
        sizes[t] = float(found.hidden_ND.abs().mean())
        errors[f"T = {t:g}"] = float((found.hidden_ND.double() - truth_NV).abs().max() / truth_NV.abs().max())
    yield worst("error of T (q - p)", errors, FP64)
    yield Measure("gradient at T = 16, that at T = 1 being 1", sizes[16.0] / sizes[1.0], 32.0, 0.1)


def _on_logits(z_NV: Tensor) -> Side:
    """Hidden rows that are logits, through a unit head: their gradient is that of the logits."""
    return Side(z_NV.float(), Head(torch.eye(z_NV.shape[1], device=z_NV.device)))


def _target_on_logits(u_NV: Tensor) -> LiveTarget:
    return LiveTarget(u_NV.float(), torch.eye(u_NV.shape[1], device=u_NV.device))


def direction(pair: Pair) -> Iterator[Measure]:
    """Two tokens with p = (0.9, 0.1) and q = (0.5, 0.5): KL(p || q) and KL(q || p) by pencil."""
    p, q = (0.9, 0.1), (0.5, 0.5)
    forward = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    reverse = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    device = pair.teacher.device
    teacher, student = (torch.tensor([side], device=device).log() for side in (p, q))
    stored = Dist(torch.tensor([[0, 1]], device=device), teacher, torch.tensor([-math.inf], device=device))
    label_N = torch.zeros(1, dtype=torch.long, device=device)
    for name, truth in (("forward_kl", forward), ("reverse_kl", reverse)):
        side = _on_logits(student)
        for kind, target in (("live", _target_on_logits(teacher)), ("stored", stored)):
            found = fused(side, target, Terms(name), label_N)
            yield Measure(f"{name}, {kind}: {truth:.4f} nats; error", abs(found.loss - truth), 1e-5)


# ---- targets of some tokens ------------------------------------------------------------------------------------------


def sparse_bound(pair: Pair) -> Iterator[Measure]:
    """KL on K tokens and a tail cell is at most the full KL, and equal on every token; at its optimum nothing pulls."""
    whole_N = _kl_by_row(pair, pair.live)
    for k in sorted({1, min(4, pair.vocab - 1), min(64, pair.vocab - 1)}):
        excess_N = _kl_by_row(pair, cells_of(pair, k)) - whole_N
        yield Measure(f"excess over the full KL, K = {k}", float(excess_N.max()), PRECISION)
    gap_N = (_kl_by_row(pair, cells_of(pair, pair.vocab)) - whole_N).abs()
    yield Measure("difference from the full KL, K = V", float(gap_N.max()), PRECISION)


def _kl_by_row(pair: Pair, target: Dist | LiveTarget) -> Tensor:
    hidden_ND, head = pair.side.hidden_ND, pair.side.head
    parts = [slice(row, row + 1) for row in range(len(pair.labels))]
    with torch.no_grad():
        outs = [chunked.fused_terms(hidden_ND[part], head, target[part], Terms()) for part in parts]
    return torch.stack([out.loss.double() for out in outs])


# ---- precision -------------------------------------------------------------------------------------------------------


def precision(pair: Pair) -> Iterator[Measure]:
    """Products in bfloat16, log-softmax in float32: each position within 1e-3 nats of float64 on the same logits."""
    side, live = _half(pair.side), _half(pair.other)
    ce, kl = {}, {}
    for row in range(len(pair.labels)):
        part = slice(row, row + 1)
        label_N = pair.labels[part]
        z_NV, u_NV = (_logits_of(Side(one.hidden_ND[part], one.head)).double() for one in (side, live))
        logq_NV, logp_NV = torch.log_softmax(z_NV, 1), torch.log_softmax(u_NV, 1)
        with torch.no_grad():
            target = LiveTarget.of(live.hidden_ND[part], live.head)
            out = chunked.fused_terms(side.hidden_ND[part], side.head, target, Terms(ce_weight=0.5), labels_N=label_N)
        ce[f"row {row}"] = abs(float(out.terms["ce"]) + float(logq_NV[0, label_N]))
        kl[f"row {row}"] = abs(float(out.terms["kl"]) - float((logp_NV.exp() * (logp_NV - logq_NV)).sum()))
    yield worst("cross-entropy, nats", ce, PRECISION)
    yield worst("forward KL, nats", kl, PRECISION)
    yield Measure("gradients that are not finite, padded support", _padded(pair), 0)


def _half(side: Side) -> Side:
    head = replace(side.head, weight_VD=side.head.weight_VD.detach().bfloat16())
    return Side(side.hidden_ND.bfloat16(), head)


def _logits_of(side: Side) -> Tensor:
    """The logits that the loss sees, widened to float32."""
    return torch.cat([z_nV.clone() for _, z_nV in chunked.iter_logits(side.hidden_ND, side.head)])


def _padded(pair: Pair) -> int:
    """A target whose support is padded: its minus infinities must not become gradients."""
    labels_N = pair.labels
    ids_NK = torch.stack([labels_N, torch.full_like(labels_N, -1)], 1)
    logp_NK = torch.where(ids_NK < 0, -math.inf, math.log(0.7))
    dist = Dist(ids_NK, logp_NK, torch.full_like(logp_NK[:, 0], math.log(0.3)))
    grads = [fused(pair.side, dist, Terms(name), labels_N).hidden_ND for name in fitting(pair, dist)]
    return sum(int((~torch.isfinite(grad)).sum()) for grad in grads)
