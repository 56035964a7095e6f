"""The two endpoints on an expert that is open here: asks for its engine, and what it writes as an answer."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.responses import JSONResponse

from limbeck.engine.api import GenerateRequest
from limbeck.errors import DataError, EngineError, EngineFull, LimbeckError, LongRow
from limbeck.serve import responses
from limbeck.serve.errors import ApiError, bad
from limbeck.serve.responses import Envelope, EventStream, TextLogprobs, usage_of
from limbeck.text.encode import Encoder, Example
from limbeck.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.responses import Response

    from limbeck.engine.api import Scored, Writing
    from limbeck.serve.dispatch import Chosen
    from limbeck.serve.middleware import RequestContext
    from limbeck.serve.pool import LoadedExpert
    from limbeck.serve.schemas import Asked, ChatRequest, CompletionRequest, Message
    from limbeck.serve.settings import ServeLimits
    from limbeck.types import GeneratedToken

logger = logging.getLogger(__name__)

UNBOUNDED = 2**31
"""Tokens of a prompt: what does not fit is told by `room`, with what is allowed."""

JudgeReply = Callable[[float], "Chosen | None"]
"""Who answers instead of a reply, by its mean log-prob; None where it stands."""

TokenStream = AsyncGenerator[tuple[int, "GeneratedToken"]]
"""Of all replies to one request, each with its reply's number."""

DEFAULT_TOKENS = 16
"""Of a completion without `max_tokens`, as OpenAI's API has it."""


@dataclass(frozen=True)
class Generation:
    """One request on one open expert. `headers` and `head.limbeck` say why it was chosen."""

    call: RequestContext
    opened: LoadedExpert
    head: Envelope
    headers: dict[str, str]
    limits: ServeLimits

    def begin(self, asks: list[GenerateRequest]) -> list[Writing]:
        """Replies under way; they end with the call. Raises ApiError."""
        writings = []
        try:
            for ask in asks:
                writing = self.opened.engine.write(ask)
                self.call.held.push_async_callback(writing.aclose)
                writings.append(writing)
        except LongRow as error:
            raise bad(str(error), code="context_length_exceeded") from error
        except DataError as error:
            raise bad(str(error)) from error
        except EngineError as error:
            raise responses.engine_refusal(error) from error
        return writings

    def answer(self, choices: list[dict[str, Any]]) -> Response:
        usage = usage_of(self.call.prompt_tokens, self.call.completion_tokens)
        return JSONResponse(self.head.whole(choices, usage), headers=self.headers)

    def ended(self, written: GeneratedToken) -> bool:
        """Whether this is the token that ends a reply, which is no part of it."""
        return written.finish_reason == "stop" and written.id in self.opened.lm.end_ids


# ---- chat ------------------------------------------------------------------------------------------------------------


async def chat(work: Generation, body: ChatRequest, instead: JudgeReply | None) -> Response | Chosen:
    """The answer; or who answers instead, where `instead` names one, given how sure the model was of its whole reply.
    Raises ApiError."""
    ids = await chat_ids(work, body)
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    most = room(work.opened, len(ids), wanted, work.limits.max_tokens)
    sampling = sampling_of(body, most, _seed(body.seed))
    top = (body.top_logprobs or 0) if body.logprobs else 0
    writings = work.begin([GenerateRequest(ids, sampling, index, top) for index in range(body.n or 1)])
    work.call.prompt_tokens = len(ids)
    tokens = await _standing(work, responses.merged(writings, work.call), instead)
    if not isinstance(tokens, AsyncGenerator):
        return tokens
    if body.stream:
        return EventStream(_chat_events(work, body, tokens), work.call, work.headers)
    return await _chat_whole(work, body, tokens)


async def _standing(work: Generation, tokens: TokenStream, instead: JudgeReply | None) -> TokenStream | Chosen:
    """The tokens, as they come where nothing is judged; all at once where they stand; or who answers instead."""
    if instead is None:
        return tokens
    try:
        async with asyncio.timeout_at(work.call.deadline):
            heard = [one async for one in tokens]
    except TimeoutError:
        raise responses.timed_out() from None
    return instead(sum(written.logp for _, written in heard) / len(heard)) or responses.again(heard)


async def _chat_whole(work: Generation, body: ChatRequest, tokens: TokenStream) -> Response:
    num = body.n or 1
    texts: list[list[str]] = [[] for _ in range(num)]
    logprobs: list[list[dict[str, Any]]] = [[] for _ in range(num)]
    reasons = ["length"] * num
    try:
        async with asyncio.timeout_at(work.call.deadline):
            async for index, written in tokens:
                texts[index].append(written.text)
                if body.logprobs and not work.ended(written):
                    logprobs[index].append(responses.chat_logprob(work.opened, written))
                reasons[index] = written.finish_reason or reasons[index]
    except TimeoutError:
        raise responses.timed_out() from None
    work.call.reply = ["".join(text) for text in texts]
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": {"content": logprobs[index]} if body.logprobs else None,
            "finish_reason": reasons[index],
        }
        for index, text in enumerate(work.call.reply)
    ]
    return work.answer(choices)


