"""The one road from text to tokens, and the identity of tokenizers and templates. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from limbeck.errors import DataError, TeacherError
from limbeck.rundir import fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.types import Span

MAX_RENDERED = 8 * 2**20  # characters: a template can blow a row up without limit

Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """One row as it was read: exactly one of `text`, `prompt` (with or without `completion`) and `messages`."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[Message, ...] | None = None
    topic: str = ""
    source: str = ""


@dataclass(frozen=True)
class Encoded:
    """Token ids int32 [T], supervised spans, the rendered text, and whether the row was cut to fit."""

    ids: np.ndarray
    spans: tuple[Span, ...]
    text: str
    truncated: bool = False


class TooLong(DataError):
    """A row does not fit into `data.max_length`."""


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a hub id or folder. Raises TeacherError when there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise TeacherError(
            f"the tokenizer of {path!r} cannot be opened: {error}. Allowed are hub ids and folders with a tokenizer.json."
        ) from error
    if not tokenizer.is_fast:
        raise TeacherError(
            f"the tokenizer of {path!r} is of the slow kind, which does not tell where in the text a token came from; "
            "save it as a fast one (tokenizer.json) and try again."
        )
    return tokenizer


# ---- identity --------------------------------------------------------------------------------------------------------


def _parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What makes a tokenizer: id -> token, merges, added tokens, normalizer and pre-tokenizer, in one canonical form."""
    raw = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    model = raw["model"]
    vocab = model.get("vocab") or {}
    pairs = vocab.items() if isinstance(vocab, dict) else ((token, n) for n, (token, *_score) in enumerate(vocab))
    tokens = {int(number): token for token, number in pairs}
    added = {int(entry["id"]): entry["content"] for entry in raw["added_tokens"]}
    merges = [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in model.get("merges") or []]
    return {
        "tokens": tokens | added,
        "merges": merges,
        "special": sorted(int(entry["id"]) for entry in raw["added_tokens"] if entry["special"]),
        "ends": [tokenizer.bos_token_id, tokenizer.eos_token_id],
        "normalizer": raw.get("normalizer"),
        "pre_tokenizer": raw.get("pre_tokenizer"),
    }


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits over the id -> token map, merges, special ids, normalizer and pre-tokenizer."""
    parts = _parts(tokenizer)
    return fingerprint({**parts, "tokens": sorted(parts["tokens"].items())})


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits over the chat template; empty when there is none."""
    template = tokenizer.chat_template
    return hashlib.sha256(json.dumps(template).encode()).hexdigest()[:16] if template else ""


def compare_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> list[str]:
    """What differs, in sentences; empty when a token id means the same to both and text is cut the same way."""
    ours, theirs = _parts(teacher), _parts(student)
    found: list[str] = []
    a, b = ours["tokens"], theirs["tokens"]
    wrong = [number for number in sorted(a.keys() | b.keys()) if a.get(number) != b.get(number)]
    if wrong:
        first = wrong[0]
        found.append(
            f"{len(wrong)} of {len(a)} ids differ (id {first} is {a.get(first)!r} in the teacher and "
            f"{b.get(first)!r} in the student)"
        )
    if ours["merges"] != theirs["merges"]:
        found.append(f"the merges differ ({len(ours['merges'])} in the teacher, {len(theirs['merges'])} in the student)")
    if ours["special"] != theirs["special"]:
        found.append(f"the special ids differ ({_few(ours['special'])} in the teacher, {_few(theirs['special'])} in the student)")
    if ours["ends"] != theirs["ends"]:
        found.append(f"the start and end ids differ ({ours['ends']} in the teacher, {theirs['ends']} in the student)")
    for part in ("normalizer", "pre_tokenizer"):
        if ours[part] != theirs[part]:
            found.append(f"the {part.replace('_', '-')}s differ")
    return found


def _few(values: Sequence[int]) -> str:
    return f"{list(values[:4])}{' ...' if len(values) > 4 else ''}"


# ---- encoding --------------------------------------------------------------------------------------------------------


class Encoder:
    """Examples to tokens, for one tokenizer and one set of rules.

    Plain text: every token from the second on is supervised, an end token closes the row. Chats and prompt/completion
    pairs: only the assistant's tokens, each turn's end token included. With `need_reply` false only a prompt is made
    (nothing is supervised): replies are still to be written.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        long_rows: str,
        chat_template: bool,
        need_reply: bool,
    ) -> None:
        self.tokenizer, self.max_length, self.long_rows = tokenizer, max_length, long_rows
        self.chat_template, self.need_reply = chat_template, need_reply

    def encode(self, example: Example) -> Encoded:
        """Raises DataError naming the row when it is empty, malformed or (by `long_rows`) too long; TeacherError when a
        chat template is needed and there is none."""
        if example.messages is not None:
            text, turns = self._chat(list(example.messages), example.source)
        elif example.prompt is not None:
            text, turns = self._pair(example)
        else:
            return self._plain(example)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        return self._finish(ids, _spans(offsets, turns), text, example.source)

    def _plain(self, example: Example) -> Encoded:
        if not example.text or not example.text.strip():
            raise DataError(f"{example.source}: the row is empty. Remove it, or set data.bad_rows to skip.")
        ids = list(self.tokenizer(example.text)["input_ids"])
        end = self.tokenizer.eos_token_id
        if self.need_reply and end is not None and (not ids or ids[-1] != end):
            ids.append(end)
        spans = ((1, len(ids)),) if len(ids) > 1 else ()
        return self._finish(ids, spans, example.text, example.source)

    def _pair(self, example: Example) -> tuple[str, list[Span]]:
        """Rendered text and the character ranges that are supervised."""
        prompt, completion = example.prompt or "", example.completion or ""
        if not prompt.strip():
            raise DataError(f"{example.source}: the prompt is empty. Remove the row, or set data.bad_rows to skip.")
        if self.need_reply and not completion.strip():
            raise DataError(
                f"{example.source}: the completion is empty. Remove the row, set data.bad_rows to skip, or let the teacher "
                "write replies (trace.mode.kind=generate)."
            )
        if self.chat_template:
            messages = [{"role": "user", "content": prompt}]
            if self.need_reply:
                messages.append({"role": "assistant", "content": completion})
            return self._chat(messages, example.source)
        start = self.tokenizer.bos_token or "" if getattr(self.tokenizer, "add_bos_token", False) else ""
        if not self.need_reply:
            return start + prompt, []
        text = start + prompt + completion + (self.tokenizer.eos_token or "")
        return text, [(len(start + prompt), len(text))]

    def _chat(self, messages: list[Message], source: str) -> tuple[str, list[Span]]:
        _check_messages(messages, source)
        if not self.need_reply:
            while messages and messages[-1]["role"] == "assistant":
                messages = messages[:-1]
            if not messages:
                raise DataError(f"{source}: there is no prompt before the assistant's turn.")
            return self._render(messages, source, prompt=True), []
        text = self._render(messages, source)
        turns: list[Span] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:number], source, prompt=True)
            until = self._render(messages[: number + 1], source).rstrip()
            if not (text.startswith(before) and text.startswith(until)):
                raise DataError(
                    f"{source}: the chat template renders the first {number + 1} messages differently when others follow, "
                    "so it cannot be told which tokens the assistant wrote. Split the chat into single turns."
                )
            turns.append((len(before), len(until)))
        if not turns:
            raise DataError(f"{source}: there is no assistant turn to learn from.")
        return text, turns

    def _render(self, messages: list[Message], source: str, *, prompt: bool = False) -> str:
        if not self.tokenizer.chat_template:
            raise TeacherError(
                f"{source}: the row is a chat, but the tokenizer has no chat template. Choose an instruct model, or set "
                "data.chat_template to false to join prompt and completion as plain text."
            )
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise DataError(f"{source}: the chat template refuses these messages: {error}") from error
        assert isinstance(text, str)
        if len(text) > MAX_RENDERED:
            raise DataError(f"{source}: the chat renders to {len(text)} characters; at most {MAX_RENDERED} are allowed.")
        return text

    def _finish(self, ids: list[int], spans: tuple[Span, ...], text: str, source: str) -> Encoded:
        truncated = len(ids) > self.max_length
        if truncated and self.long_rows != "truncate":
            raise TooLong(
                f"{source}: the row has {len(ids)} tokens, data.max_length allows {self.max_length}. Raise it, or set "
                "data.long_rows to skip or truncate."
            )
        if truncated:
            ids = ids[: self.max_length]
            spans = tuple((start, min(end, len(ids))) for start, end in spans if start < len(ids))
        if self.need_reply and not spans:
            cut = f" within the first {self.max_length} tokens" if truncated else ""
            raise DataError(f"{source}: no token to learn from{cut}. Remove the row, or set data.bad_rows to skip.")
        return Encoded(np.asarray(ids, dtype=np.int32), spans, text, truncated)


def _check_messages(messages: list[Message], source: str) -> None:
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise DataError(f'{source}: a message must be {{"role": ..., "content": ...}} with two strings, found {str(message)[:80]}')
    if not messages:
        raise DataError(f"{source}: the list of messages is empty.")


def _spans(offsets: Sequence[tuple[int, int]], turns: Sequence[Span]) -> tuple[Span, ...]:
    """Token ranges whose characters begin inside the given character ranges. The first token is never predicted."""
    spans: list[Span] = []
    for start, end in turns:
        inside = [n for n, (a, b) in enumerate(offsets) if n > 0 and start <= a < end and b > a]
        if inside:
            spans.append((inside[0], inside[-1] + 1))
    return tuple(spans)
