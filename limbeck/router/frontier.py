"""What routing is worth: quality against cost, between one expert, the teacher, chance and an oracle.

`N` prompts, `M` models (experts first, the teacher last), `P` points of a curve, `R` resamples. Quality is within 0 and
1; the cost of a prompt at the teacher is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from limbeck.metrics.intervals import RESAMPLES, Interval, bootstrap, percentiles

POINTS = 60
ONE_SIDED = 1.2816  # standard errors of a one-sided 90% bound


class Point(NamedTuple):
    """One way to route: mean cost, mean quality, and the share of prompts that go to the teacher."""

    cost: float
    quality: float
    share: float
    price: float = 0.0


@dataclass(frozen=True)
class RoutingProblem:
    """Prompts whose answers were judged: `quality_NM` true, `expected_NM` what the router expects, `cost_M`,
    `allowed_NM` False where the router may not send a prompt (out of scope: the teacher alone is allowed)."""

    quality_NM: np.ndarray
    expected_NM: np.ndarray
    cost_M: np.ndarray
    allowed_NM: np.ndarray

    @property
    def teacher(self) -> int:
        return len(self.cost_M) - 1

    def point(self, choice_N: np.ndarray, price: float = 0.0) -> Point:
        quality = self.quality_NM[np.arange(len(choice_N)), choice_N]
        return Point(
            float(self.cost_M[choice_N].mean()), float(quality.mean()), float((choice_N == self.teacher).mean()), price
        )


def choose(expected_NM: np.ndarray, cost_M: np.ndarray, allowed_NM: np.ndarray, price: float) -> np.ndarray:
    """The model of each prompt that is worth most: expected quality minus `price` times cost. Of equals, the first."""
    worth_NM = np.where(allowed_NM, expected_NM - price * cost_M, -np.inf)
    return worth_NM.argmax(1)


def prices(problem: RoutingProblem) -> np.ndarray:
    """Prices at which some prompt changes its model, thinned to 400, with 0 and one above all; ascending.

    A prompt is sent to the teacher while the price is below (gain in quality) / (difference in cost)."""
    gains = problem.expected_NM[:, -1:] - problem.expected_NM[:, :-1]
    costs = problem.cost_M[-1] - problem.cost_M[:-1]
    ratios = (gains / np.where(costs == 0, np.nan, costs)).ravel()
    ratios = np.unique(ratios[np.isfinite(ratios) & (ratios > 0)])
    if not len(ratios):
        return np.array([0.0, 1.0])
    middle = np.concatenate([[0.0], (ratios[1:] + ratios[:-1]) / 2, [ratios[-1] * 1.01 + 1e-9]])
    return np.unique(np.quantile(middle, np.linspace(0, 1, 400), method="nearest"))


def curve(problem: RoutingProblem) -> list[Point]:
    """What the router reaches at every price, by rising cost."""
    points = {}
    for price in prices(problem):
        point = problem.point(choose(problem.expected_NM, problem.cost_M, problem.allowed_NM, price), float(price))
        points[point[:3]] = point  # of prices that choose alike, the highest
    found = sorted(points.values())
    return [found[at] for at in np.unique(np.linspace(0, len(found) - 1, POINTS).astype(int))]


def oracle(problem: RoutingProblem) -> list[Point]:
    """What a router would reach that knew every answer's quality beforehand."""
    everywhere = np.ones_like(problem.allowed_NM)
    known = RoutingProblem(problem.quality_NM, problem.quality_NM, problem.cost_M, everywhere)
    return curve(known)


def chance(problem: RoutingProblem) -> tuple[Point, Point]:
    """The two ends of random routing: a random expert for all, the teacher for all. Between them it is a line."""
    experts = problem.quality_NM[:, :-1].mean(), problem.cost_M[:-1].mean()
    return (
        Point(float(experts[1]), float(experts[0]), 0.0),
        Point(float(problem.cost_M[-1]), float(problem.quality_NM[:, -1].mean()), 1.0),
    )


# ---- a target --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RouteTarget:
    """`kind` "quality": at least `value` of the teacher's quality at least cost. "cost": most quality at no more than
    `value` of the teacher's cost."""

    kind: str
    value: float


@dataclass(frozen=True)
class Price:
    """The price that meets a target on calibration prompts with a one-sided 90% bound; `reached` False where none does:
    then it is the nearest that there is, and `best` says how near (the ratio to the teacher's)."""

    price: float
    reached: bool
    best: float


