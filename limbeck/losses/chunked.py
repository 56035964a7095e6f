"""The fused loss: from hidden rows, a head and a target to a loss sum and its gradients, a chunk of rows at a time.

Value and gradients are made in one pass (the gradient of a sum does not wait for anything), so that no N x V tensor
is ever kept. A chunk is hundreds of rows, since products want many; its logits stand in one scratch buffer, in the
products' dtype. The passes over them take a block of the chunk at a time, small enough for the cache, in float32
(`rows.py`). Gradients flow to hidden rows, weight and bias. Second derivatives do not exist here.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from limbeck.losses.mixture import mixture_logits
from limbeck.losses.rows import RowLoss, ce_rows, live_rows, sparse_rows
from limbeck.losses.terms import Terms
from limbeck.types import Head, LossOut, Target, Vocab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limbeck.types import Dist

SCRATCH_BYTES = 96 * 2**20
MIN_ROWS, MAX_ROWS = 16, 2048
BLOCK_BYTES = {"cpu": 6 * 2**20, "cuda": 64 * 2**20}
MINUS = -1e30  # stands for minus infinity in a bias: differences stay numbers


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
    compile: bool = False,
    **params: float,
) -> Tensor:
    """Sum over rows of `weights * ((1 - ce_weight) * T^2 * divergence + ce_weight * CE)`, in nats.

    hidden_ND, weight_VD (and bias_V): the student's last hidden rows and its head, any float dtype; the products run in
    the hidden rows' dtype, everything else in float32. `target`: a Dist, a LiveTarget or a Mixture at the same rows;
    None needs ce_weight 1. labels_N: int64 ground truth, needed when ce_weight > 0. Logits are
    `softcap(logit_scale * (hidden @ weight.T + bias))`. `scratch_bytes` bounds the logits that exist at a time (a live
    teacher's take as much again). `compile` runs the arithmetic of a live target through `torch.compile`, which wants a
    compiler on the machine: the same numbers, faster where a divergence has many passes. `params` are the divergence's
    own (`DIVERGENCES`).

    Differentiable in hidden, weight and bias (once). Raises ValueError where arguments contradict each other.
    """
    head = Head(weight_VD, bias_V, softcap, logit_scale)
    terms = Terms(divergence, temperature, ce_weight, params)
    return fused_terms(
        hidden_ND,
        head,
        target,
        terms,
        labels_N=labels_N,
        weights_N=weights_N,
        scratch_bytes=scratch_bytes,
        compile=compile,
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
    compile: bool = False,
) -> LossOut:
    """As `fused_distill_loss` for all of an objective's terms in one pass, and the unweighted sums of CE and divergence
    beside the loss. Raises ValueError where shapes, labels, target and terms do not fit together."""
    _refuse(target, terms, labels_N)
    _refuse_shapes(hidden_ND, head, labels_N, weights_N)
    if compile and (target is None or target.offers != "full"):
        raise ValueError("compile is for live targets; a stored one takes one softmax, which gains nothing from it")
    if compile and head.bias_V is not None and head.softcap is not None:
        raise ValueError("torch's compiler fails on a head with both a bias and a soft cap; leave compile off")
    job = _Job(head, target, terms, labels_N, weights_N, scratch_bytes, compile)
    loss, ce, kl = _Fused.apply(hidden_ND, head.weight_VD, head.bias_V, job)  # type: ignore[misc]
    return LossOut(loss, {"ce": ce} if target is None else {"ce": ce, "kl": kl}, hidden_ND.shape[0])


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
        if target.offers == "full":
            continue
        if term.needs == "full":
            raise ValueError(
                f"{term.divergence} at {term.temperature} needs a live target; this one has some tokens only"
            )
        if term.needs == "cells" and target.offers == "sample":
            raise ValueError(
                f"{term.divergence} needs the teacher's mass on every token, but this target is a sample without it; "
                "use forward_kl, or a live or top-k target"
            )
        if term.temperature != terms.temperature:
            raise ValueError(
                f"a stored target has one temperature, but the terms have {terms.temperature} and {term.temperature}"
            )
    by = terms.position_weights
    if by and by.measure == "entropy" and not target.knows_entropy:
        raise ValueError("position weights by entropy need a target that knows it: live, or a sample")


def _refuse_shapes(hidden_ND: Tensor, head: Head, labels_N: Tensor | None, weights_N: Tensor | None) -> None:
    """Raise ValueError for what torch would tell in other words, or, on a GPU, not at all."""
    width = head.weight_VD.shape[1]
    if hidden_ND.dim() != 2 or hidden_ND.shape[1] != width:
        raise ValueError(
            f"hidden_ND has shape {list(hidden_ND.shape)}; [positions, {width}] is needed, {width} being the head's "
            "width: flatten batch and length, and leave out positions that predict nothing"
        )
    for name, each_N in (("labels_N", labels_N), ("weights_N", weights_N)):
        if each_N is not None and each_N.shape != hidden_ND.shape[:1]:
            found = list(each_N.shape)
            raise ValueError(f"{name} has shape {found}; one for each of {len(hidden_ND)} positions is needed")
    # Elsewhere than on a CPU the look at the values would make the device wait.
    if labels_N is not None and labels_N.device.type == "cpu" and len(labels_N):
        low, high = labels_N.aminmax()
        if low < 0 or high >= len(head.weight_VD):
            found = int(low) if low < 0 else int(high)
            raise ValueError(
                f"labels_N has {found}; the head's {len(head.weight_VD)} tokens are 0 to {len(head.weight_VD) - 1}. "
                "Leave positions without a label (-100 elsewhere) out of hidden_ND and labels_N"
            )


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


def cut_head(head: Head, vocab: int | Vocab) -> Head:
    """The head of the first `vocab` tokens (views): models of one tokenizer are often padded to different sizes. Of a
    `Vocab` with chosen rows, those rows (a copy; gradients flow back to them)."""
    if isinstance(vocab, Vocab):
        if vocab.rows_V is not None:
            bias_V = None if head.bias_V is None else head.bias_V.index_select(0, vocab.rows_V)
            return replace(head, weight_VD=head.weight_VD.index_select(0, vocab.rows_V), bias_V=bias_V)
        vocab = vocab.size
    if vocab == head.weight_VD.shape[0]:
        return head
    bias_V = None if head.bias_V is None else head.bias_V[:vocab]
    return replace(head, weight_VD=head.weight_VD[:vocab], bias_V=bias_V)


def _detached(head: Head, dtype: torch.dtype) -> Head:
    bias_V = None if head.bias_V is None else head.bias_V.detach().clamp_min(MINUS)
    return replace(head, weight_VD=head.weight_VD.detach().to(dtype), bias_V=bias_V)


# ---- chunks and blocks -----------------------------------------------------------------------------------------------


class _Products:
    """Hidden rows times a head, a chunk of rows at a time, in one buffer: a fresh one for each chunk would cost more
    than the maths."""

    def __init__(self, hidden_ND: Tensor, head: Head, scratch_bytes: int, block_rows: int | None = None) -> None:
        self.hidden_ND, self.head = hidden_ND, head
        vocab = head.weight_VD.shape[0]
        self.block_rows = block_rows or _block_rows(hidden_ND, vocab)
        # Small chunks read the head too often; large ones only take memory. Whole blocks, so that two models of one
        # vocabulary but different dtypes are cut alike.
        rows = scratch_bytes // (hidden_ND.element_size() * vocab)
        self.cut(min(max(rows, MIN_ROWS), MAX_ROWS))
        self._buffer: Tensor | None = None

    def cut(self, most: int) -> None:
        """Chunks of about `most` rows at most, of one size: a short one at the end would read the head for little."""
        num = max(-(-self.hidden_ND.shape[0] // most), 1)
        even = -(-self.hidden_ND.shape[0] // num)
        up = -(-even // self.block_rows) * self.block_rows
        self.rows = max(min(up, most // self.block_rows * self.block_rows), self.block_rows)

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


def _block_rows(like: Tensor, vocab: int, sides: int = 1) -> int:
    """How many rows of float32 logits of a student, or of student and teacher, make a block."""
    return max(BLOCK_BYTES.get(like.device.type, BLOCK_BYTES["cuda"]) // (4 * vocab * sides), 1)


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
    compile: bool


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, job):  # type: ignore[override]
        head = _detached(replace(job.head, weight_VD=weight_VD, bias_V=bias_V), hidden_ND.dtype)
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
        grads = [
            None if grad is None else _scaled(grad, grad_loss, dtype)
            for grad, dtype in zip(ctx.grads, ctx.dtypes, strict=True)
        ]
        ctx.grads = None
        return (*grads, None)


def _scaled(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """grad * factor in the wanted dtype; in place, or by parts: a copy of the head's gradient would cost as much as a
    pass over the logits."""
    if grad.dtype == dtype:
        return grad.mul_(factor)
    out = torch.empty_like(grad, dtype=dtype)
    for part in _parts(grad):
        out[part] = grad[part].float() * factor
    return out


def _parts(grad: Tensor) -> list[slice]:
    """Rows of a gradient, as many at a time as fit the cache."""
    most = BLOCK_BYTES.get(grad.device.type, BLOCK_BYTES["cuda"])
    rows = max(most // (4 * max(grad[:1].numel(), 1)), 1)
    return [slice(start, start + rows) for start in range(0, grad.shape[0], rows)]


class _Grads:
    """Gradients of hidden rows, weight and bias, as far as they are asked for."""

    def __init__(self, hidden_ND: Tensor, head: Head, needs: tuple[bool, bool, bool], sum_dtype: torch.dtype) -> None:
        self.hidden_ND, self.weight_VD = hidden_ND, head.weight_VD
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        self.dhidden_ND = torch.empty_like(hidden_ND) if needs[0] else None
        self.dweight_VD = torch.zeros_like(head.weight_VD, dtype=sum_dtype) if needs[1] else None
        self.dbias_V = torch.zeros_like(head.weight_VD[:, 0], dtype=wide) if needs[2] else None

    def add(self, part: slice, dz_cV: Tensor) -> None:
        """A chunk's gradient on the products, in their dtype."""
        h_cD = self.hidden_ND[part]
        if self.dhidden_ND is not None:
            torch.mm(dz_cV, self.weight_VD, out=self.dhidden_ND[part])
        if self.dweight_VD is None:
            return
        if self.dweight_VD.dtype == dz_cV.dtype:
            self.dweight_VD.addmm_(dz_cV.T, h_cD)
            return
        # A product in half precision, summed in float32 by parts that are still in the cache.
        for rows in _parts(self.dweight_VD):
            self.dweight_VD[rows].add_(torch.mm(dz_cV[:, rows].T, h_cD).float())


def _sum_dtype(products: _Products, weight_dtype: torch.dtype) -> torch.dtype:
    """What the head's gradient is summed in: float32, unless there is next to nothing to sum. Two chunks may be summed
    in a half-precision gradient itself: each entry is rounded once more, and half of it by half an ulp at most."""
    dtype = products.hidden_ND.dtype
    if weight_dtype == dtype and len(products.chunks()) <= 2:
        return dtype
    return torch.promote_types(dtype, torch.float32)


def _run(
    hidden_ND: Tensor, head: Head, job: _Job, needs: tuple[bool, bool, bool]
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor | None, Tensor | None]]:
    totals_3 = torch.zeros(3, dtype=torch.float64, device=hidden_ND.device)
    full = None if job.target is None else job.target.full
    parts = () if full is None else full.parts
    block_rows = _block_rows(hidden_ND, head.weight_VD.shape[0], 1 + len(parts))
    own = _Products(hidden_ND, head, job.scratch_bytes, block_rows)
    theirs = [
        _Products(part.hidden_ND.detach(), _detached(part.head, part.hidden_ND.dtype), job.scratch_bytes, block_rows)
        for part in parts
    ]
    rows = min(each.rows for each in (own, *theirs))
    for each in (own, *theirs):
        each.rows = rows
    heads = tuple(each.head for each in theirs)
    log_weights_NM = None if full is None else full.log_weights_NM
    cells = None if job.target is None else job.target.cells
    grads = _Grads(hidden_ND, head, needs, _sum_dtype(own, job.head.weight_VD.dtype))
    on_block = _compiled_block() if job.compile else _block
    for part in own.chunks():
        z_cV = own.logits(part)
        u_McV = [each.logits(part) for each in theirs]
        for rows_n, z_nV in own.blocks(part, z_cV):
            inside = slice(rows_n.start - part.start, rows_n.stop - part.start)
            block = _Block(
                z_nV,
                tuple(u_cV[inside] for u_cV in u_McV),
                None if log_weights_NM is None else log_weights_NM[rows_n],
                None if cells is None else cells[rows_n],
                None if job.labels_N is None else job.labels_N[rows_n],
                None if job.weights_N is None else job.weights_N[rows_n],
            )
            out = on_block(block, head, heads, job.terms)
            totals_3 += torch.stack([each_n.sum() for each_n in out[:3]]).double()
            if grads.dbias_V is not None:
                grads.dbias_V += _widened(z_nV).sum(0)
        if any(needs):
            grads.add(part, z_cV)
    loss, ce, kl = (total.clone() for total in totals_3.to(torch.promote_types(hidden_ND.dtype, torch.float32)))
    return (loss, ce, kl), (grads.dhidden_ND, grads.dweight_VD, grads.dbias_V)


