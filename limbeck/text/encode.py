"""The one road from text to tokens: plain text, pairs and conversations become ids and the spans that are supervised.

A row is tokenised once, as a whole, and spans are found through the tokenizer's own character offsets: what the teacher
reads is exactly what the student learns from. Nothing here looks at the padding token, so `pad == eos` cannot matter.
"""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from limbeck.errors import DataError, EmptyRow, LongRow, UnsupervisedRow
from limbeck.text.chat_template import AS_THEY_ARE, ChatTemplate, TemplateSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from limbeck.types import Span

NAMED = 3
"""Differing ids and flags that a comparison names; the rest is counted."""


@dataclass(frozen=True)
class Example:
    """One row as it was read: `text`, or `prompt` with or without `completion`, or `messages` ({role, content} each).

    `source` says where it stands ("file.jsonl:17") for error messages. `reference` is what a right answer is compared
    with, where there is one. `tools` are the functions that a template tells the assistant of.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    topic: str = ""
    source: str = "row"
    reference: str = ""
    tools: Sequence[Mapping[str, Any]] = ()

    @property
    def truth(self) -> str:
        """What a right answer is compared with: `reference`, or else the reply that is given; "" for neither."""
        last = self.messages[-1] if self.messages else {}
        reply = last.get("content") if last.get("role") == "assistant" else None
        return self.reference or self.completion or reply or ""


@dataclass(frozen=True)
class Encoded:
    """A row as tokens: `ids` int32 [T]; `spans` of supervised tokens (start >= 1), none for a prompt; `text` is what
    they stand for: rendered, and cut where the ids were (without an end token that was added)."""

    ids: np.ndarray
    spans: tuple[Span, ...]
    text: str
    truncated: bool = False


@dataclass(frozen=True)
class _Rendered:
    """Text with the character ranges that are supervised. `raw`: the tokenizer adds its special tokens; `close`: an end
    token follows; `open`: what follows is the reply, so that the end may not be cut off."""

    text: str
    replies: tuple[Span, ...]
    raw: bool = True
    close: bool = False
    open: bool = False


@dataclass(frozen=True)
class Encoder:
    """Turns examples into tokens with the teacher's tokenizer.

    - Plain text: special tokens as the tokenizer adds them, then its end token; all but the first token are supervised.
    - Pairs and conversations: rendered by the chat template; every assistant turn is supervised with its end-of-turn
      token, and nothing else. With `chat_template` false a pair is prompt + completion + end token.
    - With `need_reply` false the row is a prompt that ends where a reply would begin, and nothing is supervised.

    Rows longer than `max_length` tokens are refused, or cut to their beginning when `long_rows` is "truncate". So are
    rows with a token whose id is `num_rows` or above: the model has no row for it in its embedding.
    """

    tokenizer: PreTrainedTokenizerBase
    _: KW_ONLY
    max_length: int
    long_rows: Literal["stop", "skip", "truncate"] = "truncate"
    chat_template: bool = True
    need_reply: bool = True
    num_rows: int | None = None
    settings: TemplateSettings = AS_THEY_ARE

    def encode(self, example: Example) -> Encoded:
        """Raises DataError naming `example.source`: EmptyRow, LongRow, UnsupervisedRow or malformed; TeacherError when
        the row needs a chat template and the tokenizer has none."""
        rendered = self._render(example)
        whole = self._tokenize(rendered)
        row = self._cut(whole, rendered, example.source)
        if not len(row.ids):
            raise EmptyRow(f"{example.source}: the tokenizer makes no token of this row; remove it.")
        if self.need_reply and not row.spans:
            why = "its reply begins beyond data.max_length" if row.truncated else "it is a single token"
            raise UnsupervisedRow(
                f"{example.source}: no token of this row can be learnt from ({why}: {len(whole.ids)} tokens, allowed "
                f"are {self.max_length}). Raise data.max_length, remove the row, or set data.bad_rows=skip."
            )
        if self.num_rows is not None and row.ids.max() >= self.num_rows:
            token = self.tokenizer.convert_ids_to_tokens(int(row.ids.max()))
            raise DataError(
                f"{example.source}: the row has the token {token!r} (id {row.ids.max()}), but the model has "
                f"{self.num_rows} rows of embeddings: the token was added without resizing them. Remove it from the "
                "row, or resize and train the model."
            )
        return Encoded(row.ids, row.spans, row.text, row.truncated)

    def asked(self, example: Example) -> str:
        """The conversation up to the reply as JSON: what a teacher behind an interface is asked. "" for plain text."""
        if example.messages is not None:
            turns = [{key: value for key, value in turn.items() if value is not None} for turn in example.messages]
            while turns and turns[-1].get("role") == "assistant":
                turns.pop()
        elif example.prompt is not None and self.chat_template:
            turns = [{"role": "user", "content": example.prompt}]
        else:
            return ""
        return json.dumps(turns, ensure_ascii=False)

    def encode_reply(self, prompt: str, reply: str, *, chat: bool, closed: bool, source: str) -> Encoded:
        """A rendered prompt (the text of a row without a reply) and what was replied to it, word for word. Only the
        reply is supervised; `closed` adds the token that ends it, which a reply that was cut off does not have.

        `chat`: the prompt is a conversation. Nothing is cut to `max_length`. Raises DataError naming `source` when the
        reply is empty, or holds a control token: it would end the turn or open another one.
        """
        text = prompt + reply + self.reply_end(reply, chat=chat, closed=closed, source=source)
        replies = ((len(prompt), len(text)),)
        tokens = self._tokenize(_Rendered(text, replies, raw=not chat, close=closed and not chat))
        if not tokens.spans:
            raise EmptyRow(f"{source}: the tokenizer makes no token of the reply.")
        return Encoded(tokens.ids, tokens.spans, text)

    def reply_end(self, reply: str, *, chat: bool, closed: bool, source: str) -> str:
        """The text that ends a reply. Raises DataError for a reply that cannot be encoded, as `encode_reply` does."""
        _refuse_empty(reply, "reply", source)
        if chat and (control := self._chat.control.search(reply)):
            raise DataError(f"{source}: the reply contains the control token {control[0]!r}.")
        return self._chat.end_of_turn if chat and closed else ""

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end a reply: the tokenizer's end, and the one by which its chat template ends a turn."""
        found: list[Any] = [self.tokenizer.eos_token_id, self._chat.end_id]
        return frozenset(id for id in found if isinstance(id, int))

    def count_ends(self, row: Encoded) -> tuple[int, int]:
        """Supervised replies, and how many of them end in one of `ends`. A row that was cut says nothing of it."""
        if row.truncated:
            return 0, 0
        return len(row.spans), sum(int(row.ids[end - 1]) in self.ends for _, end in row.spans)

    # ---- text ----

    @cached_property
    def _chat(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, self.settings)

    def _render(self, example: Example) -> _Rendered:
        if example.text is not None:
            _refuse_empty(example.text, "text", example.source)
            replies = ((0, len(example.text)),) if self.need_reply else ()
            return _Rendered(example.text, replies, close=self.need_reply)
        if example.messages is not None:
            return self._render_chat(example.messages, example.source, example.tools)
        if example.prompt is None:
            raise DataError(f"{example.source}: the row has neither text, nor prompt, nor messages.")
        _refuse_empty(example.prompt, "prompt", example.source)
        if not self.need_reply:
            turns = [{"role": "user", "content": example.prompt}]
            return self._render_chat(turns, example.source) if self.chat_template else _Rendered(example.prompt, ())
        if example.completion is None:
            raise DataError(
                f"{example.source}: the row has a prompt and no completion, so there is nothing to score. Name the "
                "column of completions, or let the teacher write them: trace.mode.kind=generate."
            )
        _refuse_empty(example.completion, "completion", example.source)
        return self._render_pair(example.prompt, example.completion, example.source)

    def _render_pair(self, prompt: str, completion: str, source: str) -> _Rendered:
        if self.chat_template:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            return self._render_chat(turns, source)
        text = prompt + completion
        return _Rendered(text, ((len(prompt), len(text)),), close=True)

    def _render_chat(
        self, messages: Sequence[Mapping[str, Any]], source: str, tools: Sequence[Mapping[str, Any]] = ()
    ) -> _Rendered:
        if not self.need_reply:
            return _Rendered(self._chat.prompt(messages, source, tools), (), raw=False, open=True)
        text, replies = self._chat.conversation(messages, source, tools)
        return _Rendered(text, replies, raw=False)

    # ---- tokens ----

    def _tokenize(self, rendered: _Rendered) -> _Tokens:
        encoding = self.tokenizer(
            rendered.text,
            add_special_tokens=rendered.raw,
            return_offsets_mapping=True,
            return_attention_mask=False,
            truncation=False,
            verbose=False,
        )
        ids = np.asarray(encoding["input_ids"], dtype=np.int32)
        offsets_T2 = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        if rendered.raw and len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:
            ids, offsets_T2 = ids[1:], offsets_T2[1:]  # the text has a beginning of its own: it was rendered before
        end: Any = self.tokenizer.eos_token_id
        closed = len(ids) > 0 and ids[-1] == end
        if rendered.close and end is not None and not closed:
            ids = np.append(ids, np.int32(end))
            offsets_T2 = np.vstack([offsets_T2, [[len(rendered.text), len(rendered.text)]]])
        elif closed and not self.need_reply and not offsets_T2[-1].any():  # the tokenizer closed a prompt
            ids, offsets_T2 = ids[:-1], offsets_T2[:-1]
        return _Tokens(ids, offsets_T2, _spans(rendered, offsets_T2))

    def _cut(self, tokens: _Tokens, rendered: _Rendered, source: str) -> Encoded:
        """The row within `max_length`: as it is, cut to its beginning, or refused."""
        if len(tokens.ids) <= self.max_length:
            return Encoded(tokens.ids, tokens.spans, rendered.text)
        found = f"{source}: the row has {len(tokens.ids)} tokens; allowed are {self.max_length}."
        if self.long_rows != "truncate":
            raise LongRow(f"{found} Raise data.max_length, or set data.long_rows to skip or truncate.")
        if rendered.open:
            raise LongRow(
                f"{found} A chat prompt cannot be cut: its end is what asks for the reply. Raise data.max_length, or "
                "set data.long_rows=skip."
            )
        spans = tuple((start, min(end, self.max_length)) for start, end in tokens.spans if start < self.max_length)
        last = int(tokens.offsets_T2[: self.max_length, 1].max())
        return Encoded(tokens.ids[: self.max_length], spans, rendered.text[:last], truncated=True)


@dataclass(frozen=True)
class _Tokens:
    ids: np.ndarray
    offsets_T2: np.ndarray
    spans: tuple[Span, ...]


def _spans(rendered: _Rendered, offsets_T2: np.ndarray) -> tuple[Span, ...]:
    """Token ranges of the character ranges. A token that straddles the start belongs to the reply; the first token of a
    row is never predicted; an end token that was added belongs to the last range."""
    spans: list[Span] = []
    first = 1
    for begin, stop in rendered.replies:
        inside = np.flatnonzero((offsets_T2[:, 1] > begin) & (offsets_T2[:, 0] < stop))
        if len(inside):
            start, end = max(int(inside[0]), first), int(inside[-1]) + 1
            end = len(offsets_T2) if rendered.close and stop == len(rendered.text) else end
            if start < end:
                spans.append((start, end))
                first = end
    return tuple(spans)


def _refuse_empty(text: str, what: str, source: str) -> None:
    if not text.strip():
        raise EmptyRow(f"{source}: the {what} is empty. Remove the row, or set data.bad_rows=skip.")


def _brief(value: Any, limit: int = 60) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


# ---- tokenizers ------------------------------------------------------------------------------------------------------
