"""What clients send becomes tokens: conversations through the model's own template, plain text as it is."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import numpy as np

from limbeck.errors import DataError, EmptyRow, LongRow, TeacherError
from limbeck.serve.errors import ApiError, bad
from limbeck.text.encode import Encoder, Example
from limbeck.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.serve.loading import LoadedExpert
    from limbeck.serve.schemas import Asked, ChatRequest, Message

LONG_TEXT = 20_000
"""Characters above which a text is made tokens in a thread, so that others need not wait."""
ADVICE = re.compile(r" (?:Remove the row, or set data\.\S+|Choose an instruct teacher|Raise data\.).*", re.DOTALL)
"""What an error says to somebody with a recipe, not to a client."""


def turns_of(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as templates take them. Raises ApiError unless the last one is the user's."""
    if messages[-1].role != "user":
        raise bad(
            f"The last message is the {messages[-1].role}'s; it must be the user's.",
            f"messages[{len(messages) - 1}].role",
        )
    return [{"role": "system" if one.role == "developer" else one.role, "content": one.text} for one in messages]


async def chat_ids(opened: LoadedExpert, body: ChatRequest) -> np.ndarray:
    """int32 ids of the conversation up to where the reply begins. Raises ApiError: a control token in a content, a
    conversation that the template refuses or that does not fit, a model without a template."""
    turns = turns_of(body.messages)
    return await _encoded(opened, Example(messages=turns, source="messages"), "messages")


async def text_ids(opened: LoadedExpert, prompt: str | list[int], param: str) -> np.ndarray:
    """int32 ids of a plain prompt, with the special tokens that the tokenizer adds; ids are taken as they are. Raises
    ApiError."""
    if not isinstance(prompt, str):
        if high := [token for token in prompt if token >= opened.lm.vocab]:
            raise bad(f"The prompt has the token {high[0]}; this model knows {opened.lm.vocab}.", param)
        return np.asarray(prompt, dtype=np.int32)
    return await _encoded(opened, Example(prompt=prompt, source=param), param)


async def _encoded(opened: LoadedExpert, example: Example, param: str) -> np.ndarray:
    long = sum(len(str(turn["content"])) for turn in example.messages or ()) + len(example.prompt or "") > LONG_TEXT
    encoder = Encoder(
        opened.lm.tokenizer,
        max_length=opened.engine.max_context,
        long_rows="stop",
        chat_template=False,
        need_reply=False,
    )
    try:
        return (await asyncio.to_thread(encoder.encode, example) if long else encoder.encode(example)).ids
    except LongRow as error:
        raise too_long(str(error)) from error
    except EmptyRow as error:
        raise bad(ADVICE.sub("", str(error)), param) from error
    except TeacherError as error:
        raise bad("This model has no chat template: it completes text (/v1/completions).", "model") from error
    except DataError as error:
        raise bad(ADVICE.sub("", str(error)), param) from error


def too_long(found: str) -> ApiError:
    return bad(ADVICE.sub("", found), code="context_length_exceeded")


def room(opened: LoadedExpert, num_prompt: int, wanted: int | None, default: int) -> int:
    """Tokens that a reply may have; `wanted` may be 0, to have the prompt scored. Raises ApiError where more are wanted
    than the context has."""
    free = opened.engine.max_context - num_prompt
    if free < (1 if wanted is None else wanted):
        want = "" if wanted is None else f" and {wanted} more are wanted"
        raise too_long(
            f"The prompt has {num_prompt} tokens{want}; this model's context is {opened.engine.max_context}."
        )
    return min(default, free) if wanted is None else wanted


def sampling_of(body: Asked, max_tokens: int, seed: int) -> Sampling:
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),
        max_tokens=max_tokens,
        stop=body.stops,
        seed=seed,
    )
