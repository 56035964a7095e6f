"""What a job costs: spent so far, promised to requests under way, and whether one more fits below `max_cost`.

Without a price list every cost is 0 and everything fits; tokens are counted all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.endpoint.messages import ApiReply
from limbeck.endpoint.status import RequestRejected, RetryLater

if TYPE_CHECKING:
    from limbeck.endpoint.messages import ApiRequest
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


def worst_cost(settings: OpenAITeacher, ask: ApiRequest) -> float:
    """What a request may cost, as long as the endpoint keeps to `max_tokens`."""
    return cost_of(settings.prices, most_prompt_tokens(settings, ask), most_reply_tokens(ask))


def charge_of(settings: OpenAITeacher, ask: ApiRequest, found: ApiReply | RetryLater | RequestRejected) -> float:
    """What an attempt cost, or may have cost: an answer by the endpoint's own token counts, and at its worst in what is
    not counted; no answer at its worst where it may have been billed; a refusal its prompt where that may have been
    read."""
    prompt, reply = most_prompt_tokens(settings, ask), most_reply_tokens(ask)
    if isinstance(found, ApiReply):
        counts = (found.prompt_tokens, prompt), (found.completion_tokens, reply)
        return cost_of(settings.prices, *(most if told is None else told for told, most in counts))
    if isinstance(found, RequestRejected):
        reply = 0
    return cost_of(settings.prices, prompt, reply) if found.billed else 0.0


@dataclass
class Ledger:
    """`spent` and `promised` in the currency of the price list. What is promised is the worst case of each request
    under way, so that `max_cost` is not exceeded however long the replies become.

    Some endpoints bill more than `max_tokens` allows: reasoning beside the reply. What an answer cost beyond its worst
    case (`excess`, a factor) is expected of all that follow; and where there is a limit, nothing else is under way
    until a first answer has shown it.
    """

    max_cost: float | None = None
    spent: float = 0.0
    promised: float = 0.0
    num_promises: int = 0
    excess: float | None = None  # None before the first answer

    def promise(self, worst: float) -> float | None:
        """Set what a request may cost aside, and return it; None, and nothing, when it does not fit now."""
        held = worst * (self.excess or 1.0)
        if self.max_cost is not None:
            unknown = self.excess is None and self.num_promises > 0
            if unknown or self.spent + self.promised + held > self.max_cost:
                return None
        self.promised += held
        self.num_promises += 1
        return held

    def settle(self, held: float, cost: float) -> None:
        """The request that `held` was set aside for ended and cost `cost`."""
        self.spent += cost
        self.num_promises -= 1
        # Sums of fractions leave crumbs behind, which must not look like a request under way.
        self.promised = self.promised - held if self.num_promises else 0.0

    def learn(self, worst: float, cost: float) -> None:
        """A request that was thought to cost `worst` at most was answered, and cost `cost`."""
        self.excess = max(self.excess or 1.0, cost / worst if worst > 0 else 1.0)
