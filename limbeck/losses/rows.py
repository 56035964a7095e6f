"""A block of rows of logits turned into the gradient of its loss, in place: the arithmetic of the fused loss.

A block is a few rows, small enough for the cache: the same passes over hundreds of rows at once take two to seven times
as long (fresh temporaries of a hundred megabytes). Logits come in at temperature 1, after scale and soft cap, in
float32 or wider. Letters: `n` rows of the block, `V` vocabulary, `K` support, `C` cells (K and the tail).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from limbeck.losses.divergences import INFINITE, TINY, Cells, Extra, on_cells
from limbeck.losses.terms import Adaptive, Terms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from limbeck.types import Dist


class RowLoss(NamedTuple):
    """Per row: the loss, cross-entropy, the sum of `weight * divergence` (no T^2), and the position's weight."""

    loss_n: Tensor
    ce_n: Tensor
    kl_n: Tensor
    weight_n: Tensor | None = None


def softmax_(z_nV: Tensor, out: Tensor | None = None) -> Tensor:
    """Softmax in place or into `out`; returns the log normaliser of each row."""
    max_n = z_nV.amax(1)
    q_nV = torch.softmax(z_nV, 1, out=z_nV if out is None else out)
    # Looking for the largest twice takes less than `logsumexp`: torch's softmax has the quicker exponential.
    return max_n - q_nV.amax(1).log()


# ---- cross-entropy ---------------------------------------------------------------------------------------------------


@dataclass
class _CrossEntropy:
    """CE on ground truth beside a divergence. When both are at temperature 1 they share one softmax."""

    terms: Terms
    labels_n1: Tensor
    gold_n: Tensor
    mean_n: Tensor | None
    side_nV: Tensor | None = None  # a softmax of its own
    ce_n: Tensor | None = None

    @classmethod
    def begin(cls, z_nV: Tensor, labels_n: Tensor | None, terms: Terms, *, shared: bool) -> _CrossEntropy | None:
        """Look at the logits before they are overwritten."""
        if labels_n is None:
            return None
        labels_n1 = labels_n[:, None]
        mean_n = z_nV.mean(1) if terms.label_smoothing else None
        own = cls(terms, labels_n1, z_nV.gather(1, labels_n1)[:, 0], mean_n)
        if not shared:
            own.side_nV = z_nV.clone()
            own.ce_n = own.value(softmax_(own.side_nV))
            own.side_nV.mul_(terms.ce_weight)
        return own

    @property
    def shared_weight(self) -> float:
        """The weight with which the shared softmax enters the gradient."""
        return self.terms.ce_weight if self.side_nV is None else 0.0

    def value(self, normaliser_n: Tensor) -> Tensor:
        ce_n, smooth = normaliser_n - self.gold_n, self.terms.label_smoothing
        return ce_n if self.mean_n is None else (1 - smooth) * ce_n + smooth * (normaliser_n - self.mean_n)

    def finish_(self, grad_nV: Tensor, normaliser_n: Tensor | None) -> Tensor:
        """Add what is missing of CE's gradient; returns its value per row."""
        if self.side_nV is not None:
            grad_nV.add_(self.side_nV)
        terms = self.terms
        if terms.ce_weight:
            share = terms.ce_weight * (1 - terms.label_smoothing)
            grad_nV.scatter_add_(1, self.labels_n1, torch.full_like(grad_nV[:, :1], -share))
        if terms.label_smoothing:
            grad_nV.sub_(terms.ce_weight * terms.label_smoothing / grad_nV.shape[1])
        if self.ce_n is not None:
            return self.ce_n
        assert normaliser_n is not None
        return self.value(normaliser_n)


def ce_rows(z_nV: Tensor, labels_n: Tensor, terms: Terms) -> RowLoss:
    """Cross-entropy alone: z becomes its gradient."""
    ce = _CrossEntropy.begin(z_nV, labels_n, terms, shared=True)
    assert ce is not None
    normaliser_n = softmax_(z_nV)
    if terms.ce_weight != 1.0:
        z_nV.mul_(terms.ce_weight)
    ce_n = ce.finish_(z_nV, normaliser_n)
    return RowLoss(terms.ce_weight * ce_n, ce_n, torch.zeros_like(ce_n))


# ---- sparse targets --------------------------------------------------------------------------------------------------


