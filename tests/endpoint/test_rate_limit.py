import asyncio
import random

import pytest

from limbeck.endpoint.rate_limit import LONGEST_DELAY, Throttle, backoff, rate_within
from tests.endpoint import clock


def starts_of(throttle: Throttle, count: int, *, lasts: float = 0.01, tokens: float = 1.0) -> list[float]:
    """When each of `count` requests that all want to go at once really went."""
    starts: list[float] = []

    async def one() -> None:
        starts.append(await throttle.acquire(tokens))
        await asyncio.sleep(lasts)
        throttle.succeeded(tokens, tokens)
        throttle.release()

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(count)))

    clock.run(all_of_them())
    return starts


def most_in_a_minute(starts: list[float], amount: float = 1.0) -> float:
    return amount * max(sum(start <= other < start + 60.0 - 1e-6 for other in starts) for start in starts)


@pytest.mark.parametrize("limit", [3, 10, 60, 600])
def test_requests_per_minute_are_kept_in_every_minute_and_used(limit):
    starts = starts_of(Throttle(100_000, requests=rate_within(limit)), limit * 3)
    assert most_in_a_minute(starts) <= limit
    assert starts[-1] == pytest.approx(60 * 3, rel=0.025, abs=60.1 / limit)  # nothing is wasted


def test_tokens_per_minute_are_kept():
    starts = starts_of(Throttle(1000, tokens=rate_within(10_000)), 100, tokens=500)
    assert most_in_a_minute(starts, 500) <= 10_000 + 500
    assert starts[-1] == pytest.approx(100 * 500 / 10_000 * 60, rel=0.05)


def test_unused_tokens_are_given_back():
    async def work(refund: bool) -> float:
        throttle = Throttle(1, tokens=rate_within(6000))
        for _ in range(60):
            start = await throttle.acquire(1000)
            throttle.succeeded(1000, 100 if refund else 1000)
            throttle.release()
        return start

    assert clock.run(work(True)) < 0.2 * clock.run(work(False))


def test_at_most_so_many_at_once():
    throttle, most = Throttle(8), 0

    async def one() -> None:
        nonlocal most
        await throttle.acquire(1)
        most = max(most, throttle.in_flight)
        await asyncio.sleep(0.2)
        throttle.release()

    async def work() -> float:
        await asyncio.gather(*(one() for _ in range(80)))
        return asyncio.get_running_loop().time()

    assert clock.run(work()) == pytest.approx(2.0, abs=0.01)
    assert most == 8 and throttle.in_flight == 0


def test_overload_halves_once_per_burst_and_recovers():
    async def work() -> None:
        throttle = Throttle(64)
        starts = [await throttle.acquire(1) for _ in range(64)]
        await asyncio.sleep(0.2)
        for start in starts:
            throttle.overloaded(start, None)
            throttle.release()
        assert throttle.limit == 32.0 and throttle.num_cuts == 1
        later = await throttle.acquire(1)
        throttle.overloaded(later, None)
        throttle.release()
        assert throttle.limit == 16.0
        for number in range(200):
            throttle.succeeded(0, 0)
            if number == 16:
                assert 16.9 < throttle.limit < 17.2  # one more place a round
        for _ in range(3000):
            throttle.succeeded(0, 0)
        assert throttle.limit == 64.0

    clock.run(work())


def test_never_below_one():
    async def work() -> None:
        throttle = Throttle(4)
        for _ in range(10):
            throttle.overloaded(asyncio.get_running_loop().time(), None)
            await asyncio.sleep(1.0)
        assert throttle.limit == 1.0

    clock.run(work())


def test_retry_after_holds_everyone_back():
    async def work() -> list[float]:
        throttle = Throttle(8)
        start = await throttle.acquire(1)
        throttle.overloaded(start, 30.0)
        throttle.release()
        return await asyncio.gather(*(throttle.acquire(1) for _ in range(4)))

    assert min(clock.run(work())) >= 30.0


def test_a_pause_that_begins_while_one_waits_for_the_rate_counts():
    async def work() -> float:
        throttle = Throttle(8, requests=rate_within(30))
        start = await throttle.acquire(1)
        second = asyncio.create_task(throttle.acquire(1))
        await asyncio.sleep(0.5)
        throttle.overloaded(start, 20.0)
        return await second

    assert clock.run(work()) >= 20.5


def test_those_who_are_cancelled_leave_their_place():
    async def work() -> None:
        throttle = Throttle(1, requests=rate_within(6))
        await throttle.acquire(1)
        waiting = [asyncio.create_task(throttle.acquire(1)) for _ in range(3)]
        await asyncio.sleep(0.1)
        throttle.release()  # the first of them has the place now and waits for the rate
        await asyncio.sleep(0.1)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert throttle.in_flight == 0

    clock.run(work())


def test_delays_double_with_jitter_up_to_a_minute():
    rng = random.Random(0)
    for attempt in range(12):
        delays = [backoff(attempt, rng) for _ in range(200)]
        full = min(LONGEST_DELAY, 0.5 * 2**attempt)
        assert full / 2 <= min(delays) < 0.6 * full and 0.9 * full < max(delays) <= full
    assert backoff(10**6, rng) <= LONGEST_DELAY
