"""Every divergence, once, on cells.

A cell is an outcome of the next-token variable: one cell per token for full vocabularies, or K support tokens and one
tail cell that stands for all others. A divergence is given by its value and by `g = dL / dlog q`, from which the
gradient on logits follows for any of them (softmax chain rule):

    dL/dz_j = g_j - q_j * sum(g)                     token j of the support
    dL/dz_j = q_j * (g_tail / q_tail - sum(g))       token j inside the tail cell

Shapes: `N` rows, `C` cells. All in float32 or wider. Second derivatives are not promised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from limbeck.losses.support import top_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FLOOR = -3e38  # stands for minus infinity: 0 * FLOOR is 0, where 0 * -inf is not a number
INFINITE = 1e20  # a value beyond this met a FLOOR
TINY = 1e-37
HEAD = 256  # tokens looked at first for the head of a distribution


class CellLoss(NamedTuple):
    """`value_N`, and `g_NC` = dL/dlog q, up to a multiple of q (which changes no gradient on logits)."""

    value_N: Tensor
    g_NC: Tensor


class Cells(NamedTuple):
    """Distributions over cells: probabilities, and their logs (FLOOR where the probability is 0)."""

    p_NC: Tensor
    logp_NC: Tensor

    @classmethod
    def of_logits(cls, z_NC: Tensor) -> Cells:
        """softmax and log_softmax of logits (differentiable)."""
        return cls(torch.softmax(z_NC, 1), torch.log_softmax(z_NC, 1).clamp_min(FLOOR))

    @classmethod
    def of_logp(cls, logp_NC: Tensor) -> Cells:
        """Log-probabilities that sum to 1 in each row."""
        return cls(logp_NC.exp(), logp_NC.clamp_min(FLOOR))


@dataclass(frozen=True)
class Extra:
    """What some divergences look at beside the two distributions: the ground truth's cell, whether the last cell is a
    tail, and the parameters."""

    params: Mapping[str, float] = field(default_factory=dict)
    labels_N: Tensor | None = None
    tail: bool = False


# ---- information divergences -----------------------------------------------------------------------------------------


def _forward_kl(p: Cells, q: Cells, _: Extra) -> CellLoss:
    return CellLoss(_dot(p.p_NC, p.logp_NC - q.logp_NC), -p.p_NC)


def _reverse_kl(p: Cells, q: Cells, _: Extra) -> CellLoss:
    g_NC = q.p_NC * (q.logp_NC - p.logp_NC)
    return CellLoss(g_NC.sum(1), g_NC)


def _jsd(p: Cells, q: Cells, extra: Extra) -> CellLoss:
    beta = extra.params["beta"]
    if beta == 0.0:
        return _forward_kl(p, q, extra)
    if beta == 1.0:
        return _reverse_kl(p, q, extra)
    logm_NC = torch.lerp(q.p_NC, p.p_NC, beta).clamp_min(TINY).log()
    own_NC = q.p_NC * (q.logp_NC - logm_NC)
    value_N = beta * _dot(p.p_NC, p.logp_NC - logm_NC) + (1 - beta) * own_NC.sum(1)
    return CellLoss(value_N, own_NC * (1 - beta))


def _skew_forward(p: Cells, q: Cells, extra: Extra) -> CellLoss:
    alpha = extra.params["alpha"]
    if alpha == 0.0:
        return _forward_kl(p, q, extra)
    m_NC = torch.lerp(q.p_NC, p.p_NC, alpha).clamp_min(TINY)
    return CellLoss(_dot(p.p_NC, p.logp_NC - m_NC.log()), p.p_NC * (q.p_NC / m_NC) * (alpha - 1))


def _skew_reverse(p: Cells, q: Cells, extra: Extra) -> CellLoss:
    alpha = extra.params["alpha"]
    if alpha == 0.0:
        return _reverse_kl(p, q, extra)
    m_NC = torch.lerp(p.p_NC, q.p_NC, alpha).clamp_min(TINY)
    ratio_NC = q.logp_NC - m_NC.log()
    return CellLoss(_dot(q.p_NC, ratio_NC), q.p_NC * (ratio_NC - alpha * (q.p_NC / m_NC)))


def _adaptive(p: Cells, q: Cells, extra: Extra) -> CellLoss:
    head_NC = _head_of(p.p_NC.detach(), extra.params["mu"], extra.tail)
    gap_NC = (p.p_NC - q.p_NC).abs().detach()
    head_N, all_N = _dot(gap_NC, head_NC), gap_NC.sum(1)
    share_N = head_N / all_N.clamp_min(TINY)
    forward, reverse = _forward_kl(p, q, extra), _reverse_kl(p, q, extra)
    value_N = share_N * forward.value_N + (1 - share_N) * reverse.value_N
    return CellLoss(value_N, torch.lerp(reverse.g_NC, forward.g_NC, share_N[:, None]))


def _head_of(p_NC: Tensor, mass: float, tail: bool) -> Tensor:
    """1.0 for the fewest most probable cells that hold `mass` together, else 0.0; a tail cell is never among them."""
    own_NM = p_NC[:, :-1] if tail else p_NC
    head_NC = torch.zeros_like(p_NC)
    ids_NK = top_ids(own_NM, min(HEAD, own_NM.shape[1]))
    _mark_head(head_NC, ids_NK, own_NM, mass)
    # Few rows are so flat that all must be sorted; for those that are not it would take ten times as long.
    flat_N = (own_NM.gather(1, ids_NK).sum(1) < mass).nonzero()[:, 0]
    if flat_N.numel() and own_NM.shape[1] > HEAD:
        own_flat, head_flat = own_NM[flat_N], head_NC[flat_N]
        _mark_head(head_flat, own_flat.argsort(dim=1, descending=True), own_flat, mass)
        head_NC[flat_N] = head_flat
    return head_NC


def _mark_head(head_NC: Tensor, ids_NK: Tensor, own_NM: Tensor, mass: float) -> None:
    p_NK = own_NM.gather(1, ids_NK)
    head_NC.scatter_(1, ids_NK, (p_NK.cumsum(1) - p_NK < mass).to(head_NC.dtype))


# ---- distances between probabilities ---------------------------------------------------------------------------------


def _tvd(p: Cells, q: Cells, _: Extra) -> CellLoss:
    gap_NC = q.p_NC - p.p_NC
    return CellLoss(0.5 * gap_NC.abs().sum(1), 0.5 * q.p_NC * gap_NC.sign())


def _hellinger(p: Cells, q: Cells, _: Extra) -> CellLoss:
    p_NC, q_NC = (0.5 * p.logp_NC).exp(), (0.5 * q.logp_NC).exp()
    # Half the squared distance of the roots, not 1 - sum(sqrt(p q)): that cancels where the two are close.
    return CellLoss(0.5 * (p_NC - q_NC).square().sum(1), -0.5 * p_NC * q_NC)


def _alpha_beta(p: Cells, q: Cells, extra: Extra) -> CellLoss:
    alpha, beta = extra.params["alpha"], extra.params["beta"]
    total = alpha + beta
    q_beta_NC = (beta * q.logp_NC).exp()
    if alpha == 0:
        log_ratio_NC = q.logp_NC - p.logp_NC
        p_beta_NC = (beta * p.logp_NC).exp()
        value_N = (_dot(q_beta_NC, beta * log_ratio_NC) + (p_beta_NC - q_beta_NC).sum(1)) / beta**2
        return CellLoss(value_N, q_beta_NC * log_ratio_NC)
    p_alpha_NC, q_alpha_NC = (alpha * p.logp_NC).exp(), (alpha * q.logp_NC).exp()
    g_NC = q_beta_NC * (q_alpha_NC - p_alpha_NC) / alpha
    if beta == 0:
        log_ratio_NC = p.logp_NC - q.logp_NC
        value_N = (_dot(p_alpha_NC, alpha * log_ratio_NC) + (q_alpha_NC - p_alpha_NC).sum(1)) / alpha**2
        return CellLoss(value_N, g_NC)
    both_N = alpha / total * (total * p.logp_NC).exp().sum(1) + beta / total * (total * q.logp_NC).exp().sum(1)
    return CellLoss((both_N - _dot(p_alpha_NC, q_beta_NC)) / (alpha * beta), g_NC)


# ---- distances between logits; log-probabilities minus their mean are centred logits ---------------------------------


def _mse(p: Cells, q: Cells, _: Extra) -> CellLoss:
    gap_NC = _centred(q.logp_NC) - _centred(p.logp_NC)
    cells = gap_NC.shape[1]
    return CellLoss(_dot(gap_NC, gap_NC) / (2 * cells), gap_NC / cells)


def _cosine(p: Cells, q: Cells, _: Extra) -> CellLoss:
    u_NC, z_NC = _centred(p.logp_NC), _centred(q.logp_NC)
    u_NC = u_NC / _length(u_NC, p.logp_NC)[:, None]
    size_N = _length(z_NC, q.logp_NC)
    z_NC = z_NC / size_N[:, None]
    cosine_N = _dot(u_NC, z_NC)
    return CellLoss(1 - cosine_N, (cosine_N[:, None] * z_NC - u_NC) / size_N[:, None])


def _length(centred_NC: Tensor, logp_NC: Tensor) -> Tensor:
    """Euclidean length of each row. Infinite where all tokens are equally likely up to rounding: nothing has a
    direction there, so that the cosine is 0 and moves nothing."""
    noise_N = (16 * torch.finfo(logp_NC.dtype).eps) ** 2 * _dot(logp_NC, logp_NC).detach()
    square_N = _dot(centred_NC, centred_NC)
    return square_N.masked_fill(square_N <= noise_N, math.inf).sqrt()


def _decoupled(p: Cells, q: Cells, extra: Extra) -> CellLoss:
    assert extra.labels_N is not None
    gold_N1 = extra.labels_N[:, None]
    sides = []
    for cells in (p, q):
        gold = cells.logp_NC.gather(1, gold_N1)
        others = cells.logp_NC.scatter(1, gold_N1, -math.inf).logsumexp(1, keepdim=True).clamp_min(FLOOR)
        sides.append((gold, others, cells.logp_NC.scatter(1, gold_N1, FLOOR) - others.clamp_min(-1e30)))
    (p_gold, p_others, p_rest), (q_gold, q_others, q_rest) = sides
    target_N = _dot(p_gold.exp(), p_gold - q_gold) + _dot(p_others.exp(), p_others - q_others)
    p_rest_NC, q_rest_NC = p_rest.clamp_min(FLOOR), q_rest.clamp_min(FLOOR)
    rest_N = _dot(p_rest_NC.exp(), p_rest_NC - q_rest_NC)
    alpha, beta = extra.params["alpha"], extra.params["beta"]
    g_NC = (beta - alpha * p_others.exp()) * q_rest_NC.exp() - beta * p_rest_NC.exp()
    g_NC = g_NC.scatter(1, gold_N1, -alpha * p_gold.exp())
    return CellLoss(alpha * target_N + beta * rest_N, g_NC)


def _ranking(p: Cells, q: Cells, extra: Extra) -> CellLoss:
    own_NC = p.logp_NC[:, :-1] if extra.tail else p.logp_NC
    top = own_NC.topk(min(int(extra.params["k"]), own_NC.shape[1]), dim=1)
    z_Nk = q.logp_NC.gather(1, top.indices)
    known_Nk = (top.values > FLOOR / 2).to(z_Nk.dtype)  # padding of a support is no token
    # Every pair (i, j) of which the teacher prefers i: the student's lead of i over j should be the margin at least.
    short_Nkk = extra.params["margin"] - (z_Nk[:, :, None] - z_Nk[:, None, :])
    pairs_Nkk = (known_Nk[:, :, None] * known_Nk[:, None, :]).triu(1)
    share_Nkk = pairs_Nkk / pairs_Nkk.sum((1, 2), keepdim=True).clamp_min(1.0)
    broken_Nkk = share_Nkk * (short_Nkk > 0)
    g_Nk = broken_Nkk.sum(1) - broken_Nkk.sum(2)
    value_N = (broken_Nkk * short_Nkk.clamp_min(0.0)).sum((1, 2))
    return CellLoss(value_N, torch.zeros_like(q.logp_NC).scatter(1, top.indices, g_Nk))


def _centred(values_NC: Tensor) -> Tensor:
    return values_NC - values_NC.mean(1, keepdim=True)


def _dot(a_NC: Tensor, b_NC: Tensor) -> Tensor:
    return torch.linalg.vecdot(a_NC, b_NC)


# ---- the table -------------------------------------------------------------------------------------------------------


class Param(NamedTuple):
    """A parameter's default and its allowed range."""

    default: float
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Divergence:
    """One row of the table. `about` is the formula; `source` where it comes from.

    `needs`: "sample" is content with unbiased draws; "cells" with a support and a tail cell; "full" wants every token.
    `tempered`: False where the temperature only scales the loss or does nothing at all.
    """

    on_cells: Callable[[Cells, Cells, Extra], CellLoss]
    about: str
    source: str
    needs: str = "cells"
    params: Mapping[str, Param] = field(default_factory=dict)
    labels: bool = False
    tempered: bool = True