class _Block(NamedTuple):
    """Some rows of a chunk: the student's and the teachers' products (views), and what belongs to these rows."""

    z_nV: Tensor
    u_MnV: tuple[Tensor, ...]
    log_weights_nM: Tensor | None
    cells: Dist | None
    labels_n: Tensor | None
    weights_n: Tensor | None


@functools.cache
def _compiled_block() -> Callable[..., RowLoss]:
    # Loops over independent rows are not merged: torch 2.13 stops with a KeyError where it tries.
    return torch.compile(_block, options={"cpp.max_horizontal_fusion_size": 1})


def _block(block: _Block, head: Head, teacher_heads: tuple[Head, ...], terms: Terms) -> RowLoss:
    """Turn the student's products into the loss's gradient on them, in place; returns the rows' losses, weighted."""
    z_nV = _finished(_widened(block.z_nV), head)
    u_nV = None
    if block.u_MnV:
        each = [_finished(_widened(u_nV), own) for u_nV, own in zip(block.u_MnV, teacher_heads, strict=True)]
        u_nV = each[0] if block.log_weights_nM is None else mixture_logits(each, block.log_weights_nM)
    slope_nV = None
    if head.softcap is not None:  # d softcap(x) / dx = 1 - (z / c)^2
        slope_nV = (z_nV / head.softcap).square_().neg_().add_(1.0)
    out = _rows(z_nV, u_nV, block, terms)
    if slope_nV is not None:
        z_nV.mul_(slope_nV)
    weight_n = out.weight_n
    if block.weights_n is not None:
        own_n = block.weights_n.to(z_nV.dtype)
        weight_n = own_n if weight_n is None else weight_n * own_n
    loss_n = out.loss_n if weight_n is None else out.loss_n * weight_n
    if weight_n is not None:
        z_nV.mul_((weight_n * head.scale)[:, None])
    elif head.scale != 1.0:
        z_nV.mul_(head.scale)
    if z_nV.dtype != block.z_nV.dtype:
        block.z_nV.copy_(z_nV)
    return out._replace(loss_n=loss_n)


def _rows(z_nV: Tensor, u_nV: Tensor | None, block: _Block, terms: Terms) -> RowLoss:
    if u_nV is not None:
        return live_rows(z_nV, u_nV, terms, block.labels_n)
    if block.cells is None:
        assert block.labels_n is not None
        return ce_rows(z_nV, block.labels_n, terms)
    return sparse_rows(z_nV, block.cells, terms, block.labels_n)
