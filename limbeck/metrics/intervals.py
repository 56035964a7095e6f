"""Bootstrap intervals of figures over prompts, and paired over held-out rows; what they say about student and twin.

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

MIN_CLUSTERS = 10
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


@dataclass(frozen=True)
class TwinVerdict:
    """`helped`: True only when both the KL and the agreement of the student beat the twin's with an interval of the
    difference that excludes 0; False when one of them is worse beyond doubt; None when the data do not say."""

    helped: bool | None
    sentence: str


def judge(kl: Bootstrap, agreement: Bootstrap, *, num_rows: int) -> TwinVerdict:
    """What the paired differences student - twin say, in a plain sentence."""
    if kl.difference is None or agreement.difference is None:
        return TwinVerdict(None, _alone(kl, agreement, num_rows))
    figures = _figures(kl, agreement)
    if kl.num_clusters < MIN_CLUSTERS:
        rows = "held-out row is" if num_rows == 1 else "held-out rows are"
        return TwinVerdict(None, f"{num_rows} {rows} too few to say whether distillation helped: {figures}.")
    kl_better, kl_worse = kl.difference.high < 0, kl.difference.low > 0
    top_better, top_worse = agreement.difference.low > 0, agreement.difference.high < 0
    where = f"on {num_rows:,} held-out rows"
    helped: bool | None = None
    if kl_worse or top_worse:
        helped, claim = False, f"Distillation did not help: {where} the student is {_worse(kl_worse, top_worse)}"
    elif kl_better and top_better:
        helped, claim = True, f"Distillation helped: {where} the student is closer to the teacher than its twin"
    elif kl_better or top_better:
        sure, unsure = ("KL", "agreement") if kl_better else ("agreement", "KL")
        claim = f"Distillation helped in part: {where} {sure} is better than the twin's, {unsure} may not be"
    else:
        claim = f"No difference between student and twin can be shown {where}"
    return TwinVerdict(helped, f"{claim}: {figures}.")


def judge_words(kl: Bootstrap, agreement: Bootstrap, *, num_rows: int) -> TwinVerdict:
    """What can be said of a student whose teacher is known by its words only: KL is cross-entropy on them."""
    near, top = kl.models["student"], agreement.models["student"]
    return TwinVerdict(
        None,
        f"The teacher is known by its words only. On {num_rows:,} held-out rows of them the student's perplexity is "
        f"{math.exp(min(near.value, 700.0)):.2f} ({near.value:.3f} nats, 95% interval {near.low:.3f} to "
        f"{near.high:.3f}), and its first choice is the teacher's next token at {top.value:.1%} of positions "
        f"({top.low:.1%} to {top.high:.1%}).",
    )


def _worse(kl: bool, top: bool) -> str:
    if kl and top:
        return "further from the teacher than its twin"
    what = "further from the teacher's distribution" if kl else "less often of the teacher's choice"
    return f"{what} than its twin"


def _figures(kl: Bootstrap, agreement: Bootstrap) -> str:
    assert kl.difference is not None and agreement.difference is not None
    nats, points = kl.difference, Interval(*(100 * value for value in agreement.difference))
    return (
        f"KL {kl.models['student'].value:.3f} against {kl.models['twin'].value:.3f} "
        f"(difference {nats.value:+.3f}, 95% interval {nats.low:+.3f} to {nats.high:+.3f}), "
        f"agreement {agreement.models['student'].value:.1%} against {agreement.models['twin'].value:.1%} "
        f"({points.value:+.1f} points, {points.low:+.1f} to {points.high:+.1f})"
    )


def _alone(kl: Bootstrap, agreement: Bootstrap, num_rows: int) -> str:
    near, top = kl.models["student"], agreement.models["student"]
    return (
        "Whether distillation helped cannot be said without a twin (set train.twin to true). "
        f"On {num_rows:,} held-out rows the student's KL to the teacher is {near.value:.3f} "
        f"(95% interval {near.low:.3f} to {near.high:.3f}) and its agreement {top.value:.1%} "
        f"({top.low:.1%} to {top.high:.1%})."
    )
