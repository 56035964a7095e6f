"""Quality against cost: orders that must hold, targets on new prompts, figures against plain loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.metrics import intervals
from limbeck.router import frontier
from limbeck.router.frontier import RouteTarget, RoutingProblem, price_for


def problem(num: int = 400, *, seed: int = 0, informed: float = 0.7, cost: float = 0.2) -> RoutingProblem:
    """Two experts and a teacher; what is expected is the truth's chance, more or less."""
    draw = np.random.default_rng(seed)
    chance_NM = np.column_stack([draw.uniform(0, 1, (num, 2)), draw.uniform(0.8, 1.0, num)])
    quality_NM = (draw.uniform(size=chance_NM.shape) < chance_NM).astype(float)
    expected_NM = informed * chance_NM + (1 - informed) * chance_NM.mean(0)
    return RoutingProblem(quality_NM, expected_NM, np.array([cost, cost / 2, 1.0]), np.ones_like(quality_NM, bool))


def at(points, cost: float) -> float:
    """The best quality of a curve at no more than this cost, points mixed by chance where that helps."""
    best = max((point.quality for point in points if point.cost <= cost + 1e-9), default=-np.inf)
    for one, other in itertools.combinations(points, 2):
        low, high = sorted([one, other])
        if low.cost <= cost < high.cost:
            best = max(best, low.quality + (high.quality - low.quality) * (cost - low.cost) / (high.cost - low.cost))
    return best


@pytest.mark.parametrize("seed", range(5))
def test_the_oracle_beats_the_router_and_the_router_beats_chance(seed):
    made = problem(seed=seed)
    router, oracle, (weak, strong) = frontier.curve(made), frontier.oracle(made), frontier.chance(made)
    for cost in np.linspace(weak.cost, strong.cost, 9):
        by_chance = weak.quality + (strong.quality - weak.quality) * (cost - weak.cost) / (strong.cost - weak.cost)
        assert at(oracle, cost) >= at(router, cost) - 1e-9
        assert at(router, cost) > by_chance - 0.01


def test_a_router_that_knows_nothing_is_no_better_than_its_best_expert_and_the_teacher():
    made = problem(informed=0.0)
    found = {point[:3] for point in frontier.curve(made)}
    alone = {made.point(np.full(400, model))[:3] for model in range(3)}
    assert found <= alone


def test_an_expert_that_is_better_and_cheaper_is_always_chosen():
    ones = np.ones((5, 1))
    made = RoutingProblem(
        np.hstack([ones, 0.5 * ones]), np.hstack([ones, 0.5 * ones]), np.array([0.1, 1.0]), np.ones((5, 2), bool)
    )
    assert frontier.curve(made) == [made.point(np.zeros(5, int), frontier.curve(made)[0].price)]
    assert frontier.apgr(np.zeros(5), np.ones(5), 0.5 * np.ones(5)) is None
    assert frontier.share_needed(np.zeros(5), np.ones(5), 0.5 * np.ones(5), recovered=0.5) is None


def test_out_of_scope_prompts_go_to_the_teacher_at_any_price():
    made = problem()
    made.allowed_NM[:50, :-1] = False
    for price in (0.0, 1.0, 1e6):
        choice = frontier.choose(made.expected_NM, made.cost_M, made.allowed_NM, price)
        assert (choice[:50] == 2).all()
    assert all(point.share >= 50 / 400 for point in frontier.curve(made))


def test_a_free_expert_and_equal_costs():
    made = problem(cost=0.0)
    assert frontier.curve(made)[0].cost == 0.0
    equal = RoutingProblem(made.quality_NM, made.expected_NM, np.ones(3), made.allowed_NM)
    assert all(point.cost == 1.0 for point in frontier.curve(equal))


# ---- targets ---------------------------------------------------------------------------------------------------------


def test_targets_hold_on_prompts_that_were_not_looked_at():
    """A one-sided 90% bound: of twenty draws, two may miss, and few miss by much."""
    missed = []
    for seed in range(20):
        calibrate, test = problem(300, seed=seed), problem(3000, seed=1000 + seed)
        found = price_for(calibrate, RouteTarget("quality", 0.9))
        point = test.point(frontier.choose(test.expected_NM, test.cost_M, test.allowed_NM, found.price))
        assert found.reached and point.cost < 1.0
        missed.append(0.9 * test.quality_NM[:, -1].mean() - point.quality)
        limited = price_for(calibrate, RouteTarget("cost", 0.5))
        point = test.point(frontier.choose(test.expected_NM, test.cost_M, test.allowed_NM, limited.price))
        assert limited.reached and point.cost <= 0.53
    assert sum(miss > 0 for miss in missed) <= 4 and max(missed) < 0.03


