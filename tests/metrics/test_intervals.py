"""The paired bootstrap: right on average, rows as clusters, differences paired; and what the verdict makes of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.metrics.intervals import (
    MIN_CLUSTERS,
    Bootstrap,
    Interval,
    judge,
    mean_interval,
    paired_bootstrap,
    ratio_interval,
)


def test_mean_is_weighted_by_positions_not_by_rows():
    """Rows of 1 and 3 positions with sums 1 and 9: mean 2.5, not 2.0."""
    found = paired_bootstrap({"student": np.array([1.0, 9.0])}, np.array([1.0, 3.0]))
    assert found.models["student"].value == 2.5
    assert found.difference is None


def test_interval_agrees_with_theory():
    """For many rows of one weight the interval is mean +- 1.96 standard errors."""
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    found = paired_bootstrap({"student": values * 5}, np.full(400, 5.0), resamples=4000).models["student"]
    error = values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(11)
    hits = 0
    for seed in range(200):
        weights = generator.integers(1, 30, 60).astype(float)
        sums = generator.exponential(1.0, 60) * weights
        found = paired_bootstrap({"a": sums}, weights, resamples=300, seed=seed).models["a"]
        hits += found.low <= 1.0 <= found.high
    assert 0.85 <= hits / 200 <= 0.99


def test_pairing_cancels_what_is_hard_about_a_row():
    generator = np.random.default_rng(0)
    hard = generator.normal(3.0, 2.0, 100)
    sums = {"student": hard, "twin": hard + generator.normal(0.1, 0.05, 100)}
    found = paired_bootstrap(sums, np.ones(100), pair=("student", "twin"))
    student, twin, difference = found.models["student"], found.models["twin"], found.difference
    assert student.high > twin.low  # the plain intervals overlap
    assert difference is not None and difference.high < 0
    assert difference.value == pytest.approx(student.value - twin.value)


def test_replies_to_one_prompt_are_one_cluster():
    """Ten copies of each row say nothing new: the interval must not shrink."""
    values = np.random.default_rng(1).normal(0, 1, 30)
    once = paired_bootstrap({"a": values}, np.ones(30), resamples=1000)
    names = [str(i) for i in range(30)] * 10
    copied = paired_bootstrap({"a": np.tile(values, 10)}, np.ones(300), clusters=names, resamples=1000)
    naive = paired_bootstrap({"a": np.tile(values, 10)}, np.ones(300), resamples=1000)
    width = lambda found: found.models["a"].high - found.models["a"].low  # noqa: E731
    assert copied.num_clusters == 30
    assert width(copied) == pytest.approx(width(once), rel=0.15)
    assert width(naive) < 0.5 * width(once)


@given(num=st.integers(1, 30), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_seeded_and_ordered(num, seed):
    generator = np.random.default_rng(seed)
    sums, weights = {"a": generator.random(num), "b": generator.random(num)}, generator.integers(1, 9, num) * 1.0
    first, second = (paired_bootstrap(sums, weights, pair=("a", "b"), resamples=100, seed=seed) for _ in range(2))
    assert first == second
    for interval in first.models.values():
        assert interval.low <= interval.high


def test_blocks_do_not_change_the_kind_of_result(monkeypatch):
    monkeypatch.setattr("limbeck.metrics.intervals.CHUNK", 64)
    values = np.random.default_rng(2).normal(1, 1, 50)
    found = paired_bootstrap({"a": values}, np.ones(50), resamples=500).models["a"]
    assert found.low < found.value < found.high


def test_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        paired_bootstrap({"a": np.zeros(0)}, np.zeros(0))


def boot(student, twin, difference, clusters=100):
    return Bootstrap({"student": Interval(*student), "twin": Interval(*twin)}, Interval(*difference), clusters)


BETTER_KL = boot((0.4, 0.38, 0.42), (0.7, 0.67, 0.73), (-0.3, -0.33, -0.27))
WORSE_KL = boot((0.7, 0.67, 0.73), (0.4, 0.38, 0.42), (0.3, 0.27, 0.33))
EQUAL_KL = boot((0.4, 0.38, 0.42), (0.4, 0.38, 0.42), (0.0, -0.02, 0.02))
BETTER_TOP = boot((0.71, 0.7, 0.72), (0.63, 0.62, 0.64), (0.08, 0.07, 0.09))
WORSE_TOP = boot((0.63, 0.62, 0.64), (0.71, 0.7, 0.72), (-0.08, -0.09, -0.07))
EQUAL_TOP = boot((0.7, 0.69, 0.71), (0.7, 0.69, 0.71), (0.0, -0.01, 0.01))


@pytest.mark.parametrize(
    ("kl", "agreement", "helped", "begins"),
    [
        (BETTER_KL, BETTER_TOP, True, "Distillation helped: on 240"),
        (BETTER_KL, EQUAL_TOP, None, "Distillation helped in part: on 240 held-out rows KL is better"),
        (EQUAL_KL, BETTER_TOP, None, "Distillation helped in part: on 240 held-out rows agreement is better"),
        (EQUAL_KL, EQUAL_TOP, None, "No difference"),
        (BETTER_KL, WORSE_TOP, False, "Distillation did not help"),
        (WORSE_KL, BETTER_TOP, False, "Distillation did not help"),
        (WORSE_KL, WORSE_TOP, False, "Distillation did not help"),
    ],
)
def test_verdict(kl, agreement, helped, begins):
    verdict = judge(kl, agreement, num_rows=240)
    assert verdict.helped is helped
    assert verdict.sentence.startswith(begins)


def test_verdict_says_the_numbers():
    sentence = judge(BETTER_KL, BETTER_TOP, num_rows=240).sentence
    assert "KL 0.400 against 0.700 (difference -0.300, 95% interval -0.330 to -0.270)" in sentence
    assert "agreement 71.0% against 63.0% (+8.0 points, +7.0 to +9.0)" in sentence


def test_no_verdict_from_a_handful_of_rows():
    """One row resamples to itself: an interval of width 0 proves nothing."""
    sums = {"student": np.array([1.0]), "twin": np.array([2.0])}
    kl = paired_bootstrap(sums, np.ones(1), pair=("student", "twin"))
    assert kl.difference == Interval(-1.0, -1.0, -1.0)
    verdict = judge(kl, paired_bootstrap(sums, np.ones(1), pair=("twin", "student")), num_rows=1)
    assert verdict.helped is None and verdict.sentence.startswith("1 held-out row is too few")
    few = boot((0.4, 0.38, 0.42), (0.7, 0.67, 0.73), (-0.3, -0.33, -0.27), clusters=MIN_CLUSTERS - 1)
    assert judge(few, BETTER_TOP, num_rows=9).helped is None


def test_no_twin():
    alone = Bootstrap({"student": Interval(0.4, 0.38, 0.42)}, None, 100)
    verdict = judge(alone, alone, num_rows=100)
    assert verdict.helped is None and "train.twin" in verdict.sentence and "0.400" in verdict.sentence


def test_published_intervals_do_not_move():
    """Figures in docs were drawn so: seeds, blocks and quantiles as ever (values of the first version)."""
    values = np.arange(12.0) ** 2
    found = paired_bootstrap(
        {"a": values, "b": values[::-1].copy()},
        np.arange(1.0, 13),
        clusters=[str(row // 2) for row in range(12)],
        pair=("a", "b"),
    )
    assert found.models["b"] == pytest.approx((6.487179487179487, 1.5263157894736843, 18.652173913043477), rel=1e-12)
    assert found.difference == pytest.approx((0.0, -15.304347826086955, 6.4), rel=1e-12)
    assert mean_interval(values) == pytest.approx((42.166666666666664, 21.833333333333332, 66.425), rel=1e-12)
    ratio = ratio_interval(values, values + 7)
    assert ratio == pytest.approx((0.8576271186440678, 0.7572254335260116, 0.904664576078801), rel=1e-12)
