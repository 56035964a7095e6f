"""The fused loss: from hidden rows, a head and a target to a loss sum and its gradients, a chunk of rows at a time.

Value and gradients are made in one pass (the gradient of a sum does not wait for anything), so that no N x V tensor is
ever kept: two scratch buffers of `rows x V` are reused by every chunk. Sparse targets are exact in O(K) beyond the
softmax; live targets compute the teacher's logits chunk by chunk beside the student's.

Gradients flow to hidden rows, weight and bias. Second derivatives do not exist here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from limbeck.losses.divergences import NAMES, on_cells
from limbeck.losses.support import row_dot
from limbeck.types import Dist, Head, LiveTarget, LossOut, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRATCH_BYTES = 128 * 2**20
MIN_ROWS, MAX_ROWS = 128, 2048


@dataclass(frozen=True)
class Terms:
    """loss = (1 - ce_weight) * T^2 * divergence + ce_weight * CE (at temperature 1, on ground truth)."""

    divergence: str = "forward_kl"
    temperature: float = 1.0
    ce_weight: float = 0.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        if self.divergence not in NAMES:
            raise ValueError(f"unknown divergence {self.divergence!r}; allowed are {', '.join(NAMES)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        if not 0 <= self.ce_weight <= 1:
            raise ValueError(f"ce_weight is {self.ce_weight}; allowed is 0 to 1")


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
    beta: float = 0.5,
) -> Tensor:
    """Sum over rows of `weights * ((1 - ce_weight) * T^2 * divergence + ce_weight * CE)`, in nats.

    hidden_ND, weight_VD (and bias_V): the student's last hidden rows and its head, any float dtype; the products run in
    the hidden rows' dtype, everything else in float32. `target`: a Dist or a LiveTarget at the same rows; None needs
    ce_weight 1. labels_N: int64 ground truth, needed when ce_weight > 0. Logits are
    `softcap(logit_scale * (hidden @ weight.T + bias))`.

    Differentiable in hidden, weight and bias (once). Raises ValueError where arguments contradict each other.
    """
    head = Head(weight_VD, bias_V, softcap, logit_scale)
    terms = Terms(divergence, temperature, ce_weight, beta)
    return fused_terms(hidden_ND, head, target, terms, labels_N=labels_N, weights_N=weights_N).loss


def fused_terms(
    hidden_ND: Tensor,
    head: Head,
    target: Target | None,
    terms: Terms,
    *,
    labels_N: Tensor | None = None,
    weights_N: Tensor | None = None,
) -> LossOut:
    """As `fused_distill_loss`, and the unweighted sums of CE and divergence beside it."""
    if target is None and terms.ce_weight < 1:
        raise ValueError(f"no target was given and ce_weight is {terms.ce_weight}; without a target it must be 1")
    if labels_N is None and terms.ce_weight > 0:
        raise ValueError("ce_weight is above 0 but there are no labels_N")
    if target is not None and terms.divergence != "forward_kl" and not _is_closed(target):
        raise ValueError(
            f"{terms.divergence} needs the teacher's mass on every token, but this target is a sample without it; "
            "use forward_kl, or a live or top-k target"
        )
    loss, ce, kl = _Fused.apply(hidden_ND, head.weight_VD, head.bias_V, head, target, terms, labels_N, weights_N)  # type: ignore[misc]
    return LossOut(loss=loss, ce=ce, kl=None if target is None else kl, num=hidden_ND.shape[0])


def _is_closed(target: Target) -> bool:
    """False for sampled supports: tokens outside have unknown mass, not zero."""
    return isinstance(target, LiveTarget) or target.entropy_N is None


def iter_logits(
    hidden_ND: Tensor, head: Head, *, vocab: int | None = None, rows: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Logits in float32, a chunk of rows at a time: yields (slice of N, logits_nV). No gradient.

    The yielded tensor is reused by the next chunk: use it before you ask for the next.
    """
    hidden_ND = hidden_ND.detach()
    head = _detached(head if vocab is None else cut_head(head, vocab))
    buffers = _Buffers.like(hidden_ND, head, rows)
    for part in buffers.parts(hidden_ND.shape[0]):
        # No `no_grad` around the yield: two generators in lock step would leave gradients off for their caller.
        yield part, buffers.logits(hidden_ND[part], head, "student")


def _detached(head: Head) -> Head:
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return replace(head, weight_VD=head.weight_VD.detach(), bias_V=bias_V)


def cut_head(head: Head, vocab: int) -> Head:
    """The head of the first `vocab` tokens (views): models of one tokenizer are often padded to different sizes."""
    if vocab == head.weight_VD.shape[0]:
        return head
    bias_V = None if head.bias_V is None else head.bias_V[:vocab]
    return replace(head, weight_VD=head.weight_VD[:vocab], bias_V=bias_V)


