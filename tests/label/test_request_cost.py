"""What an endpoint will cost, before it is asked."""

import json

import pytest

from limbeck.endpoint import rate_limit
from limbeck.label.request_cost import estimate_requests
from tests.endpoint.fake_server import FakeServer
from tests.label.asking import ask, recipe_of, rows_of

URL = "http://127.0.0.1:1/v1"
PRICES = "teacher.prices={input: 1.0, output: 1000.0}"


@pytest.fixture(scope="module")
def rows(tiny_tokenizer):
    return rows_of(tiny_tokenizer)


def test_requests_tokens_and_time(rows):
    limits = "teacher.requests_per_minute=60"
    found = estimate_requests(recipe_of(URL, PRICES, "trace.mode.n=5", "teacher.samples_per_request=2", limits), rows)
    assert found.requests == 3 * 40 and found.seconds_least == 120.0
    assert found.likely_prompt_tokens == 3 * sum(len(row.ids) for row in rows) < found.most_prompt_tokens
    assert found.most_reply_tokens == 40 * 5 * 8 and found.likely_reply_tokens == 40 * 5 * 4
    assert found.cost_most == pytest.approx(1.6 + found.most_prompt_tokens / 1e6)
    assert found.cost_likely == pytest.approx(0.8 + found.likely_prompt_tokens / 1e6) and found.currency == "USD"


def test_a_system_prompt_is_counted_with_every_request(rows):
    plain, long = (
        estimate_requests(recipe_of(URL, *more), rows) for more in ((), (f"teacher.system={'word ' * 100}",))
    )
    assert long.most_prompt_tokens - plain.most_prompt_tokens >= 40 * 499
    assert long.likely_prompt_tokens - plain.likely_prompt_tokens == 40 * 124
    assert plain.cost_most is None and plain.currency == ""


def test_rejection_sampling_asks_for_less_but_not_at_most(rows):
    rejection = ("trace.mode.n=8", "trace.mode.rejection={verifier: {kind: regex, pattern: heron}, num_correct: 2}")
    every, until = (
        estimate_requests(recipe_of(URL, "trace.mode.n=8"), rows),
        estimate_requests(recipe_of(URL, *rejection), rows),
    )
    assert until.most_reply_tokens == every.most_reply_tokens and until.requests == every.requests
    assert until.likely_reply_tokens == pytest.approx(every.likely_reply_tokens * 5 / 8)


def test_given_text_is_scored_by_one_token_a_row(rows):
    target = ("trace.mode={kind: score}", "trace.target={kind: top_k, k: 4}")
    found = estimate_requests(recipe_of(URL, *target), rows)
    assert found.requests == found.most_reply_tokens == found.likely_reply_tokens == 40
    assert found.most_prompt_tokens == found.likely_prompt_tokens == sum(len(row.ids) for row in rows)


def test_the_bound_is_one_that_the_ledger_keeps(rows, tiny_tokenizer, tmp_path, monkeypatch):
    """With `max_cost` at the bound every row is answered, and what was paid lies below it."""
    monkeypatch.setattr(rate_limit, "FIRST_DELAY", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    with FakeServer() as server:
        most = estimate_requests(recipe_of(server.url, PRICES), rows).cost_most
        assert most is not None
        recipe = recipe_of(server.url, PRICES, f"teacher.max_cost={most * 1.000001}")
        assert len(ask(recipe, tmp_path / "traces", tiny_tokenizer, rows).traces()) == 40
    assert 0 < json.loads((tmp_path / "traces" / "asked.json").read_text())["cost"] < most