async def _chat_events(work: Generation, body: ChatRequest, tokens: TokenStream) -> AsyncGenerator[bytes]:
    head, usage = work.head, {"usage": None} if body.include_usage else {}
    texts: list[list[str]] = [[] for _ in range(body.n or 1)]
    for index in range(len(texts)):
        choice = _delta(index, {"role": "assistant", "content": ""})
        yield head.chunk([choice], limbeck=head.limbeck, **usage)
    async for index, written in tokens:
        texts[index].append(written.text)
        shown = body.logprobs and not work.ended(written)
        if shown:
            logprobs = {"content": [responses.chat_logprob(work.opened, written)]}
            yield head.chunk([{**_delta(index, {"content": written.text}), "logprobs": logprobs}], **usage)
        elif written.text:
            yield head.content(index, written.text, usage=body.include_usage)
        if written.finish_reason:
            yield head.chunk([{**_delta(index, {}), "finish_reason": written.finish_reason}], **usage)
    work.call.reply = ["".join(text) for text in texts]
    if body.include_usage:
        yield head.chunk([], usage=usage_of(work.call.prompt_tokens, work.call.completion_tokens))


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


# ---- completions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plain:
    """One choice of a completion: what is echoed, with its log-probs, and what was asked for."""

    ask: GenerateRequest
    echo: str
    logprobs: TextLogprobs | None


async def completions(
    work: Generation, body: CompletionRequest, instead: JudgeReply | None = None
) -> Response | Chosen:
    """As `chat`; where nothing is to be written, there is nothing to judge. Raises ApiError."""
    plains, writings = await _plains(work, body)
    tokens = await _standing(work, responses.merged(writings, work.call), instead if writings else None)
    if not isinstance(tokens, AsyncGenerator):
        return tokens
    if body.stream:
        return EventStream(_completion_events(work, body, plains, tokens), work.call, work.headers)
    texts = [[plain.echo] for plain in plains]
    reasons = ["length"] * len(plains)
    try:
        async with asyncio.timeout_at(work.call.deadline):
            async for index, written in tokens:
                texts[index].append(written.text)
                _note(work, plains[index], written)
                reasons[index] = written.finish_reason or reasons[index]
    except TimeoutError:
        raise responses.timed_out() from None
    work.call.reply = ["".join(text) for text in texts]
    choices = [
        {
            "index": index,
            "text": text,
            "logprobs": plain.logprobs.take() if plain.logprobs else None,
            "finish_reason": reasons[index],
        }
        for index, (text, plain) in enumerate(zip(work.call.reply, plains, strict=True))
    ]
    return work.answer(choices)


async def _completion_events(
    work: Generation, body: CompletionRequest, plains: list[_Plain], tokens: TokenStream
) -> AsyncGenerator[bytes]:
    head, usage = work.head, {"usage": None} if body.include_usage else {}
    first: dict[str, Any] = {"limbeck": head.limbeck}
    nothing = body.max_tokens == 0
    for index, plain in enumerate(plains):
        if plain.echo or nothing:
            yield head.chunk([_piece(index, plain, plain.echo, "length" if nothing else None)], **usage, **first)
            first = {}
    async for index, written in tokens:
        _note(work, plains[index], written)
        if written.text or written.finish_reason or plains[index].logprobs:
            yield head.chunk([_piece(index, plains[index], written.text, written.finish_reason)], **usage, **first)
            first = {}
    if body.include_usage:
        yield head.chunk([], usage=usage_of(work.call.prompt_tokens, work.call.completion_tokens))


def _piece(index: int, plain: _Plain, text: str, reason: str | None) -> dict[str, Any]:
    logprobs = plain.logprobs.take() if plain.logprobs else None
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _note(work: Generation, plain: _Plain, written: GeneratedToken) -> None:
    if plain.logprobs and not work.ended(written):
        plain.logprobs.add(written.id, written.logp, written.top)


async def _plains(work: Generation, body: CompletionRequest) -> tuple[list[_Plain], list[Writing]]:
    """Every choice, in order, and its reply under way; no replies where no tokens are wanted."""
    opened, num, wanted = work.opened, body.n or 1, DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    prompts = body.prompts
    names = ["prompt"] if len(prompts) == 1 else [f"prompt[{index}]" for index in range(len(prompts))]
    rows = [await text_ids(work, prompt, name) for prompt, name in zip(prompts, names, strict=True)]
    seed, top = _seed(body.seed), body.logprobs or 0
    asks = []
    for ids in rows:
        most = room(opened, len(ids), body.max_tokens, wanted)
        asks += [GenerateRequest(ids, sampling_of(body, most, seed), index, top) for index in range(num)]
    writings = work.begin(asks) if wanted else []
    work.call.prompt_tokens = sum(len(ids) for ids in rows)
    plains = []
    for prompt, ids in zip(prompts, rows, strict=True):
        echo = "" if not body.echo else prompt if isinstance(prompt, str) else str(opened.lm.tokenizer.decode(ids))
        scored = await _scored(work, ids, top) if body.echo and body.logprobs is not None else None
        for _ in range(num):
            logprobs = None if body.logprobs is None else TextLogprobs(opened, offset=0 if scored else len(echo))
            if logprobs and scored:
                logprobs.add_scored(ids.tolist(), scored)
            plains.append(_Plain(asks[len(plains)], echo, logprobs))
    return plains, writings


