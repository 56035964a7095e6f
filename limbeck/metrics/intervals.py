"""Bootstrap intervals of figures over prompts, and paired over held-out rows.

Positions of one row depend on one another, so rows are resampled, never positions; and replies to one prompt are one
cluster. Every model is resampled with the same rows: what is hard about a row cancels in the difference.
`N` prompts, `R` rows, `C` clusters, `B` resamples, `M` models. Intervals are percentiles (Efron & Tibshirani 1993,
ch. 13).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RESAMPLES = 1000
CHUNK = 2**22  # cells of one block of counts


class Interval(NamedTuple):
    """A figure and its 95% percentile interval."""

    value: float
    low: float
    high: float


def percentiles(value: float, drawn_B: np.ndarray) -> Interval:
    """The interval of a figure whose resamples are known; NaN where none is finite."""
    drawn_B = drawn_B[np.isfinite(drawn_B)]
    if not len(drawn_B):
        return Interval(float(value), math.nan, math.nan)
    low, high = np.quantile(drawn_B, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def bootstrap(figure: Callable[[np.ndarray], np.ndarray], num: int, *, seed: int = 0) -> Interval:
    """A figure of N prompts, resampled: `figure(counts_BN)` gives one number per row of counts [B]; NaN is left out."""
    return percentiles(figure(np.ones((1, num)))[0], _resample(figure, num, RESAMPLES, seed))


def mean_interval(values_N: np.ndarray) -> Interval:
    return bootstrap(lambda counts_BN: counts_BN @ values_N / counts_BN.sum(1), len(values_N))


def ratio_interval(top_N: np.ndarray, bottom_N: np.ndarray) -> Interval:
    """Sum over sum, both resampled with the same prompts."""

    def figure(counts_BN: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (counts_BN @ top_N) / (counts_BN @ bottom_N)

    return bootstrap(figure, len(top_N))


def _resample(figure: Callable[[np.ndarray], np.ndarray], num: int, resamples: int, seed: int) -> np.ndarray:
    """The figure of each resample of `num` things: how often each is drawn, block by block."""
    generator = np.random.default_rng(seed)
    block = max(CHUNK // max(num, 1), 1)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    chances = np.full(num, 1.0 / num)
    return np.concatenate([figure(generator.multinomial(num, chances, size=size).astype(np.float64)) for size in sizes])


@dataclass(frozen=True)
class Bootstrap:
    """Intervals per model, and of the paired difference first - second where a pair was asked for."""

    models: dict[str, Interval]
    difference: Interval | None
    num_clusters: int


def paired_bootstrap(
    sums: Mapping[str, np.ndarray],
    weights_R: np.ndarray,
    *,
    clusters: Sequence[str] | None = None,
    pair: tuple[str, str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Bootstrap:
    """95% intervals of weighted means (sum over rows of `sums` / sum of `weights_R`), rows resampled with replacement.

    `sums`: per model, the sum over each row's positions, [R]; `weights_R`: positions of each row, above 0; `clusters`:
    a name per row, rows of one name are drawn together (default: each row by itself); `pair`: two models whose
    difference is wanted, under the same resamples. Deterministic given `seed`.
    Raises ValueError when there are no rows.
    """
    if not len(weights_R):
        raise ValueError("there are no rows to resample")
    names = list(sums)
    index_R = np.arange(len(weights_R))
    if clusters is not None:
        index_R = np.unique(np.asarray(clusters), return_inverse=True)[1]
    num = int(index_R.max()) + 1
    weights_C = np.bincount(index_R, weights=weights_R, minlength=num)
    sums_MC = np.stack([np.bincount(index_R, weights=sums[name], minlength=num) for name in names])
    drawn_BM = _resample(
        lambda counts_BC: (counts_BC @ sums_MC.T) / (counts_BC @ weights_C)[:, None], num, resamples, seed
    )
    means = dict(zip(names, (sums_MC.sum(1) / weights_C.sum()).tolist(), strict=True))
    drawn = {name: drawn_BM[:, column] for column, name in enumerate(names)}
    difference = None
    if pair is not None:
        first, second = pair
        difference = percentiles(means[first] - means[second], drawn[first] - drawn[second])
    return Bootstrap({name: percentiles(means[name], drawn[name]) for name in names}, difference, num)
