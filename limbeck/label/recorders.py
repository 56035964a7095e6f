"""What becomes of an endpoint's answers where more than text is kept: its log-probs, or its replies as votes."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from limbeck.endpoint.align import Ends, align, check_text
from limbeck.endpoint.messages import ApiRequest
from limbeck.endpoint.probe import IDS, Reader
from limbeck.errors import DataError, UnalignedTokens
from limbeck.label.replies import (
    UNCUT,
    BuiltTraces,
    EndpointReply,
    TraceBuilder,
    ask_header,
    keep_text,
    refuse_wordless,
    reply_facts,
    reply_fault,
    reply_text,
    reply_traces,
)
from limbeck.label.traces import make_trace, vote
from limbeck.recipe import GenerateMode, Recipe, ScoreMode, TopK, Votes
from limbeck.system.atomic import fingerprint
from limbeck.text.chat_template import ChatTemplate
from limbeck.text.encode import Encoder
from limbeck.text.finish import ENDED
from limbeck.text.packing import label_positions, labels_of
from limbeck.text.token_bytes import TokenBytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from limbeck.endpoint.capabilities import Capabilities
    from limbeck.losses.support import Support
    from limbeck.store import StoreHeader
    from limbeck.types import Row, Trace

Recorded = tuple["Trace", "Support"]


def keeping_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, record: Capabilities | None) -> TraceBuilder:
    """What the recipe's target keeps of answers. `record` is what the endpoint was seen to do: needed for log-probs."""
    if isinstance(recipe.trace.target, Votes):
        return keep_votes(recipe, tokenizer)
    if not isinstance(recipe.trace.target, TopK):
        return keep_text(recipe, tokenizer)
    assert record is not None
    return (
        keep_scores(recipe, tokenizer, record)
        if isinstance(recipe.trace.mode, ScoreMode)
        else keep_logprobs(recipe, tokenizer, record)
    )


def reader_of(tokenizer: PreTrainedTokenizerBase, end_of_turn: str) -> Reader:
    """Our side of the comparison with an endpoint's tokens."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]

    def render(turns: list[dict[str, str]]) -> list[int]:
        return encode(ChatTemplate(tokenizer).render(turns, "the probe", reply=True))

    end: Any = tokenizer.eos_token_id
    ends = [*encode(end_of_turn)[:1], *([end] if isinstance(end, int) else [])]
    renders = render if tokenizer.chat_template else None
    return Reader(TokenBytes.of_tokenizer(tokenizer), encode, renders, tuple(dict.fromkeys(ends)))


def reader_for(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Reader:
    """With the end of turn that the recipe's rows have: that of the chat template, or the end token."""
    chat = tokenizer.chat_template and recipe.data.chat_template
    return reader_of(tokenizer, ChatTemplate(tokenizer).end_of_turn if chat else "")


def keep_logprobs(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, record: Capabilities) -> TraceBuilder:
    """Replies with the probabilities that the endpoint told of each of their tokens."""
    target, mode = recipe.trace.target, recipe.trace.mode
    assert isinstance(target, TopK) and isinstance(mode, GenerateMode)
    header = _header(recipe, tokenizer, record)
    reader = reader_for(recipe, tokenizer)
    # Where no reply of the probe ended, ends are rare, and what an end told or untold adds is less than its rarity.
    ends = Ends(reader.ends, record.ends_told is not False)

    def keep(row: Row, said: Sequence[EndpointReply]) -> tuple[list[Recorded], list[tuple[int, str]]]:
        kept, failed = [], []
        for one in said:
            choice = one.choice
            try:
                refuse_wordless(row, choice)
                found = align(
                    choice.tokens or (), reader.table, ends, ended=choice.finish_reason == ENDED and not mode.stop
                )
                check_text(found.ids, choice.text, reader.table, cut=bool(mode.stop or choice.reasoning))
                if not len(found.ids):
                    raise UnalignedTokens("the endpoint told of no token at all")
            except (UnalignedTokens, DataError) as error:
                failed.append((one.draw, str(error)))
                continue
            facts = {"hard": found.num_hard, "unknown": round(found.unknown, 6)}
            kept.append((_reply(row, one, header, found.ids, facts), found.support))
        return kept, failed

    extra = IDS if record.token_ids else {}
    return _keeping(header, keep, logprobs=min(target.k, record.logprobs), extra_body=extra)