_HALF = {"beta": Param(0.5)}
DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(_forward_kl, "KL(p || q)", "Hinton et al. 2015, arXiv 1503.02531", "sample"),
    "reverse_kl": Divergence(_reverse_kl, "KL(q || p)", "MiniLLM, arXiv 2306.08543"),
    "jsd": Divergence(
        _jsd,
        "beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; its degenerate ends are taken as GKD's "
        "limits: beta 0 is forward KL, beta 1 reverse KL",
        "GKD, arXiv 2306.13649, eq. 1",
        params=_HALF,
    ),
    "skew_forward": Divergence(
        _skew_forward,
        "KL(p || alpha p + (1 - alpha) q)",
        "DistiLLM, arXiv 2402.03898",
        params={"alpha": Param(0.1)},
    ),
    "skew_reverse": Divergence(
        _skew_reverse,
        "KL(q || (1 - alpha) p + alpha q)",
        "DistiLLM, arXiv 2402.03898",
        params={"alpha": Param(0.1)},
    ),
    "adaptive": Divergence(
        _adaptive,
        "forward and reverse KL mixed by where |p - q| lies: among the tokens that hold mu of p, or outside",
        "AKL, arXiv 2404.02657",
        params={"mu": Param(0.5)},
    ),
    "alpha_beta": Divergence(
        _alpha_beta,
        "(alpha / (alpha + beta) p^(alpha + beta) + beta / (alpha + beta) q^(alpha + beta) - p^alpha q^beta) "
        "/ (alpha beta), and its limits: (1, 0) is forward KL, (0, 1) reverse KL",
        "ABKD, arXiv 2505.04560",
        params={"alpha": Param(0.2, 0.0, 4.0), "beta": Param(0.7, 0.0, 4.0)},
    ),
    "tvd": Divergence(_tvd, "sum |p - q| / 2", "f-DISTILL, arXiv 2307.15190"),
    "hellinger": Divergence(_hellinger, "sum (sqrt p - sqrt q)^2 / 2", "the squared Hellinger distance"),
    "mse": Divergence(
        _mse,
        "mean over the vocabulary of half the squared difference of centred logits",
        "Ba and Caruana 2014, arXiv 1312.6184",
        "full",
        tempered=False,
    ),
    "cosine": Divergence(
        _cosine,
        "1 - cosine of the angle between centred logits",
        "DIST, arXiv 2205.10536 (Pearson correlation)",
        "full",
        tempered=False,
    ),
    "decoupled": Divergence(
        _decoupled,
        "alpha KL(gold or not) + beta KL(among the others)",
        "DKD, arXiv 2203.08679, eq. 7",
        "full",
        params={"alpha": Param(1.0, 0.0, 100.0), "beta": Param(2.0, 0.0, 100.0)},
        labels=True,
    ),
    "ranking": Divergence(
        _ranking,
        "mean over pairs of the teacher's k most probable tokens of max(0, margin - (z_i - z_j)), i above j",
        "the pairwise hinge (Herbrich et al. 2000)",
        params={"k": Param(8, 2, 64), "margin": Param(0.0, 0.0, 100.0)},
    ),
}
NAMES = tuple(DIVERGENCES)


