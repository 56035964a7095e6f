"""A judge's verdict on replies: a model in this process, opened when it is first asked, or one behind an endpoint."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from limbeck.endpoint.messages import ApiReply
from limbeck.endpoint.messages import ApiRequest as ApiAsk
from limbeck.endpoint.retry import ask_all
from limbeck.models.open import open_hf
from limbeck.recipe import name_of
from limbeck.text.chat_template import ChatTemplate
from limbeck.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable

    from limbeck.curate.verifiers import Ask
    from limbeck.models.hf import HfLM
    from limbeck.recipe import Judge

    Conversations = list[list[dict[str, str]]]


def ask_judges(on_message: Callable[[str], None]) -> Ask:
    """What puts conversations to a verifier's judge and returns its replies, "" where it gave none. Raises what opening
    a model or asking an endpoint raises."""

    opened = cache(open_hf)
    spent: dict[str, float] = {}  # by endpoint: `max_cost` holds over all questions together

    def ask(judge: Judge, conversations: Conversations) -> list[str]:
        if judge.endpoint is not None:
            return _ask_endpoint(judge, conversations, on_message, spent)
        assert judge.path is not None
        return _ask_model(opened(judge.path), judge, conversations)

    return ask


def _ask_model(lm: HfLM, judge: Judge, conversations: Conversations) -> list[str]:
    template = ChatTemplate(lm.tokenizer)
    texts = [template.prompt(turns, "the judge's question") for turns in conversations]
    prompts = [np.asarray(lm.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32) for text in texts]
    return [replies[0].text for replies in lm.generate(prompts, _sampling(judge))]


def _ask_endpoint(
    judge: Judge, conversations: Conversations, on_message: Callable[[str], None], spent: dict[str, float]
) -> list[str]:
    assert judge.endpoint is not None
    name = name_of(judge.endpoint)
    asks = [ApiAsk(messages=tuple(turns), sampling=_sampling(judge)) for turns in conversations]
    outcomes = ask_all(judge.endpoint, asks, on_message, spent.get(name, 0.0))
    spent[name] = spent.get(name, 0.0) + sum(one.cost for one in outcomes)
    return [one.found.choices[0].text if isinstance(one.found, ApiReply) else "" for one in outcomes]


def _sampling(judge: Judge) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=judge.max_tokens)
