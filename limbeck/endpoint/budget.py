"""What a job costs: spent so far, promised to requests under way, and whether one more fits below `max_cost`.

Without a price list every cost is 0 and everything fits; tokens are counted all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.endpoint.messages import ApiReply, ApiRequest
    from limbeck.recipe import OpenAITeacher, Prices

TURN_TOKENS = 8
"""What a template may add to each turn, and once to the whole."""


def most_prompt_tokens(settings: OpenAITeacher, ask: ApiRequest) -> int:
    """More tokens than the prompt can have, whatever the tokenizer: none is shorter than a byte."""
    if ask.given:
        return len(ask.given)
    if ask.prompt is not None:
        return len(ask.prompt.encode()) + TURN_TOKENS
    contents = [str(value) for turn in ask.messages for value in turn.values() if value is not None]
    turns = len(ask.messages) + (settings.system is not None) + 1
    return sum(len(text.encode()) for text in [*contents, settings.system or ""]) + TURN_TOKENS * turns


def most_reply_tokens(ask: ApiRequest) -> int:
    return 1 if ask.given else ask.sampling.n * ask.sampling.max_tokens


def cost_of(prices: Prices | None, prompt_tokens: float, reply_tokens: float) -> float:
    """In the currency of the price list; 0 without one."""
    return 0.0 if prices is None else (prompt_tokens * prices.input + reply_tokens * prices.output) / 1e6


def answer_cost(prices: Prices | None, answer: ApiReply, worst: float) -> float:
    """By the endpoint's own token counts; the worst case where it tells none."""
    if answer.prompt_tokens is None or answer.completion_tokens is None:
        return worst
    return cost_of(prices, answer.prompt_tokens, answer.completion_tokens)


@dataclass
class Ledger:
    """`spent` and `promised` in the currency of the price list. What is promised is the worst case of each request
    under way, so that `max_cost` is not exceeded however long the replies become."""

    max_cost: float | None = None
    spent: float = 0.0
    promised: float = 0.0
    num_promises: int = 0

    def promise(self, worst: float) -> bool:
        """Set `worst` aside; False, and nothing, when it does not fit any more."""
        if self.max_cost is not None and self.spent + self.promised + worst > self.max_cost:
            return False
        self.promised += worst
        self.num_promises += 1
        return True

    def settle(self, worst: float, cost: float) -> None:
        """The request that `worst` was set aside for ended and cost `cost`."""
        self.spent += cost
        self.num_promises -= 1
        # Sums of fractions leave crumbs behind, which must not look like a request under way.
        self.promised = self.promised - worst if self.num_promises else 0.0