def resolve(name: str, params: Mapping[str, float]) -> dict[str, float]:
    """All parameters of a divergence, defaults filled in. Raises ValueError for an unknown name or parameter, or a
    value outside its range."""
    if name not in DIVERGENCES:
        raise ValueError(f"unknown divergence {name!r}; allowed are {', '.join(NAMES)}")
    known = DIVERGENCES[name].params
    for key, value in params.items():
        if key not in known:
            allowed = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"{name} has no parameter {key!r}; {allowed}")
        if not known[key].low <= value <= known[key].high:
            low, high = known[key].low, known[key].high
            raise ValueError(f"{name}: {key} is {value}; allowed is {low:g} to {high:g}")
    full = {key: params.get(key, param.default) for key, param in known.items()}
    if name == "alpha_beta" and full["alpha"] == 0 == full["beta"]:
        raise ValueError("alpha_beta: alpha and beta are both 0; at least one must be above")
    return full


def on_cells(name: str, teacher: Cells, student: Cells, extra: Extra) -> CellLoss:
    """Divergence between two distributions over the same cells, as value and gradient. `extra.params` are those that
    `resolve` returned."""
    out = DIVERGENCES[name].on_cells(teacher, student, extra)
    return CellLoss(out.value_N.masked_fill(out.value_N > INFINITE, math.inf), out.g_NC)


