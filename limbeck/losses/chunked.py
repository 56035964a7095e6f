"""The fused loss: from hidden rows, a head and a target to a loss sum and its gradients, a chunk of rows at a time.

Value and gradients are made in one pass (the gradient of a sum does not wait for anything), so that no N x V tensor
is ever kept. A chunk is hundreds of rows, since products want many; its logits stand in one scratch buffer, in the
products' dtype. The passes over them take a block of the chunk at a time, small enough for the cache, in float32
(`rows.py`). Gradients flow to hidden rows, weight and bias. Second derivatives do not exist here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from limbeck.losses.rows import RowLoss, ce_rows, live_rows, sparse_rows
from limbeck.losses.terms import Terms
from limbeck.types import Dist, Head, LiveTarget, LossOut, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRATCH_BYTES = 96 * 2**20
MIN_ROWS, MAX_ROWS = 16, 2048
BLOCK_BYTES = {"cpu": 3 * 2**19, "cuda": 64 * 2**20}


def fused_distill_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target: Target | None,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    labels_N: Tensor | None = None,
    ce_weight: float = 0.0,
    bias_V: Tensor | None = None,
    weights_N: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    scratch_bytes: int = SCRATCH_BYTES,
    **params: float,
) -> Tensor:
    """Sum over rows of `weights * ((1 - ce_weight) * T^2 * divergence + ce_weight * CE)`, in nats.

    hidden_ND, weight_VD (and bias_V): the student's last hidden rows and its head, any float dtype; the products run in
    the hidden rows' dtype, everything else in float32. `target`: a Dist or a LiveTarget at the same rows; None needs
    ce_weight 1. labels_N: int64 ground truth, needed when ce_weight > 0. Logits are
    `softcap(logit_scale * (hidden @ weight.T + bias))`. `scratch_bytes` bounds the logits that exist at a time (a live
    teacher's take as much again). `params` are the divergence's own (`DIVERGENCES`).

    Differentiable in hidden, weight and bias (once). Raises ValueError where arguments contradict each other.
    """
    head = Head(weight_VD, bias_V, softcap, logit_scale)
    terms = Terms(divergence, temperature, ce_weight, params)
    return fused_terms(
        hidden_ND, head, target, terms, labels_N=labels_N, weights_N=weights_N, scratch_bytes=scratch_bytes
    ).loss


def fused_terms(
    hidden_ND: Tensor,
    head: Head,
    target: Target | None,
    terms: Terms,
    *,
    labels_N: Tensor | None = None,
    weights_N: Tensor | None = None,
    scratch_bytes: int = SCRATCH_BYTES,
) -> LossOut:
    """As `fused_distill_loss` for all of an objective's terms in one pass, and the unweighted sums of CE and divergence
    beside the loss."""
    _refuse(target, terms, labels_N)
    job = _Job(head, target, terms, labels_N, weights_N, scratch_bytes)
    loss, ce, kl = _Fused.apply(hidden_ND, head.weight_VD, head.bias_V, job)  # type: ignore[misc]
    return LossOut(loss=loss, ce=ce, kl=None if target is None else kl, num=hidden_ND.shape[0])


def _refuse(target: Target | None, terms: Terms, labels_N: Tensor | None) -> None:
    """Raise ValueError where target, terms and labels do not fit together."""
    if target is None and terms.ce_weight < 1:
        raise ValueError(f"no target was given and ce_weight is {terms.ce_weight}; without a target it must be 1")
    if labels_N is None and terms.ce_weight > 0:
        raise ValueError("ce_weight is above 0 but there are no labels_N")
    if target is None:
        return
    for term in terms.kd:
        if term.spec.labels and labels_N is None:
            raise ValueError(f"{term.divergence} needs labels_N, the tokens that really follow")
        if isinstance(target, LiveTarget):
            continue
        if term.needs == "full":
            raise ValueError(
                f"{term.divergence} at {term.temperature} needs a live target; this one has some tokens only"
            )
        if term.needs == "cells" and target.is_open:
            raise ValueError(
                f"{term.divergence} needs the teacher's mass on every token, but this target is a sample without it; "
                "use forward_kl, or a live or top-k target"
            )
        if term.temperature != terms.temperature:
            raise ValueError(
                f"a stored target has one temperature, but the terms have {terms.temperature} and {term.temperature}"
            )
    by = terms.position_weights
    if by and by.measure == "entropy" and isinstance(target, Dist) and target.entropy_N is None:
        raise ValueError("position weights by entropy need a target that knows it: live, or a sample")


def iter_logits(
    hidden_ND: Tensor, head: Head, *, vocab: int | None = None, rows: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Logits in float32, at most `rows` rows at a time: yields (slice of N, logits_nV). No gradient.

    The yielded tensor is reused: use it before you ask for the next (you may overwrite it).
    """
    hidden_ND = hidden_ND.detach()
    head = _detached(head if vocab is None else cut_head(head, vocab), hidden_ND.dtype)
    products = _Products(hidden_ND, head, SCRATCH_BYTES, rows)
    for part in products.chunks():
        # No `no_grad` around the yield: two generators in lock step would leave gradients off for their caller.
        for block, raw_nV in products.blocks(part, products.logits(part)):
            yield block, _finished(_widened(raw_nV), head)


def cut_head(head: Head, vocab: int) -> Head:
    """The head of the first `vocab` tokens (views): models of one tokenizer are often padded to different sizes."""
    if vocab == head.weight_VD.shape[0]:
        return head
    bias_V = None if head.bias_V is None else head.bias_V[:vocab]
    return replace(head, weight_VD=head.weight_VD[:vocab], bias_V=bias_V)


def _detached(head: Head, dtype: torch.dtype) -> Head:
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return replace(head, weight_VD=head.weight_VD.detach().to(dtype), bias_V=bias_V)


# ---- chunks and blocks -----------------------------------------------------------------------------------------------


class _Products:
    """Hidden rows times a head, a chunk of rows at a time, in one buffer: a fresh one for each chunk would cost more
    than the maths."""

    def __init__(self, hidden_ND: Tensor, head: Head, scratch_bytes: int, block_rows: int | None = None) -> None:
        self.hidden_ND, self.head = hidden_ND, head
        vocab = head.weight_VD.shape[0]
        block_bytes = BLOCK_BYTES.get(hidden_ND.device.type, BLOCK_BYTES["cuda"])
        self.block_rows = block_rows or max(block_bytes // (4 * vocab), 1)
        # Small chunks read the head too often; large ones only take memory. Whole blocks, so that two models of one
        # vocabulary but different dtypes are cut alike.
        rows = scratch_bytes // (hidden_ND.element_size() * vocab)
        rows = min(max(rows, MIN_ROWS), MAX_ROWS)
        self.rows = max(rows // self.block_rows, 1) * self.block_rows
        self._buffer: Tensor | None = None

    def chunks(self) -> list[slice]:
        num = self.hidden_ND.shape[0]
        return [slice(start, min(start + self.rows, num)) for start in range(0, num, self.rows)]

    def logits(self, part: slice) -> Tensor:
        """hidden @ weight.T of a chunk, in the hidden rows' dtype, before bias, scale and soft cap."""
        h_nD, weight_VD = self.hidden_ND[part], self.head.weight_VD
        if self._buffer is None:
            rows = min(self.rows, self.hidden_ND.shape[0])
            self._buffer = torch.empty(rows, weight_VD.shape[0], dtype=h_nD.dtype, device=h_nD.device)
        return torch.mm(h_nD, weight_VD.T, out=self._buffer[: h_nD.shape[0]])

    def blocks(self, part: slice, logits_cV: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The rows of a chunk's logits, a block at a time: (slice of N, view)."""
        for start in range(part.start, part.stop, self.block_rows):
            stop = min(start + self.block_rows, part.stop)
            yield slice(start, stop), logits_cV[start - part.start : stop - part.start]


def _widened(raw_nV: Tensor) -> Tensor:
    """In float32 or wider: the same tensor where it is that already."""
    return raw_nV.to(torch.promote_types(raw_nV.dtype, torch.float32))


def _finished(z_nV: Tensor, head: Head) -> Tensor:
    """softcap(scale * (z + bias)), in place."""
    if head.bias_V is not None:
        z_nV.add_(head.bias_V)
    if head.scale != 1.0:
        z_nV.mul_(head.scale)
    if head.softcap is not None:
        z_nV.div_(head.softcap).tanh_().mul_(head.softcap)
    return z_nV


# ---- value and gradients ---------------------------------------------------------------------------------------------


class _Job(NamedTuple):
    """Everything beside the tensors that get gradients."""

    head: Head
    target: Target | None
    terms: Terms
    labels_N: Tensor | None
    weights_N: Tensor | None
    scratch_bytes: int


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, job):  # type: ignore[override]
        head = replace(job.head, weight_VD=weight_VD.to(hidden_ND.dtype), bias_V=bias_V)
        sums, grads = _run(hidden_ND, head, job, ctx.needs_input_grad[:3])
        ctx.grads = grads
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.mark_non_differentiable(sums[1], sums[2])
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, _ce, _kl):  # type: ignore[override]
        if ctx.grads is None:
            raise RuntimeError("the gradients of the fused loss were used already; run it again for another backward")
        # Scaled in place: a copy of the head's gradient would cost as much as a pass over the logits.
        grads = [
            None if grad is None else grad.to(torch.promote_types(grad.dtype, dtype)).mul_(grad_loss).to(dtype)
            for grad, dtype in zip(ctx.grads, ctx.dtypes, strict=True)
        ]
        ctx.grads = None
        return (*grads, None)


class _Grads:
    """Gradients of hidden rows, weight and bias, as far as they are asked for; sums over chunks are in float32."""

    def __init__(self, hidden_ND: Tensor, head: Head, needs: tuple[bool, bool, bool]) -> None:
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        self.hidden_ND, self.weight_VD, self.needs_weight = hidden_ND, head.weight_VD, needs[1]
        self.dhidden_ND = torch.empty_like(hidden_ND, dtype=wide) if needs[0] else None
        self.dbias_V = torch.zeros_like(head.weight_VD[:, 0], dtype=wide) if needs[2] else None
        self._dweight_VD: Tensor | None = None
        self._half_VD: Tensor | None = None

    @property
    def dweight_VD(self) -> Tensor | None:
        if self._dweight_VD is None and self.needs_weight:
            return torch.zeros_like(self.weight_VD)
        return self._dweight_VD

    def add(self, part: slice, dz_cV: Tensor) -> None:
        """A chunk's gradient on the products, in their dtype."""
        h_cD = self.hidden_ND[part]
        if self.dhidden_ND is not None:
            self.dhidden_ND[part] = torch.mm(dz_cV, self.weight_VD)
        if not self.needs_weight:
            return
        if self._dweight_VD is None:
            self._dweight_VD = torch.mm(dz_cV.T, h_cD)
        elif dz_cV.dtype == torch.promote_types(dz_cV.dtype, torch.float32):
            self._dweight_VD.addmm_(dz_cV.T, h_cD)
        else:
            # A product in half precision, summed in float32; by parts, since mixed dtypes add slowly.
            self._dweight_VD = self._dweight_VD.float()
            self._half_VD = torch.mm(dz_cV.T, h_cD, out=self._half_VD)
            rows = max(BLOCK_BYTES["cpu"] // (4 * h_cD.shape[1]), 1)
            for total, more in zip(self._dweight_VD.split(rows), self._half_VD.split(rows), strict=True):
                total.add_(more.float())


def _run(
    hidden_ND: Tensor, head: Head, job: _Job, needs: tuple[bool, bool, bool]
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor | None, Tensor | None]]:
    totals_3 = torch.zeros(3, dtype=torch.float64, device=hidden_ND.device)
    grads = _Grads(hidden_ND, head, needs)
    own, theirs = _Products(hidden_ND, head, job.scratch_bytes), None
    if isinstance(job.target, LiveTarget):
        teacher_ND = job.target.hidden_ND.detach()
        theirs = _Products(teacher_ND, _detached(job.target.head, teacher_ND.dtype), job.scratch_bytes)
        own.rows = theirs.rows = min(own.rows, theirs.rows)
        own.block_rows = theirs.block_rows = min(own.block_rows, own.rows)
    for part in own.chunks():
        z_cV = own.logits(part)
        u_cV = None if theirs is None else theirs.logits(part)
        for block, raw_nV in own.blocks(part, z_cV):
            z_nV = _finished(_widened(raw_nV), head)
            u_nV = None
            if theirs is not None and u_cV is not None:
                u_nV = _finished(_widened(u_cV[block.start - part.start : block.stop - part.start]), theirs.head)
            totals_3 += _block(z_nV, u_nV, block, head, job)
            # z_nV now holds dloss / d(hidden @ weight.T + bias).
            if any(needs):
                if grads.dbias_V is not None:
                    grads.dbias_V += z_nV.sum(0)
                if z_nV.dtype != raw_nV.dtype:
                    raw_nV.copy_(z_nV)
        if any(needs):
            grads.add(part, z_cV)
    loss, ce, kl = (total.clone() for total in totals_3.to(torch.promote_types(hidden_ND.dtype, torch.float32)))
    return (loss, ce, kl), (grads.dhidden_ND, grads.dweight_VD, grads.dbias_V)


def _block(z_nV: Tensor, u_nV: Tensor | None, block: slice, head: Head, job: _Job) -> Tensor:
    """Turn a block's logits into the gradient on what they were before scale and soft cap; returns the sums of loss, CE
    and divergence."""
    labels_n = None if job.labels_N is None else job.labels_N[block]
    slope_nV = None
    if head.softcap is not None:  # d softcap(x) / dx = 1 - (z / c)^2
        slope_nV = (z_nV / head.softcap).square_().neg_().add_(1.0)
    out = _rows(z_nV, u_nV, None if job.target is None else job.target[block], job.terms, labels_n)
    if slope_nV is not None:
        z_nV.mul_(slope_nV)
    weight_n = out.weight_n
    if job.weights_N is not None:
        own_n = job.weights_N[block].to(z_nV.dtype)
        weight_n = own_n if weight_n is None else weight_n * own_n
    loss_n = out.loss_n if weight_n is None else out.loss_n * weight_n
    if weight_n is not None:
        z_nV.mul_((weight_n * head.scale)[:, None])
    elif head.scale != 1.0:
        z_nV.mul_(head.scale)
    return torch.stack([loss_n.sum(), out.ce_n.sum(), out.kl_n.sum()]).double()


def _rows(z_nV: Tensor, u_nV: Tensor | None, target: Target | None, terms: Terms, labels_n: Tensor | None) -> RowLoss:
    if isinstance(target, Dist):
        return sparse_rows(z_nV, target, terms, labels_n)
    if u_nV is not None:
        return live_rows(z_nV, u_nV, terms, labels_n)
    assert labels_n is not None  # `_refuse` saw to it
    return ce_rows(z_nV, labels_n, terms)
