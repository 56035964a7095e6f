import pytest

from limbeck.endpoint.budget import Ledger, charge_of, cost_of, most_prompt_tokens, most_reply_tokens, worst_cost
from limbeck.endpoint.messages import ApiReply, ApiRequest
from limbeck.endpoint.status import RequestRejected, RetryLater
from limbeck.recipe import OpenAITeacher, Prices
from limbeck.types import Sampling

PRICES = Prices(input=2.0, output=8.0)
SETTINGS = OpenAITeacher(model="m", prices=PRICES)


def test_costs_per_million():
    assert cost_of(PRICES, 1_000_000, 500_000) == 6.0 and cost_of(None, 10**6, 10**6) == 0.0


def test_what_is_not_counted_is_charged_at_its_worst():
    ask = ApiRequest(prompt="name a bird", sampling=Sampling(max_tokens=1000))
    prompt, worst = cost_of(PRICES, most_prompt_tokens(SETTINGS, ask), 0), worst_cost(SETTINGS, ask)
    for told, written, cost in (
        (10, 5, 6e-5),
        (None, 5, prompt + 4e-5),
        (10, None, 2e-5 + worst - prompt),
        (None, None, worst),
    ):
        assert charge_of(SETTINGS, ask, ApiReply((), "m", "", told, written, 0.0)) == pytest.approx(cost)
    assert charge_of(SETTINGS, ask, RetryLater("timeout", "", billed=True)) == worst
    assert charge_of(SETTINGS, ask, RetryLater("overload", "")) == 0.0
    assert charge_of(SETTINGS, ask, RequestRejected("content_filter", "", billed=True)) == prompt
    assert charge_of(SETTINGS, ask, RequestRejected("invalid", "")) == 0.0


def test_no_prompt_has_more_tokens_than_the_bound(tiny_tokenizer):
    settings = OpenAITeacher(model="m", system="be brief ☃")
    for text in ("", "name a bird", "鷦鷯 ☃ \U0001f426" * 9):
        ask = ApiRequest(({"role": "user", "content": text}, {"role": "assistant", "content": "ok"}))
        turns = [{"role": "system", "content": settings.system}, *ask.messages]
        rendered = tiny_tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert len(tiny_tokenizer(rendered)["input_ids"]) <= most_prompt_tokens(settings, ask)
        assert len(tiny_tokenizer(text)["input_ids"]) <= most_prompt_tokens(settings, ApiRequest(prompt=text))
    assert most_reply_tokens(ApiRequest(prompt="?", sampling=Sampling(n=3, max_tokens=7))) == 21


def test_a_ledger_never_promises_more_than_there_is():
    ledger = Ledger(max_cost=1.0, excess=1.0)
    assert ledger.promise(0.4) and ledger.promise(0.4) and not ledger.promise(0.4)
    ledger.settle(0.4, 0.1)
    assert ledger.promise(0.4) and not ledger.promise(0.2)
    ledger.settle(0.4, 0.4)
    ledger.settle(0.4, 0.4)
    assert ledger.spent == pytest.approx(0.9) and ledger.promised == 0.0 and not ledger.promise(0.11)


def test_one_request_at_a_time_until_an_answer_shows_what_it_costs():
    """An endpoint that bills twice what a reply may have: known after one answer, and expected of all others."""
    ledger = Ledger(max_cost=1.0)
    assert ledger.promise(0.1) == 0.1 and ledger.promise(0.1) is None
    ledger.settle(0.1, 0.2)
    ledger.learn(0.1, 0.2)
    held = [ledger.promise(0.1) for _ in range(5)]
    assert held[:4] == [0.2] * 4 and held[4] is None
    ledger.settle(0.2, 0.01)
    ledger.learn(0.1, 0.01)
    assert ledger.excess == 2.0


def test_without_a_limit_everything_fits():
    ledger = Ledger()
    assert ledger.promise(1e9) and ledger.promise(1e9)
