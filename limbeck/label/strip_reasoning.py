"""Replies without their reasoning, where the student learns the answers alone. The store keeps what was said."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from limbeck.curate.filters import CLOSE, OPEN
from limbeck.errors import DataError
from limbeck.label.replies import UNCUT
from limbeck.recipe import GenerateMode
from limbeck.store import context_hash
from limbeck.text.encode import Encoder
from limbeck.text.finish import ENDED, finish_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerBase

    from limbeck.recipe import Recipe
    from limbeck.types import Row, Trace


def strips_thinking(recipe: Recipe) -> bool:
    """Whether the student learns only what follows the reasoning."""
    return isinstance(recipe.trace.mode, GenerateMode) and recipe.trace.mode.think == "strip"


def without_thinking(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    rows: Sequence[Row],
    on_message: Callable[[str], None],
) -> list[Trace]:
    """The traces with their answers alone, through the one road from text to tokens; ids stay. Those without an answer
    (reasoning that never ended) are left out, and told. Raises DataError when none is left."""
    encoder = Encoder(tokenizer, max_length=UNCUT, chat_template=recipe.data.chat_template, need_reply=False)
    by_id = {row.id: row for row in rows}
    found = []
    for trace in traces:
        row = by_id[trace.row_id]
        answer = answer_of(row.text, trace.meta["reply"])
        if answer is None:
            continue
        closed = finish_reason(trace.meta["finish_reason"]) == ENDED
        encoded = encoder.encode_reply(row.text, answer, chat=bool(row.messages), closed=closed, source=row.source)
        context = context_hash(encoded.ids, encoded.spans)
        found.append(replace(trace, ids=encoded.ids, spans=encoded.spans, text=encoded.text, context_hash=context))
    left = len(traces) - len(found)
    if left:
        on_message(f"{left} of {len(traces)} replies have no answer behind their reasoning, and are left out")
    if traces and not found:
        raise DataError(
            f"none of {len(traces)} replies has an answer behind its reasoning. Give replies more room "
            "(trace.mode.max_tokens), or keep the reasoning: trace.mode.think=keep."
        )
    return found


def answer_of(prompt: str, reply: str) -> str | None:
    """What follows the reasoning, None where nothing does; a reply without any is its own answer. A prompt that opens
    the reasoning itself is answered by closing it at once, as templates of such models write it."""
    opened = prompt.rstrip().endswith(OPEN)
    _, closing, after = reply.rpartition(CLOSE)
    if not closing:
        return None if opened or OPEN in reply or not reply.strip() else reply
    if not after.strip():
        return None
    answer = after.lstrip("\r\n")
    return f"{'' if prompt.endswith(chr(10)) else chr(10)}{CLOSE}\n\n{answer}" if opened else answer
