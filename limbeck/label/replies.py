"""From what an endpoint said to traces: a pure function of the row and its answers, whenever and in whatever order they
came."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from limbeck.curate.filters import CLOSE, OPEN
from limbeck.endpoint.messages import ApiChoice, ApiRequest, answer_from_json
from limbeck.errors import DataError, EmptyRow
from limbeck.label.plan import header_of
from limbeck.label.traces import bare_record, make_trace
from limbeck.models.vocabulary import num_ids
from limbeck.recipe import GenerateMode, OpenAITeacher, Recipe, TextTarget, name_of
from limbeck.system.atomic import fingerprint
from limbeck.text.encode import Encoder
from limbeck.text.finish import ENDED
from limbeck.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from limbeck.store import StoreHeader
    from limbeck.store.reply_log import Entry, ReplyLog
    from limbeck.types import Row, Trace

UNCUT = 2**31 - 1
"""Replies are kept as long as they are: the limit of `data.max_length` is one of prompts."""


@dataclass(frozen=True)
class EndpointReply:
    """One reply to a row, and who said it."""

    draw: int
    choice: ApiChoice
    model: str
    system_fingerprint: str


class FailedDraw(NamedTuple):
    """A draw that has no reply, with the reason."""

    draw: int
    kind: str
    reason: str


@dataclass(frozen=True)
class BuiltTraces:
    """What became of the replies to one row: traces with their records, and (draw, reason) of what cannot be used."""

    traces: list[tuple[Trace, bytes]]
    failed: list[tuple[int, str]]


@dataclass(frozen=True)
class TraceBuilder:
    """What a store keeps of replies: its identity, how many log-probs are asked for, and how the replies to one row
    become traces with records. `make` must depend on its arguments alone. `fault` says of a reply that just came why
    `make` will not use it, "" where it will: before more are paid for. `extra_body` are keys that requests need besides
    those of the recipe; `ask` the request about some draws of a row, where it is not one for a reply."""

    header: StoreHeader
    make: Callable[[Row, Sequence[EndpointReply]], BuiltTraces]
    fault: Callable[[Row, EndpointReply], str]
    logprobs: int = 0
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    ask: Callable[[Row, Sequence[int]], ApiRequest] | None = None


def ask_header(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> StoreHeader:
    """The identity of the store of a teacher behind an endpoint, whose words `tokenizer` (the student's) makes
    tokens."""
    settings = recipe.teacher
    assert isinstance(settings, OpenAITeacher)
    lm = fingerprint(settings.identity), name_of(settings)
    return header_of(recipe, tokenizer, num_ids(tokenizer), lm=lm, dtype="")


def keep_text(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> TraceBuilder:
    """Nothing but text is kept: what `trace.target.kind=text` wants."""
    assert isinstance(recipe.trace.target, TextTarget)
    header = ask_header(recipe, tokenizer)
    encoder = Encoder(tokenizer, max_length=UNCUT, chat_template=recipe.data.chat_template, need_reply=False)

    def make(row: Row, said: Sequence[EndpointReply]) -> BuiltTraces:
        traces, failed = reply_traces(row, said, header, encoder)
        return BuiltTraces([(trace, bare_record(trace)) for trace in traces], failed)

    return TraceBuilder(header, make, partial(reply_fault, encoder=encoder))


def reply_fault(row: Row, said: EndpointReply, *, encoder: Encoder) -> str:
    """Why no trace can be made of the words of a reply; "" where one can. Cheap: nothing is made tokens."""
    try:
        _checked(row, said, encoder)
    except DataError as error:
        return str(error)
    return ""


def _checked(row: Row, said: EndpointReply, encoder: Encoder) -> tuple[str, bool]:
    """The reply as text, and whether it ended by itself. Raises DataError for one that cannot be used."""
    refuse_wordless(row, said.choice)
    reply, closed = reply_text(row, said.choice), said.choice.finish_reason == ENDED
    encoder.reply_end(reply, chat=bool(row.messages), closed=closed, source=row.source)
    return reply, closed


def reply_traces(
    row: Row, said: Sequence[EndpointReply], header: StoreHeader, encoder: Encoder
) -> tuple[list[Trace], list[tuple[int, str]]]:
    """The traces of replies, and (draw, reason) of those that cannot be used."""
    traces, failed = [], []
    for one in said:
        try:
            traces.append(reply_trace(row, one, header, encoder))
        except DataError as error:
            failed.append((one.draw, str(error)))
    return traces, failed


def failures_and_replies(log: ReplyLog, keys: Mapping[int, str]) -> tuple[list[FailedDraw], list[EndpointReply]]:
    """What the log holds of the draws of a row, whose names are `keys`. Draws of one request share an entry, which is
    read once."""
    failed, replies = [], []
    entry: Entry = {"keys": []}
    for draw, key in keys.items():
        if key not in entry["keys"]:
            entry = log.read(key)
            answer = answer_from_json(entry["answer"]) if "answer" in entry else None
        if answer is None:
            failed.append(FailedDraw(draw, entry["failed"]["kind"], entry["failed"]["reason"]))
            continue
        choice = answer.choices[entry["keys"].index(key)]
        replies.append(EndpointReply(draw, choice, answer.model, answer.system_fingerprint))
    return failed, replies


def reply_trace(row: Row, said: EndpointReply, header: StoreHeader, encoder: Encoder) -> Trace:
    """The trace of one reply, through the one road from text to tokens. A reply that ended by itself (finish_reason
    stop) has its end-of-turn token; one that was cut off has not. Raises DataError for a reply that cannot be used."""
    reply, closed = _checked(row, said, encoder)
    encoded = encoder.encode_reply(row.text, reply, chat=bool(row.messages), closed=closed, source=row.source)
    return make_trace(row, header, encoded.ids, encoded.spans, encoded.text, said.draw, reply_facts(said, reply))


def refuse_wordless(row: Row, choice: ApiChoice) -> None:
    """Raises DataError for a reply that is no answer in words: nothing is learnt of a refusal that the endpoint names
    as one, of a call whose arguments are not kept, nor of reasoning without an answer."""
    if choice.finish_reason == "refusal":
        raise DataError(f"{row.source}: the model refused to answer. It said: {' '.join(choice.text.split())[:80]}")
    if choice.finish_reason == "tool_calls":
        raise DataError(
            f"{row.source}: the reply calls a tool, and only words are learnt. Leave tools out of teacher.extra_body."
        )
    if not choice.text.strip() and (choice.finish_reason == ENDED or not choice.reasoning.strip()):
        found = "has reasoning and no answer" if choice.reasoning.strip() else "is empty"
        raise EmptyRow(
            f"{row.source}: the reply {found} (it ended by {choice.finish_reason!r}). Where the budget went into "
            "reasoning, raise trace.mode.max_tokens."
        )


def reply_facts(said: EndpointReply, reply: str, **more: Any) -> dict[str, Any]:
    """What the trace of a reply says of it. The order is that of the stored JSON."""
    facts = {"draw": said.draw, "finish_reason": said.choice.finish_reason, "reply": reply, "model": said.model, **more}
    return facts | ({"system_fingerprint": said.system_fingerprint} if said.system_fingerprint else {})


def reply_text(row: Row, choice: ApiChoice) -> str:
    """The reply as the model wrote it: what the endpoint told apart as reasoning stands in `<think>` tags before it,
    the first of which may be the end of the prompt already."""
    opened, text = row.text.rstrip().endswith(OPEN), choice.text
    if CLOSE in text or text.lstrip().startswith(OPEN):  # it stands within the text, and may be told a second time
        return text.lstrip().removeprefix(OPEN).lstrip("\n") if opened else text
    if not choice.reasoning:
        return text
    thoughts = ("" if opened else f"{OPEN}\n") + choice.reasoning.strip("\n")
    return f"{thoughts}\n{CLOSE}\n\n{text}" if text else thoughts


def ask_of(recipe: Recipe, row: Row, draws: Sequence[int], logprobs: int = 0) -> ApiRequest:
    """The request for some draws of a row. Its seed is a function of recipe, row and first draw: the same whenever it
    is asked."""
    mode, settings = recipe.trace.mode, recipe.teacher
    assert isinstance(mode, GenerateMode) and isinstance(settings, OpenAITeacher)
    seed = int(fingerprint(recipe.seed, row.id, draws[0])[:8], 16) & 0x7FFFFFFF
    sampling = Sampling(mode.temperature, mode.top_p, len(draws), mode.max_tokens, mode.stop, seed)
    if settings.endpoint == "completions":
        return ApiRequest(prompt=row.text, sampling=sampling, logprobs=logprobs, seed=seed)
    messages = json.loads(row.messages) if row.messages else [{"role": "user", "content": row.text}]
    return ApiRequest(tuple(messages), sampling=sampling, logprobs=logprobs, seed=seed)
