"""Whether a model's confidence means what it says: reliability bins, and the expected calibration error.

`N` positions, `M` bins of equal width over confidence. Bins are sums, so those of several chunks are added.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15


class Reliability(NamedTuple):
    """Per bin, float64: the number of positions, the sum of their confidence, and how many were correct."""

    count_M: Tensor
    confidence_M: Tensor
    correct_M: Tensor


def reliability(confidence_N: Tensor, correct_N: Tensor, bins: int = BINS) -> Reliability:
    """Bins of predictions by confidence: bin m holds those in ((m - 1) / bins, m / bins].

    confidence_N: probability of the predicted token, 0 to 1. correct_N: whether it was the true one.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    confidence_N = confidence_N.double().clamp(0.0, 1.0)
    bin_N = (torch.ceil(confidence_N * bins) - 1).clamp(0, bins - 1).long()
    return Reliability(
        torch.bincount(bin_N, minlength=bins).double(),
        torch.bincount(bin_N, weights=confidence_N, minlength=bins),
        torch.bincount(bin_N, weights=correct_N.double(), minlength=bins),
    )


def merge(first: Reliability, second: Reliability) -> Reliability:
    """The bins of both. They must be as many."""
    return Reliability(*(a + b for a, b in zip(first, second, strict=True)))


def ece(bins: Reliability) -> float:
    """Expected calibration error: the mean over positions of |accuracy - confidence| of their bin, 0 to 1; 0 when there
    are no positions (Guo et al. 2017, arXiv 1706.04599, eq. 3)."""
    total = bins.count_M.sum()
    if total == 0:
        return 0.0
    return float((bins.correct_M - bins.confidence_M).abs().sum() / total)