def price_for(problem: RoutingProblem, target: RouteTarget) -> Price:
    """The price to route at. Raises ValueError for a target of another kind."""
    if target.kind not in ("quality", "cost"):
        raise ValueError(f"a target is of quality or of cost, not {target.kind!r}")
    rows = np.arange(len(problem.quality_NM))
    teacher_N = problem.quality_NM[:, -1]
    met, nearest = [], []
    for price in prices(problem):
        choice_N = choose(problem.expected_NM, problem.cost_M, problem.allowed_NM, price)
        quality_N, cost_N = problem.quality_NM[rows, choice_N], problem.cost_M[choice_N]
        if target.kind == "quality":
            bound = _bound(quality_N - target.value * teacher_N)
            ratio = quality_N.mean() / max(teacher_N.mean(), 1e-12)
            nearest.append((-bound, cost_N.mean(), price, ratio))
            if bound >= 0:
                met.append((cost_N.mean(), -quality_N.mean(), price, ratio))
        else:
            bound = _bound(target.value * problem.cost_M[-1] - cost_N)
            ratio = cost_N.mean() / problem.cost_M[-1]
            nearest.append((-bound, -quality_N.mean(), price, ratio))
            if bound >= 0:
                met.append((-quality_N.mean(), cost_N.mean(), price, ratio))
    _, _, price, ratio = min(met or nearest)
    return Price(float(price), bool(met), float(ratio))


def _bound(values_N: np.ndarray) -> float:
    """The mean less 1.28 of its standard errors; exactly the mean where all are equal."""
    spread = float(values_N.std(ddof=1)) if len(values_N) > 1 else 0.0
    return float(values_N.mean()) - ONE_SIDED * spread / np.sqrt(len(values_N)) + 1e-12


# ---- figures with intervals ------------------------------------------------------------------------------------------


def apgr(gain_N: np.ndarray, weak_N: np.ndarray, strong_N: np.ndarray) -> Interval | None:
    """Average performance gap recovered (RouteLLM, arXiv 2406.18665, eq. 7): the share of the gap between the weak and
    the strong model that is recovered, averaged over all shares of prompts that go to the strong one, those of the
    largest `gain_N` first. Chance gives 1/2. Prompts of equal gain go together, in the order that chance gives on
    average. None where the strong model is not better."""
    if strong_N.mean() <= weak_N.mean():
        return None
    gaps_N, groups_N = strong_N - weak_N, np.unique(-gain_N, return_inverse=True)[1]
    order = np.argsort(groups_N, kind="stable")
    starts = np.flatnonzero(np.diff(groups_N[order], prepend=-1))

    def figure(counts_RN: np.ndarray) -> np.ndarray:
        sizes = np.add.reduceat(counts_RN[:, order], starts, axis=1)
        risen = np.add.reduceat((counts_RN * gaps_N)[:, order], starts, axis=1)
        total = risen.sum(1)
        after = np.cumsum(risen, axis=1)
        area = (sizes * (after - risen / 2)).sum(1) / counts_RN.sum(1)
        return np.where(total > 0, area / np.where(total > 0, total, 1.0), np.nan)

    return bootstrap(figure, len(gain_N))


def share_needed(gain_N: np.ndarray, weak_N: np.ndarray, strong_N: np.ndarray, *, recovered: float) -> float | None:
    """CPT (RouteLLM, eq. 8): the least share of prompts at the strong model with which `recovered` of the gap is."""
    total = float((strong_N - weak_N).sum())
    if total <= 0:
        return None
    order = np.argsort(-gain_N, kind="stable")
    risen = np.concatenate([[0.0], np.cumsum((strong_N - weak_N)[order])]) / total
    return float(np.argmax(risen >= recovered - 1e-12) / len(gain_N))


def auroc(inside_N: np.ndarray, outside_N: np.ndarray) -> Interval | None:
    """The chance that a prompt in scope scores above one that is not (ties count half), with both resampled. None where
    there is none of a kind."""
    num = len(inside_N), len(outside_N)
    if not all(num):
        return None
    scores, groups = np.unique(np.concatenate([inside_N, outside_N]), return_inverse=True)
    draw = np.random.default_rng(0)

    def area(counts_in: np.ndarray, counts_out: np.ndarray) -> float:
        ins = np.bincount(groups[: num[0]], counts_in, len(scores))
        outs = np.bincount(groups[num[0] :], counts_out, len(scores))
        below = np.cumsum(outs) - outs / 2
        return float(ins @ below / (ins.sum() * outs.sum()))

    value = area(np.ones(num[0]), np.ones(num[1]))
    drawn = [
        area(*(draw.multinomial(size, np.full(size, 1 / size)).astype(float) for size in num)) for _ in range(RESAMPLES)
    ]
    return percentiles(value, np.array(drawn))
