"""A rate against a bucket that is filled and emptied step by step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.system.rate import Rate

STEPS = st.lists(st.tuples(st.floats(0.0, 90.0), st.floats(0.0, 500.0), st.floats(0.0, 500.0)), max_size=30)


@given(st.floats(1.0, 1000.0), st.floats(0.0, 60.0), st.floats(0.0, 1e6), STEPS)
def test_it_is_a_token_bucket(per_minute, burst, now, steps):
    rate, size = Rate(per_minute, burst), per_minute * burst / 60.0
    level = size
    for pause, amount, spent in steps:
        now += pause
        level = min(size, level + pause * per_minute / 60.0)
        assert rate.wait(amount, now) == pytest.approx(max(amount - level, 0.0) * 60.0 / per_minute, abs=2e-6)
        rate.spend(spent, now)
        level -= spent


def test_a_burst_and_then_evenly():
    rate = Rate(3, burst_seconds=60.0)
    for _ in range(3):
        assert rate.wait(1.0, 0.1) == 0.0
        rate.spend(1.0, 0.1)
    assert rate.wait(1.0, 0.1) == 20.0 and rate.wait(1.0, 15.1) == 5.0 and rate.wait(1.0, 20.1) == 0.0


def test_what_is_owed_is_waited_for_and_what_is_given_back_is_not():
    rate = Rate(60, burst_seconds=10.0)
    rate.spend(100.0, 5.0)
    assert rate.wait(0.0, 5.0) == 90.0
    rate.refund(95.0)
    assert rate.wait(5.0, 5.0) == 0.0 and rate.wait(6.0, 5.0) == 1.0