def divergence(
    name: str,
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    labels_N: Tensor | None = None,
    **params: float,
) -> Tensor:
    """The plain reference: T^2 times the divergence between softmax(teacher / T) and softmax(student / T), per row.

    Differentiable in the student's logits by autograd; the teacher is detached. The T^2 keeps gradients of one size
    whatever T (Hinton et al. 2015, arXiv 1503.02531, section 2). Half precision is computed in float32. `temperature`
    may be a tensor of N. `labels_N` (int64) is the ground truth, needed by `decoupled`. Names, formulas and parameters
    are in `DIVERGENCES`.

    Returns loss_N (nats for the KL family; times T^2). Raises ValueError for an unknown name or parameter, a value out
    of range, shapes that differ, or T <= 0.
    """
    if student_logits_NV.shape != teacher_logits_NV.shape:
        raise ValueError(
            f"student logits {tuple(student_logits_NV.shape)} and teacher logits {tuple(teacher_logits_NV.shape)} "
            "differ in shape; cut both to the same vocabulary first"
        )
    wide = torch.promote_types(student_logits_NV.dtype, torch.float32)
    t_N = torch.as_tensor(temperature, dtype=wide, device=student_logits_NV.device)
    if not bool((t_N > 0).all()):
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    extra = Extra(resolve(name, params), labels_N)
    if DIVERGENCES[name].labels and labels_N is None:
        raise ValueError(f"{name} needs labels_N, the tokens that really follow")
    if not DIVERGENCES[name].tempered and bool((t_N != 1).any()):
        raise ValueError(f"{name} does not depend on the temperature, but it is {temperature}; leave it at 1")
    student = Cells.of_logits(student_logits_NV.to(wide) / t_N.reshape(-1, 1))
    teacher = Cells.of_logits(teacher_logits_NV.detach().to(wide) / t_N.reshape(-1, 1))
    return t_N**2 * on_cells(name, teacher, student, extra).value_N
