"""Bootstrap intervals of one figure over prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


RESAMPLES = 1000


class FigureInterval(NamedTuple):
    """A figure and its 95% percentile interval."""

    value: float
    low: float
    high: float


def bootstrap(figure: Callable[[np.ndarray], np.ndarray], num: int, *, seed: int = 0) -> FigureInterval:
    """A figure of N prompts, resampled: `figure(counts_RN)` gives one number per row of counts [R]; NaN is left out."""
    draw = np.random.default_rng(seed)
    value = float(figure(np.ones((1, num)))[0])
    block = max(2**22 // max(num, 1), 1)
    parts = [
        figure(draw.multinomial(num, np.full(num, 1 / num), size=min(block, RESAMPLES - start)).astype(float))
        for start in range(0, RESAMPLES, block)
    ]
    drawn = np.concatenate(parts)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return FigureInterval(value, float("nan"), float("nan"))
    return FigureInterval(value, *(float(edge) for edge in np.quantile(drawn, [0.025, 0.975])))


def mean_interval(values_N: np.ndarray) -> FigureInterval:
    return bootstrap(lambda counts_RN: counts_RN @ values_N / counts_RN.sum(1), len(values_N))


def ratio_interval(top_N: np.ndarray, bottom_N: np.ndarray) -> FigureInterval:
    """Sum over sum, both resampled with the same prompts."""

    def figure(counts_RN: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (counts_RN @ top_N) / (counts_RN @ bottom_N)

    return bootstrap(figure, len(top_N))
