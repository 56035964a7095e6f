"""Paired bootstrap over held-out rows, and what it says about student and twin.

Positions of one row depend on one another, so rows are resampled, never positions; and replies to one prompt are one
cluster. Every model is resampled with the same rows: what is hard about a row cancels in the difference.
`R` rows, `C` clusters, `B` resamples, `M` models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MIN_CLUSTERS = 10
CHUNK = 2**22  # cells of one B x C block


class Interval(NamedTuple):
    """A mean and its 95% percentile interval."""

    mean: float
    low: float
    high: float


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

    Percentile intervals (Efron & Tibshirani 1993, ch. 13). Raises ValueError when there are no rows.
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
    drawn_BM = _resample(sums_MC, weights_C, resamples, seed)
    means = dict(zip(names, (sums_MC.sum(1) / weights_C.sum()).tolist(), strict=True))
    drawn = {name: drawn_BM[:, column] for column, name in enumerate(names)}
    difference = None
    if pair is not None:
        first, second = pair
        difference = _interval(means[first] - means[second], drawn[first] - drawn[second])
    return Bootstrap({name: _interval(means[name], drawn[name]) for name in names}, difference, num)


def _resample(sums_MC: np.ndarray, weights_C: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    num = len(weights_C)
    block = max(CHUNK // num, 1)
    parts = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        counts_BC = generator.multinomial(num, np.full(num, 1.0 / num), size=size).astype(np.float64)
        parts.append((counts_BC @ sums_MC.T) / (counts_BC @ weights_C)[:, None])
    return np.concatenate(parts)


def _interval(mean: float, drawn_B: np.ndarray) -> Interval:
    low, high = np.quantile(drawn_B, [0.025, 0.975])
    return Interval(float(mean), float(low), float(high))


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
        f"{math.exp(min(near.mean, 700.0)):.2f} ({near.mean:.3f} nats, 95% interval {near.low:.3f} to "
        f"{near.high:.3f}), and its first choice is the teacher's next token at {top.mean:.1%} of positions "
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
        f"KL {kl.models['student'].mean:.3f} against {kl.models['twin'].mean:.3f} "
        f"(difference {nats.mean:+.3f}, 95% interval {nats.low:+.3f} to {nats.high:+.3f}), "
        f"agreement {agreement.models['student'].mean:.1%} against {agreement.models['twin'].mean:.1%} "
        f"({points.mean:+.1f} points, {points.low:+.1f} to {points.high:+.1f})"
    )


def _alone(kl: Bootstrap, agreement: Bootstrap, num_rows: int) -> str:
    near, top = kl.models["student"], agreement.models["student"]
    return (
        "Whether distillation helped cannot be said without a twin (set train.twin to true). "
        f"On {num_rows:,} held-out rows the student's KL to the teacher is {near.mean:.3f} "
        f"(95% interval {near.low:.3f} to {near.high:.3f}) and its agreement {top.mean:.1%} "
        f"({top.low:.1%} to {top.high:.1%})."
    )