async def _scored(work: Generation, ids: np.ndarray, top: int) -> Scored:
    try:
        async with asyncio.timeout_at(work.call.deadline):
            return await work.opened.engine.score(ids, top)
    except TimeoutError:
        raise responses.timed_out() from None
    except EngineError as error:
        raise responses.engine_refusal(error) from error


def _seed(seed: int | None) -> int:
    return secrets.randbits(62) if seed is None else seed


# ---- text to tokens --------------------------------------------------------------------------------------------------

ADVICE = re.compile(r" (?:Remove the row, or set data\.\S+|Choose an instruct teacher|Raise data\.).*", re.DOTALL)
"""What an error says to somebody with a recipe, not to a client."""


def turns_of(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as templates take them. Raises ApiError unless the last one is the user's."""
    if messages[-1].role != "user":
        raise bad(
            f"The last message is the {messages[-1].role}'s; it must be the user's.",
            f"messages[{len(messages) - 1}].role",
        )
    return [one.turn for one in messages]


async def chat_ids(work: Generation, body: ChatRequest) -> np.ndarray:
    """int32 ids of the conversation up to where the reply begins. Raises ApiError: a control token in a content, a
    conversation that the template refuses, a model without a template."""
    if not work.opened.lm.tokenizer.chat_template:
        raise bad("This model has no chat template: it completes text (/v1/completions).", "model")
    return await _encoded(work, Example(messages=turns_of(body.messages), source="messages"), "messages")


async def text_ids(work: Generation, prompt: str | list[int], param: str) -> np.ndarray:
    """int32 ids of a plain prompt, with the special tokens that the tokenizer adds; ids are taken as they are. Raises
    ApiError."""
    if not isinstance(prompt, str):
        vocab = work.opened.lm.vocab
        if high := [token for token in prompt if token >= vocab]:
            raise bad(f"The prompt has the token {high[0]}; this model knows {vocab}.", param)
        return np.asarray(prompt, dtype=np.int32)
    return await _encoded(work, Example(prompt=prompt, source=param), param)


async def _encoded(work: Generation, example: Example, param: str) -> np.ndarray:
    """Read by the expert's own template and tokenizer, which are a stranger's: in its thread, until the deadline."""
    encoder = Encoder(work.opened.lm.tokenizer, max_length=UNBOUNDED, chat_template=False, need_reply=False)
    try:
        async with asyncio.timeout_at(work.call.deadline):
            return (await work.opened.turns.take(encoder.encode, example)).ids
    except TimeoutError:
        raise responses.timed_out(f"The expert {work.head.model} did not read the prompt in time.") from None
    except EngineFull as error:
        raise responses.engine_refusal(error) from error
    except DataError as error:
        raise bad(ADVICE.sub("", str(error)), param) from error
    except Exception as error:
        logger.warning("%s cannot read a prompt: %s: %s", work.head.model, type(error).__name__, error)
        reason = str(error) if isinstance(error, LimbeckError) else type(error).__name__
        raise ApiError(
            503, f"The expert {work.head.model} cannot read the prompt: {reason}", param="model", code="expert_damaged"
        ) from error


def too_long(num_prompt: int, wanted: int | None, most: int) -> ApiError:
    """In the words that clients look for, to fall back to a model with a longer context."""
    more = "" if wanted is None else f", and {wanted} more are wanted"
    return bad(
        f"This model's maximum context length is {most} tokens; the prompt has {num_prompt}{more}. Shorten the prompt, "
        "or ask for fewer tokens.",
        code="context_length_exceeded",
    )


def room(opened: LoadedExpert, num_prompt: int, wanted: int | None, default: int) -> int:
    """Tokens that a reply may have; `wanted` may be 0, to have the prompt scored. Raises ApiError where more are wanted
    than the context has."""
    most = opened.engine.max_context
    if most - num_prompt < (1 if wanted is None else wanted):
        raise too_long(num_prompt, wanted, most)
    return min(default, most - num_prompt) if wanted is None else wanted


def sampling_of(body: Asked, max_tokens: int, seed: int) -> Sampling:
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),
        max_tokens=max_tokens,
        stop=body.stops,
        seed=seed,
    )
