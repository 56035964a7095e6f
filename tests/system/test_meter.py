"""The rate is of what was processed here, the time left of what is planned."""

import pytest

from limbeck.system.meter import Meter


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_the_time_left_is_right_when_replies_end_early(clock):
    """100 replies of at most 50 tokens, planned as 5,000; each ends after 10 and takes one second: whenever it is told,
    the time left is the number of replies that are left, and the rate the tokens that were written."""
    seen = []
    meter = Meter("label", "tokens", 5000, seen.append, clock=clock)
    for _ in range(100):
        clock.now += 1.0
        meter.add(50, 10)
    assert [progress.eta for progress in seen] == pytest.approx([99.0 - number for number in range(100)])
    assert {round(progress.rate, 9) for progress in seen} == {10.0}
    assert seen[-1].done == seen[-1].total == 5000


def test_what_was_there_before_is_done_but_no_part_of_the_rate(clock):
    seen = []
    meter = Meter("label", "replies", 100, seen.append, done=80, clock=clock)
    clock.now += 2.0
    meter.add(10)
    assert seen[0].done == 90 and seen[0].rate == pytest.approx(5.0) and seen[0].eta == pytest.approx(2.0)


def test_spared_work_is_done_and_was_not_processed(clock):
    seen = []
    meter = Meter("label", "replies", 100, seen.append, clock=clock)
    clock.now += 1.0
    meter.add(50, 10)
    assert seen[0].rate == pytest.approx(10.0) and seen[0].eta == pytest.approx(1.0)


def test_nothing_done_yet_promises_nothing(clock):
    seen = []
    meter = Meter("label", "replies", 100, seen.append, clock=clock)
    meter.add(0, values={"in_flight": 3.0})
    clock.now += 5.0
    meter.add(0)
    assert [(progress.rate, progress.eta) for progress in seen] == [(0.0, 0.0)] * 2
    assert seen[0].values == {"in_flight": 3.0} and seen[1].values == {}


def test_reports_come_at_most_so_often_and_the_last_one_always(clock):
    seen = []
    meter = Meter("data", "rows", 10, seen.append, every=1.0, clock=clock)
    for _ in range(10):
        clock.now += 0.3
        meter.add(1)
    assert [progress.done for progress in seen] == [1, 5, 9, 10]
    assert seen[-1].eta == 0.0
