"""The paired bootstrap: right on average, rows as clusters, differences paired."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.metrics.intervals import (
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