def sparse_rows(z_nV: Tensor, target: Dist, terms: Terms, labels_n: Tensor | None) -> RowLoss:
    """Divergences to a target of K support cells and one tail cell: exact in O(K) beyond one softmax."""
    temperature = terms.kd[0].temperature
    assert not isinstance(temperature, Adaptive)
    ce = _CrossEntropy.begin(z_nV, labels_n, terms, shared=temperature == 1.0)
    if temperature != 1.0:
        z_nV.div_(temperature)
    rows_of = _sampled_rows if target.offers == "sample" else _cell_rows
    scale = (1.0 - terms.ce_weight) * temperature
    normaliser_n, kl_n = rows_of(z_nV, target, terms, (scale, ce.shared_weight if ce else 0.0))
    ce_n = torch.zeros_like(kl_n) if ce is None else ce.finish_(z_nV, normaliser_n)
    loss_n = scale * temperature * kl_n + terms.ce_weight * ce_n
    return RowLoss(loss_n, ce_n, kl_n, _weights_of(target, terms))


def _sampled_rows(z_nV: Tensor, target: Dist, terms: Terms, factors: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Forward KL to a sample (tokens outside have unknown mass, not zero), or to a tail that is spread evenly. The
    gradient is `q - p` with p zero almost everywhere: no pass beyond the softmax."""
    scale, ce_weight = factors
    total = sum(term.weight for term in terms.kd)
    scale = scale * total
    ids_nK, wide = target.ids_NK.clamp_min(0), z_nV.dtype
    z_nK = z_nV.gather(1, ids_nK)
    spread = _Spread.of(target, z_nV, z_nK) if target.spread else None
    normaliser_n = softmax_(z_nV)
    teacher = Cells.of_logp(target.logp_NK.to(wide))
    logq_nK = z_nK - normaliser_n[:, None]
    if target.entropy_N is not None:
        # The sample's own entropy is replaced by the teacher's, so that the value is unbiased.
        value_n = -torch.linalg.vecdot(teacher.p_NC, logq_nK) - target.entropy_N.to(wide)
    else:
        value_n = torch.linalg.vecdot(teacher.p_NC, teacher.logp_NC - logq_nK)
    if scale + ce_weight != 1.0:
        z_nV.mul_(scale + ce_weight)
    add_nK = -scale * teacher.p_NC
    if spread is not None:
        value_n = value_n + spread.mass_n * (spread.log_each_n - spread.mean_z_n + normaliser_n)
        each_n1 = scale * (spread.log_each_n.exp() * (spread.mass_n > 0))[:, None]
        z_nV.sub_(each_n1)
        add_nK = add_nK + each_n1 * (target.ids_NK >= 0)
    z_nV.scatter_add_(1, ids_nK, add_nK)
    return normaliser_n, total * value_n


class _Spread(NamedTuple):
    """A tail of `mass_n` spread evenly: the log-probability of each of its tokens, and their mean logit."""

    mass_n: Tensor
    log_each_n: Tensor
    mean_z_n: Tensor

    @classmethod
    def of(cls, target: Dist, z_nV: Tensor, z_nK: Tensor) -> _Spread:
        valid_nK = target.ids_NK >= 0
        outside_n = (z_nV.shape[1] - valid_nK.sum(1)).clamp_min(1)
        tail_n = target.tail_N.to(z_nV.dtype)
        sum_n = z_nV.sum(1) - torch.where(valid_nK, z_nK, 0.0).sum(1)
        return cls(tail_n.exp(), tail_n.clamp_min(-1e30) - outside_n.log(), sum_n / outside_n)


def _cell_rows(z_nV: Tensor, target: Dist, terms: Terms, factors: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Any divergence on K + 1 cells, the last one the tail."""
    scale, ce_weight = factors
    wide = z_nV.dtype
    valid_nK, ids_nK = target.ids_NK >= 0, target.ids_NK.clamp_min(0)
    z_nK = z_nV.gather(1, ids_nK)
    normaliser_n = softmax_(z_nV)
    logq_nK = (z_nK - normaliser_n[:, None]).masked_fill(~valid_nK, -math.inf)
    logp_nK = target.logp_NK.to(wide).masked_fill(~valid_nK, -math.inf)
    # The tail's mass is summed without the support, never as 1 - sum(q): that cancels when the tail is small.
    _zero_support_(z_nV, ids_nK, valid_nK)
    tail_n = z_nV.sum(1)
    student = Cells.of_logp(torch.cat([logq_nK, tail_n.log()[:, None]], 1))
    teacher = Cells.of_logp(torch.cat([logp_nK, target.tail_N.to(wide)[:, None]], 1))
    value_n, g_nC = torch.zeros_like(tail_n), torch.zeros_like(student.p_NC)
    for term in terms.kd:
        out = on_cells(term.divergence, teacher, student, Extra(term.params, tail=True))
        value_n += term.weight * out.value_N
        g_nC.add_(out.g_NC, alpha=term.weight * scale)
    # A row scale on the tail's tokens, and a K-wide write on the support.
    sum_n = g_nC.sum(1)
    inside_n = torch.where(tail_n > 0, g_nC[:, -1] / tail_n, 0.0)
    z_nV.mul_((inside_n - sum_n + ce_weight)[:, None])
    add_nK = g_nC[:, :-1] + (ce_weight - sum_n)[:, None] * student.p_NC[:, :-1]
    z_nV.scatter_add_(1, ids_nK, add_nK.masked_fill(~valid_nK, 0.0))
    return normaliser_n, value_n


def _zero_support_(q_nV: Tensor, ids_nK: Tensor, valid_nK: Tensor) -> None:
    """Zero the support's entries. Padding stands on a valid entry of its row, or on token 0 and leaves it as it is."""
    any_n1, first_n1 = valid_nK.to(torch.int8).max(1, keepdim=True)
    ids_nK = torch.where(valid_nK, ids_nK, ids_nK.gather(1, first_n1))
    q_nV.scatter_(1, ids_nK, q_nV.gather(1, ids_nK) * (any_n1 == 0))


def _weights_of(target: Dist, terms: Terms) -> Tensor | None:
    by = terms.position_weights
    if by is None:
        return None
    if by.measure == "confidence":
        return by.at(1.0 - target.logp_NK.amax(1).exp())
    assert target.entropy_N is not None  # `chunked` refuses others
    return by.at(target.entropy_N)


# ---- live targets ----------------------------------------------------------------------------------------------------


def live_rows(z_nV: Tensor, u_nV: Tensor, terms: Terms, labels_n: Tensor | None) -> RowLoss:
    """Divergences between full distributions: z (student logits) becomes the gradient, u (teacher logits) is lost."""
    term, *more = terms.kd
    if more or term.divergence not in _CLOSED or isinstance(term.temperature, Adaptive):
        return _general_rows(z_nV, u_nV, terms, labels_n)
    temperature, kd = term.temperature, 1.0 - terms.ce_weight
    weight_n = None if terms.position_weights is None else _between(terms.position_weights, u_nV)
    ce = _CrossEntropy.begin(z_nV, labels_n, terms, shared=temperature == 1.0)
    if temperature != 1.0:
        z_nV.div_(temperature)
        u_nV.div_(temperature)
    # T^2 meets the 1 / T of the chain rule.
    factors = (kd * temperature, ce.shared_weight if ce else 0.0)
    value_n, normaliser_n = _CLOSED[term.divergence](z_nV, u_nV, term.params, factors)
    value_n.masked_fill_(value_n > INFINITE, math.inf)
    ce_n = torch.zeros_like(value_n) if ce is None else ce.finish_(z_nV, normaliser_n)
    return RowLoss(kd * temperature**2 * value_n + terms.ce_weight * ce_n, ce_n, value_n, weight_n)


# Closed forms in as few passes as torch offers. With (scale, own) = factors, z becomes scale * dD/dz + own * softmax(z)
# and u is lost; returned are the divergence and the log normaliser of z. `divergences.py` has the same plainly.


def _live_forward_kl(
    z_nV: Tensor, u_nV: Tensor, _: Mapping[str, float], factors: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """q - p, and sum p (u - z) between the normalisers."""
    scale, own = factors
    gap_nV = u_nV - z_nV
    value_n = -softmax_(u_nV)
    value_n += gap_nV.mul_(u_nV).sum(1)
    normaliser_n = softmax_(z_nV)
    if scale + own != 1.0:
        z_nV.mul_(scale + own)
    z_nV.sub_(u_nV, alpha=scale)
    return value_n + normaliser_n, normaliser_n


def _live_reverse_kl(
    z_nV: Tensor, u_nV: Tensor, _: Mapping[str, float], factors: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """q (d - sum q d) with d = z - u: normalisers cancel."""
    p_nV = torch.empty_like(u_nV)
    other_n = softmax_(u_nV, out=p_nV)
    gap_nV = torch.sub(z_nV, u_nV, out=p_nV)
    normaliser_n = softmax_(z_nV)
    mean_n = _own_gap(z_nV, gap_nV, 1.0, factors, out=z_nV)
    return mean_n - normaliser_n + other_n, normaliser_n


def _live_jsd(
    z_nV: Tensor, u_nV: Tensor, params: Mapping[str, float], factors: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """(1 - beta) q (d - sum q d) with d = z - log m."""
    beta = params["beta"]
    if beta in (0.0, 1.0):
        return (_live_forward_kl if beta == 0.0 else _live_reverse_kl)(z_nV, u_nV, params, factors)
    # The largest is taken off first: what remains is small where it weighs, however large the logits were.
    max_n = z_nV.amax(1)
    z_nV.sub_(max_n[:, None])
    u_nV.sub_(u_nV.amax(1)[:, None])
    q_nV, p_nV = torch.softmax(z_nV, 1), torch.softmax(u_nV, 1)
    normaliser_n, other_n = -q_nV.amax(1).log(), -p_nV.amax(1).log()
    logm_nV = torch.lerp(q_nV, p_nV, beta).clamp_min_(TINY).log_()
    theirs_n = u_nV.sub_(logm_nV).mul_(p_nV).sum(1) - other_n
    gap_nV = z_nV.sub_(logm_nV)
    ours_n = _own_gap(q_nV, gap_nV, 1.0 - beta, factors, out=z_nV) - normaliser_n
    return beta * theirs_n + (1.0 - beta) * ours_n, normaliser_n + max_n


def _own_gap(q_nV: Tensor, gap_nV: Tensor, share: float, factors: tuple[float, float], out: Tensor) -> Tensor:
    """out = scale * share * q (gap - mean) + own * q, where q and gap are lost; returns the mean of gap under q."""
    scale, own = factors
    mean_n = gap_nV.mul_(q_nV).sum(1)
    q_nV.mul_((own - scale * share * mean_n)[:, None])
    torch.add(q_nV, gap_nV, alpha=scale * share, out=out)
    return mean_n


_CLOSED = {"forward_kl": _live_forward_kl, "reverse_kl": _live_reverse_kl, "jsd": _live_jsd}


def _general_rows(z_nV: Tensor, u_nV: Tensor, terms: Terms, labels_n: Tensor | None) -> RowLoss:
    """Any divergences at any temperatures, as `divergences.py` has them."""
    temperatures = dict.fromkeys(term.temperature for term in terms.kd)
    ce = _CrossEntropy.begin(z_nV, labels_n, terms, shared=1.0 in temperatures)
    kd = 1.0 - terms.ce_weight
    grad_nV, normaliser_n = None, None
    loss_n, kl_n = torch.zeros_like(z_nV[:, 0]), torch.zeros_like(z_nV[:, 0])
    for temperature in temperatures:
        t_n1 = _between(temperature, u_nV)[:, None] if isinstance(temperature, Adaptive) else temperature
        cold = isinstance(t_n1, Tensor) or t_n1 != 1.0
        teacher, student = (Cells.of_logits(x_nV / t_n1 if cold else x_nV) for x_nV in (u_nV, z_nV))
        value_n, g_nV = torch.zeros_like(kl_n), None
        for term in terms.kd:
            if term.temperature != temperature:
                continue
            out = on_cells(term.divergence, teacher, student, Extra(term.params, labels_n))
            value_n.add_(out.value_N, alpha=term.weight)
            g_nV = _add(g_nV, out.g_NC, term.weight)
        assert g_nV is not None
        kl_n += value_n
        loss_n += kd * (t_n1**2 * value_n[:, None])[:, 0]
        # dz = T (g - q sum(g)): T^2 meets the 1 / T of the chain rule.
        own_n1 = -g_nV.sum(1, keepdim=True) * (kd * t_n1)
        if ce is not None and not cold and ce.shared_weight:
            own_n1 += ce.shared_weight
        if cold or kd != 1.0:
            g_nV = g_nV * (kd * t_n1)
        # The logits are overwritten when no other temperature needs them.
        step_nV = torch.addcmul(g_nV, student.p_NC, own_n1, out=z_nV if len(temperatures) == 1 else None)
        grad_nV = _add(grad_nV, step_nV, 1.0)
        if ce is not None and not cold:
            normaliser_n = ce.gold_n - student.logp_NC.gather(1, ce.labels_n1)[:, 0]
    weight_n = None if terms.position_weights is None else _between(terms.position_weights, u_nV)
    if len(temperatures) > 1:
        assert grad_nV is not None
        z_nV.copy_(grad_nV)
    ce_n = torch.zeros_like(kl_n) if ce is None else ce.finish_(z_nV, normaliser_n)
    return RowLoss(loss_n + terms.ce_weight * ce_n, ce_n, kl_n, weight_n)


def _add(total_nV: Tensor | None, more_nV: Tensor, weight: float) -> Tensor:
    if total_nV is None:
        return more_nV if weight == 1.0 else more_nV * weight
    return total_nV.add(more_nV, alpha=weight)


def _between(by: Adaptive, u_nV: Tensor) -> Tensor:
    """The adaptive number of each row, from the teacher's logits."""
    cells = Cells.of_logits(u_nV)
    if by.measure == "confidence":
        return by.at(1.0 - cells.p_NC.amax(1))
    return by.at(-torch.linalg.vecdot(cells.p_NC, cells.logp_NC))