def test_a_target_of_all_quality_is_the_teacher_and_one_beyond_says_so():
    made = problem()
    worse = RoutingProblem(
        made.quality_NM * [0.5, 0.5, 1.0], made.expected_NM * [0.5, 0.5, 1.0], made.cost_M, made.allowed_NM
    )
    assert price_for(worse, RouteTarget("quality", 1.0)).price == 0.0
    beyond = price_for(worse, RouteTarget("quality", 1.5))
    assert not beyond.reached and beyond.best == pytest.approx(1.0, abs=0.05)
    too_cheap = price_for(made, RouteTarget("cost", 0.05))
    assert not too_cheap.reached and too_cheap.best > 0.05
    with pytest.raises(ValueError, match="speed"):
        price_for(made, RouteTarget("speed", 1.0))


def test_one_prompt_is_enough_to_decide_on():
    made = problem(1)
    assert price_for(made, RouteTarget("quality", 0.5)).price >= 0


# ---- figures against plain loops -------------------------------------------------------------------------------------

LEVELS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=12)


@settings(max_examples=25)
@given(LEVELS, LEVELS)
def test_auroc_counts_pairs(inside, outside):
    pairs = [(one > other) + 0.5 * (one == other) for one in inside for other in outside]
    found = frontier.auroc(np.array(inside), np.array(outside))
    assert found is not None and found.value == pytest.approx(sum(pairs) / len(pairs))
    assert 0 <= found.low <= found.high <= 1


def test_auroc_of_nothing_is_not_measured():
    assert frontier.auroc(np.empty(0), np.ones(3)) is None


def slow_apgr(gain, weak, strong) -> float:
    """The mean over all orders of equal gains, of the trapezoids under the recovered share."""
    total = sum(strong) - sum(weak)
    areas = []
    for order in itertools.permutations(range(len(gain))):
        if any(gain[one] < gain[other] for one, other in itertools.pairwise(order)):
            continue
        recovered, area = 0.0, 0.0
        for index in order:
            risen = recovered + (strong[index] - weak[index]) / total
            area += (recovered + risen) / 2 / len(gain)
            recovered = risen
        areas.append(area)
    return sum(areas) / len(areas)


@pytest.mark.parametrize("seed", range(6))
def test_apgr_is_the_area_under_what_is_recovered(seed):
    draw = np.random.default_rng(seed)
    gain, weak, strong = draw.integers(0, 4, 6) / 4, draw.uniform(0, 0.5, 6), draw.uniform(0.4, 1.0, 6)
    found = frontier.apgr(gain, weak, strong)
    assert found is not None and found.value == pytest.approx(slow_apgr(gain, weak, strong))


def test_apgr_of_chance_is_a_half_and_of_the_oracle_its_most():
    draw = np.random.default_rng(0)
    weak, strong = (draw.uniform(size=2000) < 0.5).astype(float), np.ones(2000)
    chance = frontier.apgr(draw.uniform(size=2000), weak, strong)
    assert chance is not None and chance.low < 0.5 < chance.high
    assert frontier.apgr(np.zeros(2000), weak, strong).value == pytest.approx(0.5)
    assert frontier.apgr(strong - weak, weak, strong).value == pytest.approx(1 - 0.5 * (1 - weak.mean()), abs=1e-9)


def test_the_share_that_is_needed():
    weak, strong = np.array([0.0, 1.0, 0.0, 1.0]), np.ones(4)
    assert frontier.share_needed(np.array([4.0, 3.0, 2.0, 1.0]), weak, strong, recovered=0.5) == 0.25
    assert frontier.share_needed(np.array([4.0, 3.0, 2.0, 1.0]), weak, strong, recovered=0.8) == 0.75


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    inside = 0
    for seed in range(60):
        values = np.random.default_rng(seed).uniform(size=80)
        found = intervals.mean_interval(values)
        inside += found.low <= 0.5 <= found.high
    assert 51 <= inside <= 60


def test_a_ratio_pairs_its_prompts():
    top = np.random.default_rng(0).uniform(0.5, 1, 100)
    found = intervals.ratio_interval(0.9 * top, top)
    assert found.low == pytest.approx(0.9) == found.high