def keep_votes(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> TraceBuilder:
    """Distinct replies with what share of all of a row's replies goes on with each token. Replies that cannot be used
    do not vote."""
    header = ask_header(recipe, tokenizer)
    encoder = Encoder(tokenizer, max_length=UNCUT, chat_template=recipe.data.chat_template, need_reply=False)

    def keep(row: Row, said: Sequence[EndpointReply]) -> tuple[list[Recorded], list[tuple[int, str]]]:
        traces, failed = reply_traces(row, said, header, encoder)
        return vote(traces), failed

    return _keeping(header, keep, fault=partial(reply_fault, encoder=encoder))


def keep_scores(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, record: Capabilities) -> TraceBuilder:
    """Given rows, with the endpoint's probabilities at their supervised positions."""
    target = recipe.trace.target
    assert isinstance(target, TopK)
    header = _header(recipe, tokenizer, record)
    reader = reader_for(recipe, tokenizer)

    def keep(row: Row, said: Sequence[EndpointReply]) -> tuple[list[Recorded], list[tuple[int, str]]]:
        (one,) = said if said else (None,)
        if one is None:
            return [], []
        try:
            found = align(one.choice.tokens or (), reader.table, Ends(reader.ends, told=True))
            if found.ids.tolist() != row.ids[_first(row) :].tolist():
                raise UnalignedTokens("the endpoint cuts the text into other tokens than this tokenizer")
        except UnalignedTokens as error:
            return [], [(one.draw, str(error))]
        facts = {"hard": found.num_hard, "unknown": round(found.unknown, 6), "model": one.model}
        trace = make_trace(row, header, row.ids, row.spans, row.text, 0, facts)
        return [(trace, _rows(found.support, label_positions(row) - _first(row)))], []

    def ask(row: Row, _draws: Sequence[int]) -> ApiRequest:
        ids, echo = tuple(row.ids.tolist()), not record.prompt_logprobs
        return ApiRequest(given=ids, first=_first(row), logprobs=target.k, echo=echo)

    extra = IDS if record.token_ids and not record.prompt_logprobs else {}
    return _keeping(header, keep, logprobs=target.k, extra_body=extra, ask=ask)


def _header(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, record: Capabilities) -> StoreHeader:
    """What an endpoint was seen to do is part of who spoke: its log-probs are read by it."""
    header = ask_header(recipe, tokenizer)
    return replace(header, lm=fingerprint(header.lm, record.identity))


def _keeping(header: StoreHeader, keep: Any, **more: Any) -> TraceBuilder:
    """`keep(row, said)` gives traces with supports and (draw, reason) of failures. The rounding of a record is a
    function of its trace: the same whenever it is made."""

    def make(row: Row, said: Sequence[EndpointReply]) -> BuiltTraces:
        kept, failed = keep(row, said)
        traces = []
        for trace, support in kept:
            rounding = np.random.default_rng(int(trace.id[:15], 16))
            record = header.codec.encode(support, labels_of(trace), trace.context_hash, rounding)
            traces.append((trace, record))
        return BuiltTraces(traces, failed)

    def fault(row: Row, said: EndpointReply) -> str:
        return next((why for _, why in keep(row, [said])[1]), "")

    return TraceBuilder(header, make, **{"fault": fault, **more})


def _reply(row: Row, said: EndpointReply, header: StoreHeader, reply_ids: np.ndarray, facts: dict[str, Any]) -> Trace:
    """The trace of a reply in the endpoint's own tokens: another cut of its text would have other distributions."""
    reply = reply_text(row, said.choice)
    ids = np.concatenate([row.ids, reply_ids]).astype(np.int32)
    return make_trace(
        row, header, ids, ((len(row.ids), len(ids)),), row.text + reply, said.draw, reply_facts(said, reply, **facts)
    )


def _first(row: Row) -> int:
    return row.spans[0][0]


def _rows(support: Support, places: np.ndarray) -> Support:
    """Some positions of a support without draws."""
    chosen = torch.from_numpy(places)
    parts = {each.name: getattr(support, each.name) for each in fields(support)}
    parts |= {name: value[chosen] for name, value in parts.items() if not name.endswith("_Q")}
    return replace(support, **parts)
