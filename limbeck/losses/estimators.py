"""KL from sampled tokens: what a divergence looks like when only the sampled token's log-probability is known.

With x drawn from the student q and `log_ratio = log q(x) - log p(x)` (Schulman, "Approximating KL divergence", 2020):

    k1 = log_ratio                          unbiased for KL(q || p), of either sign
    k2 = log_ratio^2 / 2                    biased, never negative; close where p and q are close
    k3 = exp(-log_ratio) - 1 + log_ratio    unbiased for KL(q || p), never negative (where q covers p)

Values are one thing, gradients another: differentiating a value does not differentiate the sampling. In expectation
over x ~ q, the gradient of

    k1 is 0: it is the mean of a score function. It needs `score_form`
    k2 is that of KL(q || p), although its value is biased
    k3 is that of KL(p || q): it seeks to cover, although its value is that of reverse KL
    score_form is that of KL(q || p): sg(log_ratio) times the score (REINFORCE)

All of it holds under samples of the *student*, fresh ones: on given text, or on a teacher's replies, none of these is
reverse KL, and k1 pushes the given tokens down. Letters: `N` samples. Second derivatives are not promised.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SampledKL(NamedTuple):
    """The three estimates of KL(q || p) of every sample, in nats. See the module for their biases."""

    k1_N: Tensor
    k2_N: Tensor
    k3_N: Tensor


def sampled_estimators(student_logp_N: Tensor, teacher_logp_N: Tensor) -> SampledKL:
    """k1, k2 and k3 from the log-probabilities of the sampled tokens under student and teacher, at one temperature.

    Differentiable in the student's; the teacher is detached. Half precision is computed in float32: the difference of
    two log-probabilities cancels. Where the teacher gives no probability all three are infinite. Raises ValueError for
    shapes that differ.
    """
    ratio_N = _log_ratio(student_logp_N, teacher_logp_N)
    # expm1: exp(-r) - 1 + r cancels where the two agree, which is where one wants to be.
    return SampledKL(ratio_N, 0.5 * ratio_N.square(), torch.expm1(-ratio_N) + ratio_N)


def score_form(student_logp_N: Tensor, teacher_logp_N: Tensor, *, baseline: float | Tensor = 0.0) -> Tensor:
    """loss_N whose gradient, averaged over the student's own samples, is that of KL(q || p): the log-ratio, held fixed,
    times the sample's score. Its value says nothing; report k1 or k3.

    `baseline` (a number, or one for each sample that does not depend on the sample) is subtracted from the log-ratio:
    it changes the variance and not the mean. Raises ValueError for shapes that differ.
    """
    ratio_N = _log_ratio(student_logp_N, teacher_logp_N).detach()
    return (ratio_N - baseline) * student_logp_N.to(ratio_N.dtype)


def _log_ratio(student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    if student_logp_N.shape != teacher_logp_N.shape:
        raise ValueError(
            f"the student's log-probabilities {tuple(student_logp_N.shape)} and the teacher's "
            f"{tuple(teacher_logp_N.shape)} differ in shape; give one of each for every sampled token"
        )
    wide = torch.promote_types(student_logp_N.dtype, torch.float32)
    return student_logp_N.to(wide) - teacher_logp_N.detach().to(wide)
