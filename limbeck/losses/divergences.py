"""Every divergence, once, on cells.

A cell is an outcome of the next-token variable: one cell per token for full vocabularies, or K support tokens and one
tail cell that stands for all others. A divergence is given by its value and by `qg = q * dL/dq`, from which the
gradient on logits follows for any of them (softmax chain rule):

    dL/dz_j = qg_j - q_j * sum(qg)          token j of the support
    dL/dz_j = q_j * (qg_tail / q_tail - sum(qg))    token j inside the tail cell

Shapes: `N` rows, `C` cells. All in float32 or wider.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = ("forward_kl", "reverse_kl", "jsd")


class CellLoss(NamedTuple):
    """`value_N` in nats, and `qg_NC` = q * dL/dq."""

    value_N: Tensor
    qg_NC: Tensor


def on_cells(name: str, logp_NC: Tensor, logq_NC: Tensor, *, beta: float = 0.5) -> CellLoss:
    """Divergence between teacher p and student q given as log-probabilities of cells that sum to 1 in each row.

    forward_kl  KL(p || q)
    reverse_kl  KL(q || p); infinite where p is 0 and q is not
    jsd         beta * KL(p || m) + (1 - beta) * KL(q || m), m = beta p + (1 - beta) q  (GKD, arXiv 2306.13649, eq. 1);
                the degenerate ends are taken as GKD's limits: beta 0 is forward KL, beta 1 reverse KL

    Raises ValueError for an unknown name or a beta outside [0, 1].
    """
    if name == "jsd" and not 0.0 <= beta <= 1.0:
        raise ValueError(f"jsd: beta is {beta}; allowed is 0 to 1 (it weighs the teacher)")
    if name == "forward_kl" or (name == "jsd" and beta == 0.0):
        p_NC = logp_NC.exp()
        return CellLoss(_xlogy(p_NC, logp_NC, logq_NC).sum(-1), -p_NC)
    if name == "reverse_kl" or (name == "jsd" and beta == 1.0):
        q_NC = logq_NC.exp()
        terms_NC = _xlogy(q_NC, logq_NC, logp_NC)
        return CellLoss(terms_NC.sum(-1), terms_NC)
    if name == "jsd":
        logm_NC = torch.logaddexp(logp_NC + math.log(beta), logq_NC + math.log1p(-beta))
        teacher_N = _xlogy(logp_NC.exp(), logp_NC, logm_NC).sum(-1)
        student_NC = _xlogy(logq_NC.exp(), logq_NC, logm_NC)
        return CellLoss(beta * teacher_N + (1 - beta) * student_NC.sum(-1), (1 - beta) * student_NC)
    raise ValueError(f"unknown divergence {name!r}; allowed are {', '.join(NAMES)}")


def _xlogy(x: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """x * (log_a - log_b), 0 where x is 0 (so that minus infinity never meets a zero mass)."""
    return torch.where(x > 0, x * (log_a - log_b), torch.zeros_like(x))


def divergence(
    name: str,
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 0.5,
) -> Tensor:
    """The plain reference: T^2 times the divergence between softmax(teacher / T) and softmax(student / T), per row.

    Differentiable in the student's logits by autograd; the teacher is detached. The T^2 keeps gradients of one size
    whatever T (Hinton et al. 2015, arXiv 1503.02531, section 2). Half precision is computed in float32.

    Returns loss_N in nats (times T^2). Raises ValueError for an unknown name, shapes that differ, or T <= 0.
    """
    if student_logits_NV.shape != teacher_logits_NV.shape:
        raise ValueError(
            f"student logits {tuple(student_logits_NV.shape)} and teacher logits {tuple(teacher_logits_NV.shape)} "
            "differ in shape; cut both to the same vocabulary first"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    wide = torch.promote_types(student_logits_NV.dtype, torch.float32)
    logq_NV = torch.log_softmax(student_logits_NV.to(wide) / temperature, dim=-1)
    logp_NV = torch.log_softmax(teacher_logits_NV.detach().to(wide) / temperature, dim=-1)
    return temperature**2 * on_cells(name, logp_NV, logq_NV, beta=beta).value_N
