"""Waiting on a clock that jumps: how often, how long, and when a request or the job is given up."""

import asyncio

import pytest

from limbeck.endpoint.client import Endpoint
from limbeck.endpoint.messages import ApiChoice, ApiReply, ApiRequest
from limbeck.endpoint.retry import UNKNOWN_SECONDS, RetryingClient, settle
from limbeck.endpoint.status import RequestRejected, RetryLater
from limbeck.errors import BudgetError, TeacherError
from limbeck.recipe import OpenAITeacher
from limbeck.types import Sampling
from tests.endpoint import clock

GOOD = ApiReply((ApiChoice("yes", "stop"),), "m", "", 10, 5, 0.1)
ASK = ApiRequest(
    ({"role": "user", "content": "?" * 78},), sampling=Sampling(max_tokens=100)
)  # 98 tokens at most, and 100
PRICES = {"input": 1e4, "output": 1e4}  # 0.01 a token: an answer is 0.15, the worst case 1.98


class Scripted(Endpoint):
    """An endpoint that answers by list, each after a second; the last entry for ever."""

    def __init__(self, *found, **settings) -> None:
        super().__init__(OpenAITeacher(model="m", base_url="http://x/v1", **settings), None, "none")
        object.__setattr__(self, "found", list(found))
        object.__setattr__(self, "sent", [])

    async def ask(self, ask):
        self.sent.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1.0)
        return self.found.pop(0) if len(self.found) > 1 else self.found[0]


def run(endpoint: Scripted, asks: int = 1, *, messages: list[str] | None = None, spent: float = 0.0):
    said = [] if messages is None else messages

    async def work():
        desk = RetryingClient.of(endpoint, said.append, spent)
        return await asyncio.gather(*(desk.ask(ASK) for _ in range(asks))), desk

    return clock.run(work())


def test_an_answer_at_once():
    [outcome], desk = run(Scripted(GOOD, prices=PRICES))
    assert outcome.found == GOOD and outcome.attempts == 1 and outcome.cost == pytest.approx(0.15)
    assert desk.ledger.spent == pytest.approx(0.15) and desk.ledger.promised == 0.0


def test_trouble_passes_and_is_told_once_per_kind():
    down, late = RetryLater("server", "500"), RetryLater("timeout", "silence", billed=True)
    endpoint, messages = Scripted(down, down, late, GOOD, prices=PRICES), []
    [outcome], desk = run(endpoint, messages=messages)
    assert outcome.found == GOOD and outcome.attempts == 4
    assert outcome.cost == pytest.approx(1.98 + 0.15)  # silence may have been billed, a 500 was not
    assert len(messages) == 2 and desk.troubles == {"server": 2, "timeout": 1}
    gaps = [b - a - 1.0 for a, b in zip(endpoint.sent, endpoint.sent[1:], strict=False)]
    assert 0.25 <= gaps[0] <= 0.5 <= gaps[1] <= 1.0 <= gaps[2] <= 2.0


def test_waits_at_least_as_long_as_it_is_told():
    endpoint = Scripted(RetryLater("overload", "429", after=20.0), GOOD)
    run(endpoint)
    assert endpoint.sent[1] - endpoint.sent[0] >= 21.0


def test_malformed_bodies_are_tried_so_often_and_no_more():
    endpoint = Scripted(RetryLater("malformed", "html", billed=True), malformed_tries=4, prices=PRICES)
    [outcome], _ = run(endpoint)
    assert outcome.found == RequestRejected("malformed", "html") and len(endpoint.sent) == 4
    assert outcome.cost == pytest.approx(4 * 1.98)


def test_refusals_are_not_tried_again():
    [outcome], _ = run(Scripted(RequestRejected("context_length", "400"), prices=PRICES))
    assert outcome.found == RequestRejected("context_length", "400") and outcome.attempts == 1 and outcome.cost == 0.0


