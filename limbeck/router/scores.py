"""What a fitted router does on the test half of the held-out prompts: REGISTRY/router/report.json as data.

Intervals are 95% bootstrap intervals over prompts, as [value, low, high].
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from limbeck.metrics import intervals
from limbeck.metrics.calibration import ece, reliability
from limbeck.router import frontier
from limbeck.router.estimates import softmax
from limbeck.router.fit import Fitted, featurize_all, judged_rows, problem_of
from limbeck.router.frontier import Point, RouteTarget, RoutingProblem, price_for
from limbeck.router.router import TEACHER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.router.dataset import Split

RECOVERED = (0.5, 0.8)


def score_router(fitted: Fitted, outside: Sequence[str] = ()) -> dict[str, Any]:
    """The report as JSON-able data. `outside` are prompts of nobody's kind that only judge: nothing was fitted on
    them."""
    parts, router = fitted.parts, fitted.router
    counts = {
        name: {
            split: int((part.kind_N == kind).sum())
            for split, part in (("train", parts.train), ("calibrate", parts.calibrate), ("test", parts.test))
        }
        for kind, name in enumerate(router.experts)
    }
    return {
        "experts": list(router.experts),
        "fitted_on": router.settings.fitted_on,
        "costs": dict(fitted.wish.costs),
        "prompts": counts,
        "notes": parts.notes,
        "kinds": _kinds(fitted),
        "scope": _scope(fitted, outside),
        "routing": None if fitted.price is None else _routing(fitted),
    }


# ---- which kind, and whether of any ----------------------------------------------------------------------------------


def _kinds(fitted: Fitted) -> dict[str, Any]:
    router, test = fitted.router, fitted.parts.test
    looks = featurize_all(router, test.prompts)
    chance_NE = softmax(looks.logits_NE / router.settings.temperature)
    found_N, sure_N = chance_NE.argmax(1), chance_NE.max(1)
    right_N = (found_N == test.kind_N).astype(float)
    refused_N = router.in_scope(looks.scope_NF) < router.settings.threshold
    sent_N = np.where(refused_N, len(router.experts), found_N)
    confusion = [
        [int(((test.kind_N == kind) & (sent_N == to)).sum()) for to in range(len(router.experts) + 1)]
        for kind in range(len(router.experts))
    ]
    bins = reliability(torch.from_numpy(sure_N), torch.from_numpy(right_N))
    filled = bins.count_M > 0
    return {
        "accuracy": intervals.mean_interval(right_N),
        "confusion": confusion,
        "ece": ece(bins),
        "temperature": router.settings.temperature,
        "bins": {
            "confidence": (bins.confidence_M[filled] / bins.count_M[filled]).tolist(),
            "accuracy": (bins.correct_M[filled] / bins.count_M[filled]).tolist(),
            "count": bins.count_M[filled].tolist(),
        },
    }


def _scope(fitted: Fitted, outside: Sequence[str]) -> dict[str, Any]:
    router, left_out = fitted.router, fitted.left_out
    threshold = router.settings.threshold
    inside_N = router.in_scope(featurize_all(router, fitted.parts.test.prompts).scope_NF)
    found: dict[str, Any] = {
        "threshold": threshold,
        "kept": intervals.mean_interval((inside_N >= threshold).astype(float)),
        "left_out": {
            "auroc": frontier.auroc(left_out.inside_N, left_out.outside_N),
            "inside": len(left_out.inside_N),
            "outside": len(left_out.outside_N),
        },
        "given": None,
    }
    if outside:
        outside_N = router.in_scope(featurize_all(router, outside).scope_NF)
        found["given"] = {
            "auroc": frontier.auroc(inside_N, outside_N),
            "outside": len(outside),
            "refused": intervals.mean_interval((outside_N < threshold).astype(float)),
        }
    return found


# ---- quality and cost ------------------------------------------------------------------------------------------------


def _routing(fitted: Fitted) -> dict[str, Any]:
    router, price = fitted.router, fitted.price
    assert price is not None
    part = fitted.parts.test.take(judged_rows(fitted.parts.test))
    problem = problem_of(router, part, fitted.worst)
    rows = np.arange(len(part))
    choice_N = _choice(problem, price.price)
    quality_N, cost_N = problem.quality_NM[rows, choice_N], problem.cost_M[choice_N]
    teacher_N = problem.quality_NM[:, -1]
    quality = intervals.ratio_interval(quality_N, teacher_N)
    cost = intervals.mean_interval(cost_N / problem.cost_M[-1])
    target = fitted.wish.target
    reached = (quality if target.kind == "quality" else cost).value
    weak_N, gain_N = _without_teacher(problem)
    shares = {
        f"{recovered:.0%}": frontier.share_needed(gain_N, weak_N, teacher_N, recovered=recovered)
        for recovered in RECOVERED
    }
    random_N = problem.quality_NM[:, :-1].mean(1)
    return {
        "rows": len(part),
        "judged_elsewhere": float(np.isfinite(part.quality_NM[:, :-1]).mean()),
        "worst": fitted.worst,
        "target": {
            **asdict(target),
            "price": price.price,
            "reached": price.reached,
            "best": price.best,
            "met_on_test": bool(reached >= target.value if target.kind == "quality" else reached <= target.value),
        },
        "quality": quality,
        "cost": cost,
        "share": intervals.mean_interval((choice_N == problem.teacher).astype(float)),
        "apgr": frontier.apgr(gain_N, weak_N, teacher_N),
        "apgr_random": frontier.apgr(gain_N, random_N, teacher_N),
        "share_needed": shares,
        "points": _points(fitted, problem, part, choice_N),
        "curve": frontier.curve(problem),
        "oracle": frontier.oracle(problem),
        "random": list(frontier.chance(problem)),
        "cascade": _cascade(fitted, problem, part),
        "compared": _compared(fitted, problem, part),
    }


def _choice(problem: RoutingProblem, price: float) -> np.ndarray:
    return frontier.choose(problem.expected_NM, problem.cost_M, problem.allowed_NM, price)


def _without_teacher(problem: RoutingProblem) -> tuple[np.ndarray, np.ndarray]:
    """The true quality [N] of the expert that is expected to be best, and how much more is expected of the teacher."""
    best_N = problem.expected_NM[:, :-1].argmax(1)
    rows = np.arange(len(best_N))
    return problem.quality_NM[rows, best_N], problem.expected_NM[:, -1] - problem.expected_NM[rows, best_N]


def _points(fitted: Fitted, problem: RoutingProblem, part: Split, choice_N: np.ndarray) -> dict[str, Point]:
    num = len(part)
    points = {"router": problem.point(choice_N, fitted.router.settings.price)}
    for at, name in enumerate((*fitted.router.experts, TEACHER)):
        points[name] = problem.point(np.full(num, at))
    for at, name in enumerate(fitted.wish.compared):
        judged = part.others_NG[:, at]
        if np.isfinite(judged).any():
            points[name] = Point(float(fitted.wish.costs[name]), float(np.nanmean(judged)), 0.0)
    return points


def _compared(fitted: Fitted, problem: RoutingProblem, part: Split) -> dict[str, Any]:
    """The router at no more than each compared model's cost, its price chosen on calibration prompts, and the paired
    difference in quality."""
    found = {}
    calibrate = fitted.parts.calibrate.take(judged_rows(fitted.parts.calibrate))
    seen = problem_of(fitted.router, calibrate, fitted.worst)
    for at, name in enumerate(fitted.wish.compared):
        rows = np.flatnonzero(np.isfinite(part.others_NG[:, at]))
        if not len(rows):
            continue
        price = price_for(seen, RouteTarget("cost", fitted.wish.costs[name] / fitted.wish.costs[TEACHER]))
        choice_N = _choice(problem, price.price)
        ours_N, other_N = problem.quality_NM[rows, choice_N[rows]], part.others_NG[rows, at]
        found[name] = {
            "cost": fitted.wish.costs[name],
            "quality": intervals.mean_interval(other_N),
            "router_cost": float(problem.cost_M[choice_N[rows]].mean()),
            "router_quality": intervals.mean_interval(ours_N),
            "difference": intervals.mean_interval(ours_N - other_N),
            "reached": price.reached,
        }
    return found


def _cascade(fitted: Fitted, problem: RoutingProblem, part: Split) -> list[Point] | None:
    """Quality against cost when the expert answers first: its cost is always paid, the teacher's where its reply does
    not stand. Prompts out of scope go to the teacher at once. None without log-probs of replies."""
    router = fitted.router
    kinds = [kind for kind, name in enumerate(router.experts) if name in router.cascades]
    rows = np.flatnonzero(np.isin(part.kind_N, kinds) & np.isfinite(part.logp_N))
    if len(rows) < len(part) or not len(rows):  # half a curve beside whole ones would flatter
        return None
    own_N = part.kind_N
    right_N = np.array(
        [router.cascades[router.experts[kind]].right(logp) for kind, logp in zip(own_N, part.logp_N, strict=True)]
    )
    found_N = problem.expected_NM[:, :-1].argmax(1)
    every = np.arange(len(part))
    tried_N = problem.allowed_NM[every, found_N]
    right_N = np.where(found_N == own_N, right_N, 0.0)  # a reply in the wrong hands was not scored: it does not stand
    points = []
    for threshold in [*np.unique(np.quantile(right_N, np.linspace(0, 1, frontier.POINTS))).tolist(), 2.0]:
        stands_N = tried_N & (right_N >= threshold)
        quality_N = np.where(stands_N, problem.quality_NM[every, found_N], problem.quality_NM[:, -1])
        cost_N = np.where(tried_N, problem.cost_M[found_N], 0.0) + np.where(stands_N, 0.0, problem.cost_M[-1])
        points.append(Point(float(cost_N.mean()), float(quality_N.mean()), float((~stands_N).mean()), threshold))
    return sorted(points)
