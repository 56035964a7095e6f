"""What a teacher behind an endpoint will cost: requests, tokens, money and time, counted before a request is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.endpoint.budget import cost_of, most_prompt_tokens, most_reply_tokens
from limbeck.endpoint.messages import ApiRequest
from limbeck.label.replies import ask_of
from limbeck.recipe import GenerateMode, OpenAITeacher, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from limbeck.types import Row

LIKELY = 0.5
"""Of what a reply may have at most (tokens), and of what rejection sampling may ask beyond its least (replies)."""


@dataclass(frozen=True)
class RequestCost:
    """Tokens and money of all requests of a recipe.

    "Likely" counts prompts with the student's tokenizer, and takes a reply to be half as long as it may be. "Most" is
    the bound by which `teacher.max_cost` is kept, whatever the endpoint's tokenizer: a job whose `max_cost` is at least
    `cost_most` is not stopped by it, unless attempts that fail are billed. Costs are None without a price list.
    `seconds_least` is what the recipe's limits per minute allow; 0 without limits.
    """

    requests: int
    likely_prompt_tokens: int
    most_prompt_tokens: int
    likely_reply_tokens: int
    most_reply_tokens: int
    cost_likely: float | None
    cost_most: float | None
    currency: str
    seconds_least: float


def estimate_requests(recipe: Recipe, rows: Sequence[Row]) -> RequestCost:
    """What labelling `rows` by the recipe's endpoint takes. `rows` are those that are labelled: all of them where the
    teacher generates, else the training rows."""
    settings = recipe.teacher
    assert isinstance(settings, OpenAITeacher)
    share, system = _likely_share(recipe), len((settings.system or "").encode()) // 4  # bytes of a token, about
    requests = likely_prompt = most_prompt = most_reply = 0
    for row in rows:
        for ask in _asks(recipe, row):
            requests += 1
            likely_prompt += len(row.ids) + system
            most_prompt += most_prompt_tokens(settings, ask)
            most_reply += most_reply_tokens(ask)
    generates = isinstance(recipe.trace.mode, GenerateMode)
    likely_prompt = round(likely_prompt * share)
    likely_reply = round(most_reply * share * (LIKELY if generates else 1.0))
    prices = settings.prices
    return RequestCost(
        requests=requests,
        likely_prompt_tokens=likely_prompt,
        most_prompt_tokens=most_prompt,
        likely_reply_tokens=likely_reply,
        most_reply_tokens=most_reply,
        cost_likely=None if prices is None else cost_of(prices, likely_prompt, likely_reply),
        cost_most=None if prices is None else cost_of(prices, most_prompt, most_reply),
        currency=prices.currency if prices else "",
        seconds_least=_least_seconds(settings, requests * share, likely_prompt + likely_reply),
    )


def _asks(recipe: Recipe, row: Row) -> Iterator[ApiRequest]:
    mode, settings = recipe.trace.mode, recipe.teacher
    assert isinstance(settings, OpenAITeacher)
    if not isinstance(mode, GenerateMode):
        yield ApiRequest(given=tuple(row.ids.tolist()))
        return
    for first in range(0, mode.n, settings.samples_per_request):
        yield ask_of(recipe, row, range(first, min(first + settings.samples_per_request, mode.n)))


def _likely_share(recipe: Recipe) -> float:
    """What share of all replies will be asked for: rejection sampling ends between its least and all of them."""
    mode = recipe.trace.mode
    if not isinstance(mode, GenerateMode) or mode.rejection is None:
        return 1.0
    least = mode.rejection.num_correct / mode.n
    return least + LIKELY * (1.0 - least)


def _least_seconds(settings: OpenAITeacher, requests: float, tokens: float) -> float:
    """A provider counts tokens as they are used."""
    limits = ((requests, settings.requests_per_minute), (tokens, settings.tokens_per_minute))
    return 60.0 * max((amount / limit for amount, limit in limits if limit is not None), default=0.0)