@pytest.mark.parametrize("trouble", ["overload", "server", "timeout", "reset"])
def test_an_endpoint_that_never_recovers_ends_the_job_in_time(trouble):
    endpoint = Scripted(RetryLater(trouble, "gone"), retry_minutes=10)
    with pytest.raises(TeacherError, match="fails for 9 min|fails for 10 min"):
        run(endpoint)
    assert 480 < endpoint.sent[-1] <= 600 and len(endpoint.sent) < 30


def test_one_that_never_answered_is_probably_another():
    endpoint = Scripted(RetryLater("connect", "refused"))
    with pytest.raises(TeacherError, match=r"cannot be reached: refused. Check teacher.base_url"):
        run(endpoint)
    assert endpoint.sent[-1] <= UNKNOWN_SECONDS
    endpoint = Scripted(GOOD, RetryLater("connect", "refused"), retry_minutes=5)

    async def work():
        desk = RetryingClient.of(endpoint, lambda message: None)
        await desk.ask(ASK)
        await desk.ask(ASK)

    with pytest.raises(TeacherError, match="fails for"):  # a server that was restarted is waited for
        clock.run(work())
    assert endpoint.sent[-1] > 200


def test_a_request_that_fails_while_others_are_answered_is_given_up_alone():
    class Uneven(Scripted):
        async def ask(self, ask):
            await asyncio.sleep(1.0)
            return RetryLater("server", "500") if ask.seed else GOOD

    async def work():
        desk = RetryingClient.of(Uneven(GOOD, retry_minutes=1), lambda message: None)
        bad = asyncio.create_task(desk.ask(ApiRequest(ASK.messages, seed=1)))
        while not bad.done():
            await desk.ask(ASK)
        return bad.result()

    assert clock.run(work()).found == RequestRejected("server", "500")


def test_a_budget_waits_for_what_is_under_way_before_it_says_no():
    """2 fit the worst case only one at a time; each costs 0.15, so that several are answered all the same."""
    endpoint = Scripted(GOOD, max_cost=2.5, prices=PRICES)
    outcomes, desk = run(endpoint, 3)
    assert len(outcomes) == 3 and desk.ledger.spent == pytest.approx(0.45)
    assert endpoint.sent == [0.0, 1.0, 2.0]
    with pytest.raises(BudgetError, match=r"max_cost is 2.5 USD: 0.6\d+ is spent, and the next request may cost 1.98"):
        run(Scripted(GOOD, max_cost=2.5, prices=PRICES), 1, spent=0.6)


def test_when_a_job_stops_answers_under_way_are_waited_for_and_nothing_else():
    async def work():
        endpoint = Scripted(RetryLater("server", "500"), GOOD, concurrency=2)
        desk = RetryingClient.of(endpoint, lambda message: None)
        tasks = [asyncio.create_task(desk.ask(ASK)) for _ in range(4)]
        await asyncio.sleep(1.1)  # one waits for its second attempt, one is under way, others just began
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await settle(tasks, desk, 15.0)
        return [task.cancelled() for task in tasks], loop.time() - begun, desk

    cancelled, seconds, desk = clock.run(work())
    assert cancelled.count(True) == 1 and 0.5 < seconds < 2.0
    assert desk.ledger.num_promises == desk.throttle.in_flight == 0


def test_who_would_try_again_while_a_job_stops_is_not_waited_for():
    async def work():
        desk = RetryingClient.of(Scripted(RetryLater("overload", "429", after=600.0)), lambda message: None)
        task = asyncio.create_task(desk.ask(ASK))
        await asyncio.sleep(0.5)
        await settle([task], desk, 15.0)
        return task.cancelled(), asyncio.get_running_loop().time()

    cancelled, now = clock.run(work())
    assert cancelled and now < 1.5


def test_those_that_do_not_end_in_time_are_left():
    async def work():
        desk = RetryingClient.of(Scripted(GOOD), lambda message: None)
        task = asyncio.create_task(desk.ask(ASK))
        await asyncio.sleep(0.1)
        await settle([task], desk, 0.2)
        return task.cancelled(), desk.ledger

    cancelled, ledger = clock.run(work())
    assert cancelled and ledger.num_promises == 0
