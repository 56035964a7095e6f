"""How close a student's next-token distributions are to the teacher's, position by position, at temperature 1.

Two questions are kept apart (fidelity is not accuracy): `kl`, `tv` and `agree` compare the student with the teacher;
`ce` and `correct` compare a model with what really follows. Everything works on chunks of `N` positions by `V` tokens;
nothing larger than a chunk is ever made. Logits are finite; half precision is computed in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PositionScores(NamedTuple):
    """Scores of one model at N positions.

    kl_N       KL(teacher || model) in nats; 0 for the teacher
    agree_N    whether the model's most probable token is the teacher's
    ce_N       -log p(the token that follows), in nats
    confidence_N  probability of the model's most probable token
    correct_N  whether that token is the one that follows
    tv_N       total variation to the teacher, 0 to 1: half the L1 distance of the two distributions
    top_N      the most probable token, the lowest id where several tie
    """

    kl_N: Tensor
    agree_N: Tensor
    ce_N: Tensor
    confidence_N: Tensor
    correct_N: Tensor
    tv_N: Tensor
    top_N: Tensor


class Reference(NamedTuple):
    """The teacher's distributions of a chunk, made once for all students. `entropy_N` is in nats."""

    logp_NV: Tensor
    p_NV: Tensor
    top_N: Tensor
    entropy_N: Tensor


def reference(teacher_logits_NV: Tensor) -> Reference:
    """What students are compared with. The logits are not kept: they may be overwritten afterwards."""
    logp_NV = torch.log_softmax(_wide(teacher_logits_NV), dim=-1)
    p_NV = logp_NV.exp()
    return Reference(logp_NV, p_NV, logp_NV.argmax(-1), -torch.linalg.vecdot(p_NV, logp_NV))


def reference_of_words(labels_N: Tensor, vocab: int) -> Reference:
    """A teacher that is known by its words only: all mass on the token that follows, so that KL is cross-entropy."""
    p_NV = torch.nn.functional.one_hot(labels_N, vocab).float()
    # Logarithms count where p is 1; elsewhere any finite number does.
    return Reference(torch.zeros_like(p_NV), p_NV, labels_N, torch.zeros_like(p_NV[:, 0]))


def position_scores(student_logits_NV: Tensor, teacher_logits_NV: Tensor, labels_N: Tensor) -> PositionScores:
    """Scores of a student against the teacher's logits at the same positions; labels_N int64 are what really follows.

    Raises ValueError when the two differ in shape.
    """
    return score_against(student_logits_NV, reference(teacher_logits_NV), labels_N)


def score_against(student_logits_NV: Tensor, teacher: Reference, labels_N: Tensor) -> PositionScores:
    """As `position_scores`, for a reference that several students share."""
    if student_logits_NV.shape != teacher.p_NV.shape:
        raise ValueError(
            f"student logits {tuple(student_logits_NV.shape)} and teacher logits {tuple(teacher.p_NV.shape)} differ in "
            "shape; cut both to the same vocabulary first"
        )
    logq_NV = torch.log_softmax(_wide(student_logits_NV), dim=-1)
    # p . (log p - log q) and not the difference of two sums: it does not cancel where the two are close.
    kl_N = torch.linalg.vecdot(teacher.p_NV, teacher.logp_NV - logq_NV).clamp_min(0.0)
    top_N, ce_N = logq_NV.argmax(-1), -_at(logq_NV, labels_N)
    confidence_N = _at(logq_NV, top_N).exp()
    tv_N = torch.linalg.vector_norm(logq_NV.exp_().sub_(teacher.p_NV), ord=1, dim=-1) / 2
    return PositionScores(
        kl_N=kl_N,
        agree_N=top_N == teacher.top_N,
        ce_N=ce_N,
        confidence_N=confidence_N,
        correct_N=top_N == labels_N,
        tv_N=tv_N.clamp_max(1.0),
        top_N=top_N,
    )


def own_scores(model: Reference, labels_N: Tensor) -> PositionScores:
    """A model by itself, such as the teacher: KL 0, agreement 1."""
    zeros_N = torch.zeros_like(model.entropy_N)
    return PositionScores(
        kl_N=zeros_N,
        agree_N=torch.ones_like(model.top_N, dtype=torch.bool),
        ce_N=-_at(model.logp_NV, labels_N),
        confidence_N=_at(model.p_NV, model.top_N),
        correct_N=model.top_N == labels_N,
        tv_N=zeros_N,
        top_N=model.top_N,
    )


def _at(values_NV: Tensor, ids_N: Tensor) -> Tensor:
    return values_NV.gather(1, ids_N[:, None])[:, 0]


def _wide(logits_NV: Tensor) -> Tensor:
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