class _Buffers:
    """Scratch of `rows x V`, allocated once per call and reused: fresh large temporaries cost more than the maths."""

    def __init__(self, rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.vocab, self.dtype, self.device = rows, vocab, dtype, device
        self._made: dict[tuple[str, torch.dtype], Tensor] = {}

    @classmethod
    def like(cls, hidden_ND: Tensor, head: Head, rows: int | None = None) -> _Buffers:
        vocab = head.weight_VD.shape[0]
        # Smaller chunks re-read the head too often, larger ones only take memory (measured).
        rows = rows or min(max(SCRATCH_BYTES // (4 * vocab), MIN_ROWS), MAX_ROWS)
        return cls(min(rows, max(hidden_ND.shape[0], 1)), vocab, hidden_ND.dtype, hidden_ND.device)

    def parts(self, num: int) -> list[slice]:
        return [slice(start, min(start + self.rows, num)) for start in range(0, num, self.rows)]

    def get(self, name: str, num: int, dtype: torch.dtype = torch.float32) -> Tensor:
        key = (name, dtype)
        if key not in self._made:
            self._made[key] = torch.empty(self.rows, self.vocab, dtype=dtype, device=self.device)
        return self._made[key][:num]

    def logits(self, hidden_nD: Tensor, head: Head, name: str) -> Tensor:
        """softcap(scale * (h W^T + b)) as float32 in the buffer `name`."""
        num = hidden_nD.shape[0]
        weight_DV = head.weight_VD.to(hidden_nD.dtype).T
        z_nV = self.get(name, num, torch.promote_types(hidden_nD.dtype, torch.float32))
        if hidden_nD.dtype == z_nV.dtype:
            torch.mm(hidden_nD, weight_DV, out=z_nV)
        else:
            z_nV.copy_(torch.mm(hidden_nD, weight_DV, out=self.get("half", num, hidden_nD.dtype)))
        if head.bias_V is not None:
            z_nV += head.bias_V
        if head.scale != 1.0:
            z_nV *= head.scale
        if head.softcap is not None:
            z_nV.div_(head.softcap).tanh_().mul_(head.softcap)
        return z_nV


class _Sums(NamedTuple):
    loss: Tensor
    ce: Tensor
    kl: Tensor


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, head, target, terms, labels_N, weights_N):  # type: ignore[override]
        needs = ctx.needs_input_grad[:3]
        head = Head(weight_VD.to(hidden_ND.dtype), bias_V, head.softcap, head.scale)
        if isinstance(target, LiveTarget):
            hidden = target.hidden_ND.detach()
            target = LiveTarget(hidden, replace(target.head, weight_VD=target.head.weight_VD.detach().to(hidden.dtype)))
        sums, grads = _run(hidden_ND, head, target, terms, labels_N, weights_N, needs)
        ctx.save_for_backward(*[grad for grad in grads if grad is not None])
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.present = [grad is not None for grad in grads]
        ctx.mark_non_differentiable(sums.ce, sums.kl)
        return sums.loss, sums.ce, sums.kl

    @staticmethod
    def backward(ctx, grad_loss, _ce, _kl):  # type: ignore[override]
        saved = iter(ctx.saved_tensors)
        grads = []
        for present, dtype in zip(ctx.present, ctx.dtypes, strict=True):
            grads.append(next(saved).mul(grad_loss).to(dtype) if present else None)
        return (*grads, None, None, None, None, None)


def _run(
    hidden_ND: Tensor,
    head: Head,
    target: Target | None,
    terms: Terms,
    labels_N: Tensor | None,
    weights_N: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[_Sums, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    buffers = _Buffers.like(hidden_ND, head)
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    totals_3 = torch.zeros(3, dtype=torch.float64, device=hidden_ND.device)
    dhidden_ND = torch.empty_like(hidden_ND, dtype=wide) if needs[0] else None
    dweight_VD = torch.zeros_like(head.weight_VD, dtype=wide) if needs[1] else None
    dbias_V = torch.zeros(head.weight_VD.shape[0], dtype=wide, device=hidden_ND.device) if needs[2] else None
    half_VD = None
    for part in buffers.parts(hidden_ND.shape[0]):
        h_nD = hidden_ND[part]
        z_nV = buffers.logits(h_nD, head, "student")
        w_n = None if weights_N is None else weights_N[part].to(wide)
        labels_n = None if labels_N is None else labels_N[part]
        values_3n = _chunk(z_nV, _part_of(target, part), terms, labels_n, head.softcap, buffers)
        loss_n = values_3n[0] if w_n is None else values_3n[0] * w_n
        totals_3 += torch.stack([loss_n.sum(), values_3n[1].sum(), values_3n[2].sum()]).double()
        if not any(needs):
            continue
        # z_nV now holds dloss/dlogits.
        if w_n is not None:
            z_nV *= w_n[:, None]
        if head.scale != 1.0:
            z_nV *= head.scale
        if dbias_V is not None:
            dbias_V += z_nV.sum(0)
        dz_nV = z_nV
        if h_nD.dtype != z_nV.dtype:
            dz_nV = buffers.get("half", h_nD.shape[0], h_nD.dtype).copy_(z_nV)
        if dhidden_ND is not None:
            dhidden_ND[part] = torch.mm(dz_nV, head.weight_VD)
        if dweight_VD is not None and dz_nV.dtype == wide:
            dweight_VD.addmm_(dz_nV.T, h_nD)
        elif dweight_VD is not None:
            # bf16 product, float32 accumulation over chunks.
            half_VD = torch.empty_like(head.weight_VD) if half_VD is None else half_VD
            dweight_VD += torch.mm(dz_nV.T, h_nD, out=half_VD).to(wide)
    loss, ce, kl = (total.clone() for total in totals_3.to(wide))
    return _Sums(loss, ce, kl), (dhidden_ND, dweight_VD, dbias_V)


def _part_of(target: Target | None, part: slice) -> Target | None:
    if isinstance(target, Dist):
        entropy_n = None if target.entropy_N is None else target.entropy_N[part]
        return Dist(target.ids_NK[part], target.logp_NK[part], target.tail_N[part], entropy_n)
    if isinstance(target, LiveTarget):
        return LiveTarget(target.hidden_ND[part], target.head)
    return None


def _chunk(
    z_nV: Tensor, target: Target | None, terms: Terms, labels_n: Tensor | None, softcap: float | None, buffers: _Buffers
) -> Tensor:
    """Turn logits into dloss/d(raw logits) in place; return (loss, ce, divergence) per row: [3, n]."""
    num, temperature = z_nV.shape[0], terms.temperature
    slope_nV = None
    if softcap is not None:  # d softcap(x) / dx = 1 - (z / c)^2
        slope_nV = (z_nV / softcap).square_().neg_().add_(1.0)
    ce_n = torch.zeros(num, dtype=z_nV.dtype, device=z_nV.device)
    kl_n = torch.zeros_like(ce_n)
    kd_weight = 1.0 - terms.ce_weight
    shared = temperature == 1.0 and isinstance(target, Dist)
    side_nV = None
    if labels_n is not None:
        gold_n = z_nV.gather(1, labels_n[:, None])[:, 0]
        if target is None or (not shared and terms.ce_weight > 0):
            # A softmax at temperature 1 of its own: in place when nothing else needs the logits.
            side_nV = z_nV if target is None else buffers.get("side", num, z_nV.dtype).copy_(z_nV)
            ce_n = _softmax_(side_nV) - gold_n
            side_nV.scatter_add_(1, labels_n[:, None], torch.full_like(gold_n, -1.0)[:, None])
            side_nV *= terms.ce_weight
        elif not shared:
            ce_n = torch.logsumexp(z_nV, 1) - gold_n
    if isinstance(target, Dist):
        lse_n, kl_n = _sparse_(z_nV, target, terms, kd_weight, labels_n if shared else None)
        if shared and labels_n is not None:
            ce_n = lse_n - gold_n
    elif isinstance(target, LiveTarget):
        kl_n = _live_(z_nV, buffers.logits(target.hidden_ND, target.head, "teacher"), terms, buffers)
        z_nV *= kd_weight * temperature
    if side_nV is not None and side_nV is not z_nV:
        z_nV += side_nV
    if slope_nV is not None:
        z_nV *= slope_nV
    loss_n = kd_weight * temperature**2 * kl_n if target is not None else torch.zeros_like(ce_n)
    return torch.stack([loss_n + terms.ce_weight * ce_n, ce_n, kl_n])


def _softmax_(z_nV: Tensor) -> Tensor:
    """Softmax in place; returns the log normaliser per row."""
    max_n1 = z_nV.amax(1, keepdim=True)
    z_nV.sub_(max_n1).exp_()
    sum_n1 = z_nV.sum(1, keepdim=True)
    z_nV.div_(sum_n1)
    return (max_n1 + sum_n1.log())[:, 0]


def _sparse_(
    z_nV: Tensor, target: Dist, terms: Terms, kd_weight: float, ce_labels_n: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Divergence to a sparse target over K support cells and one tail cell; z becomes the gradient (CE included when
    `ce_labels_n` is given, at the same temperature 1). Returns (log normaliser of z / T, divergence), per row."""
    temperature = terms.temperature
    valid_nK = target.ids_NK >= 0
    ids_nK = target.ids_NK.clamp_min(0)
    max_n1 = z_nV.amax(1, keepdim=True)
    zk_nK = (z_nV.gather(1, ids_nK) - max_n1) / temperature
    z_nV.sub_(max_n1)
    if temperature != 1.0:
        z_nV.div_(temperature)
    z_nV.exp_()
    # The tail's mass is summed without the support, never as 1 - sum(q): that cancels when the tail is small.
    z_nV.scatter_(1, ids_nK, 0.0) if valid_nK.all() else _zero_support_(z_nV, ids_nK, valid_nK)
    tail_sum_n = z_nV.sum(1)
    support_sum_n = torch.where(valid_nK, zk_nK.exp(), 0.0).sum(1)
    log_total_n = (tail_sum_n + support_sum_n).log()
    minus_inf = torch.full((), float("-inf"), dtype=z_nV.dtype, device=z_nV.device)
    logq_nK = torch.where(valid_nK, zk_nK - log_total_n[:, None], minus_inf)
    logp_nK = torch.where(valid_nK, target.logp_NK.to(z_nV.dtype), minus_inf)
    logq_nC = torch.cat([logq_nK, (tail_sum_n.log() - log_total_n)[:, None]], 1)
    logp_nC = torch.cat([logp_nK, target.tail_N.to(z_nV.dtype)[:, None]], 1)
    out = on_cells(terms.divergence, logp_nC, logq_nC, beta=terms.beta)
    value_n = out.value_N
    if target.entropy_N is not None:
        # forward KL of a sampled support: its own entropy is replaced by the teacher's, so the value is unbiased.
        p_nC = logp_nC.exp()
        value_n = value_n - torch.where(p_nC > 0, p_nC * logp_nC, 0.0).sum(1) - target.entropy_N.to(z_nV.dtype)
    # Gradient: a row scale on the tail's tokens, and a K-wide write on the support.
    scale = kd_weight * temperature
    ce_weight = terms.ce_weight if ce_labels_n is not None else 0.0
    sum_qg_n = out.qg_NC.sum(1)
    inside_n = torch.where(tail_sum_n > 0, out.qg_NC[:, -1] / tail_sum_n, 0.0)
    row_n = scale * (inside_n - sum_qg_n / log_total_n.exp()) + ce_weight / log_total_n.exp()
    z_nV.mul_(row_n[:, None])
    q_nK = logq_nK.exp()
    grad_nK = scale * (out.qg_NC[:, :-1] - q_nK * sum_qg_n[:, None]) + ce_weight * q_nK
    z_nV.scatter_add_(1, ids_nK, torch.where(valid_nK, grad_nK, 0.0))
    if ce_labels_n is not None and ce_weight > 0:
        z_nV.scatter_add_(1, ce_labels_n[:, None], torch.full_like(z_nV[:, :1], -ce_weight))
    return max_n1[:, 0] / temperature + log_total_n, value_n


def _zero_support_(e_nV: Tensor, ids_nK: Tensor, valid_nK: Tensor) -> None:
    """Zero the support's entries; padding of the support must not zero token 0."""
    rows_nK = torch.arange(e_nV.shape[0], device=e_nV.device)[:, None].expand_as(ids_nK)
    e_nV.index_put_((rows_nK[valid_nK], ids_nK[valid_nK]), torch.zeros((), dtype=e_nV.dtype, device=e_nV.device))


def _live_(z_nV: Tensor, u_nV: Tensor, terms: Terms, buffers: _Buffers) -> Tensor:
    """Divergence between full distributions; z (student logits) becomes d divergence / d(z / T), u is overwritten."""
    temperature = terms.temperature
    z_nV.div_(temperature)
    u_nV.div_(temperature)
    if terms.divergence == "forward_kl" or (terms.divergence == "jsd" and terms.beta == 0.0):
        # sum p (u - z) - lse(u) + lse(z); gradient q - p.
        delta_nV = torch.sub(u_nV, z_nV, out=buffers.get("delta", z_nV.shape[0], z_nV.dtype))
        value_n = _softmax_(z_nV) - _softmax_(u_nV)
        value_n = value_n + row_dot(u_nV, delta_nV)
        z_nV.sub_(u_nV)
        return value_n
    logq_nV = z_nV.sub_(torch.logsumexp(z_nV, 1, keepdim=True))
    logp_nV = u_nV.sub_(torch.logsumexp(u_nV, 1, keepdim=True))
    out = on_cells(terms.divergence, logp_nV, logq_nV, beta=terms.beta)
    z_nV.exp_().mul_(-out.qg_NC.sum(1, keepdim=True)).add_(out.qg_NC)
    return out.value_N
