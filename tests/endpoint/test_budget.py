import pytest

from limbeck.endpoint.budget import Ledger, answer_cost, cost_of, most_prompt_tokens, most_reply_tokens
from limbeck.endpoint.messages import ApiReply, ApiRequest
from limbeck.recipe import OpenAITeacher, Prices
from limbeck.types import Sampling

PRICES = Prices(input=2.0, output=8.0)


def test_costs_per_million():
    assert cost_of(PRICES, 1_000_000, 500_000) == 6.0 and cost_of(None, 10**6, 10**6) == 0.0
    assert answer_cost(PRICES, ApiReply((), "m", "", 10**6, 10**6, 0.0), 99.0) == 10.0
    assert answer_cost(PRICES, ApiReply((), "m", "", None, 10, 0.0), 99.0) == 99.0  # it may have been the worst


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
    ledger = Ledger(max_cost=1.0)
    assert ledger.promise(0.4) and ledger.promise(0.4) and not ledger.promise(0.4)
    ledger.settle(0.4, 0.1)
    assert ledger.promise(0.4) and not ledger.promise(0.2)
    ledger.settle(0.4, 0.4)
    ledger.settle(0.4, 0.4)
    assert ledger.spent == pytest.approx(0.9) and ledger.promised == 0.0 and not ledger.promise(0.11)


def test_without_a_limit_everything_fits():
    assert Ledger().promise(1e9)
