"""Conversations through a model's own chat template, and where in the rendered text its replies stand.

Templates are programs that come with models: some insert a system message, trim contents, or render a turn differently
when others follow. Nothing is assumed of them: the prompt of every reply is rendered and must be a prefix of the whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from limbeck.errors import DataError, EmptyRow, TeacherError, UnsupervisedRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from limbeck.types import Span

THOUGHT = "</think>"
"""What ends a reasoning model's thoughts. Templates leave them out of earlier turns, and some out of the last."""

MAX_RENDERED = 16 * 2**20
"""Most characters of one rendered row: a template may blow a row up."""

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    def prompt(self, messages: Sequence[Mapping[str, Any]], source: str) -> str:
        """The conversation up to where the next reply begins; assistant turns at its end are left out.

        Raises DataError naming `source` for a conversation that is malformed or that the template refuses, TeacherError
        when there is no template.
        """
        turns = self._checked(messages, source)
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns:
            raise DataError(f"{source}: the conversation has no turn to reply to; it must have a user turn.")
        return self.render(turns, source, reply=True)

    def conversation(self, messages: Sequence[Mapping[str, Any]], source: str) -> tuple[str, tuple[Span, ...]]:
        """The whole conversation, and the character range of each assistant turn: from where its prompt ends to behind
        its end-of-turn token. Raises as `prompt`, and DataError when the place of a reply cannot be found."""
        turns = self._checked(messages, source)
        replies = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
        if not replies:
            raise UnsupervisedRow(
                f"{source}: the conversation has no assistant turn, so there is nothing to score. Add one, or let the "
                "teacher write it: trace.mode.kind=generate."
            )
        whole = _Whole(self, turns, self.render(turns, source), source)
        starts = [whole.reply_start(index) for index in replies]
        bounds = [*starts[1:], len(whole.text)]
        ends = [whole.reply_end(*place) for place in zip(replies, starts, bounds, strict=True)]
        return whole.text, tuple(zip(starts, ends, strict=True))

    def render(self, turns: Messages, source: str, *, reply: bool = False) -> str:
        """What the template makes of `turns`; `reply` adds what asks for a reply."""
        if not self.tokenizer.chat_template:
            raise TeacherError(
                f"{source} is a conversation, but the teacher's tokenizer has no chat template (a base model?). Choose "
                "an instruct teacher, give plain text, or join pairs as plain text: data.chat_template=false."
            )
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=reply)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise DataError(f"{source}: the chat template refuses this conversation: {error}") from error
        assert isinstance(text, str)
        if len(text) > MAX_RENDERED:
            raise DataError(
                f"{source}: the chat template makes {len(text):,} characters of this row; allowed are {MAX_RENDERED:,}."
            )
        return text

    @cached_property
    def special(self) -> re.Pattern[str]:
        """Matches a special token in text, the longest first."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        names = {token.content for token in added if token.special} | {str(self.tokenizer.eos_token or "")}
        ordered = sorted(names - {""}, key=lambda name: (-len(name), name))
        return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    @cached_property
    def end_of_turn(self) -> str:
        """What stands behind a reply to end it, "" where the template ends turns with nothing. Raises as
        `conversation`."""
        said = "limbeck"
        text, replies = self.conversation(
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}], "a conversation of one turn"
        )
        start, end = replies[-1]
        return text[text.index(said, start) + len(said) : end]

    def _checked(self, messages: Sequence[Mapping[str, Any]], source: str) -> Messages:
        """Turns with a role and a content each, without the nulls that columnar files fill in. What someone wrote must
        not end a turn or open another: a special token inside a content is refused."""
        if not messages:
            raise EmptyRow(f"{source}: the conversation is empty. Remove the row, or set data.bad_rows=skip.")
        turns = [{key: value for key, value in message.items() if value is not None} for message in messages]
        for number, turn in enumerate(turns, 1):
            content, calls = turn.get("content"), turn.get("tool_calls")
            if not isinstance(turn.get("role"), str) or not (isinstance(content, str) or (content is None and calls)):
                found = " ".join(str(turn).split())[:80]
                raise DataError(
                    f"{source}: turn {number} is {found}; a turn must have a role and a content, both text."
                )
            if not (content or "").strip() and not calls and turn["role"] != "system":
                raise EmptyRow(f"{source}: turn {number} is empty. Remove the row, or set data.bad_rows=skip.")
            if control := self.special.search(content or ""):
                raise DataError(
                    f"{source}: turn {number} contains the control token {control[0]!r}, which would break the "
                    "conversation apart. Remove it, or render conversations yourself and give them as plain text."
                )
        return turns


@dataclass(frozen=True)
class _Whole:
    """A conversation that was rendered whole, in which the places of its replies are looked for."""

    template: ChatTemplate
    turns: Messages
    text: str
    source: str

    def reply_start(self, index: int) -> int:
        """Where the reply of turn `index` begins: what asks for it must be a prefix of the whole."""
        if index == 0:
            raise DataError(
                f"{self.source}: the conversation begins with an assistant turn; a user turn must come first."
            )
        prompt = self.template.render(self.turns[:index], self.source, reply=True)
        if not self.text.startswith(prompt):
            at = common_prefix(prompt, self.text)
            raise DataError(
                f"{self.source}: the chat template renders the first {index} turns differently when more follow (from "
                f"{prompt[at : at + 40]!r} on), so the place of the reply is unknown. {ADVICE}"
            )
        return len(prompt)

    def reply_end(self, index: int, start: int, bound: int) -> int:
        """Where the reply that begins at `start` ends, at most `bound`: behind the first special token after its
        content, looked for in what the turn itself renders to, so that the next turn's tokens are not taken."""
        turn = self.text
        if index < len(self.turns) - 1:
            turn = self.template.render(self.turns[: index + 1], self.source)
        own = min(common_prefix(turn, self.text), bound)
        content = (self.turns[index].get("content") or "").strip()
        at = self.text.find(content, start, bound) if content else -1
        lost = DataError(f"{self.source}: the end of turn {index + 1} cannot be found in the rendered text. {ADVICE}")
        if at < 0:  # the template rewrites the content, or there is none but tool calls
            thought = content.partition(THOUGHT)[0].rpartition("<think>")[2].strip() if THOUGHT in content else ""
            if thought not in self.text[start:bound] and index == len(self.turns) - 1:
                raise DataError(
                    f"{self.source}: the chat template drops the reasoning of the last turn, which would not be learnt "
                    "from. Cut it off yourself, or render conversations yourself and give them as plain text."
                )
            if own < len(turn):
                raise lost
            ends = [match.end() for match in self.template.special.finditer(self.text, start, own)]
            return ends[-1] if ends else own
        after = at + len(content)
        end = self.template.special.search(self.text, after, own if own >= after else bound)
        if end is None and own < after:
            raise lost
        return end.end() if end else own


ADVICE = "Keep one assistant turn per row, the last."


def common_prefix(a: str, b: str) -> int:
    """Length of the longest common beginning, by bisection: slices compare at memory speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


PROBE: Messages = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "<think>\ntwo\n</think>\n\nthree"},
    {"role": "user", "content": "four"},
]
"""A conversation that shows what a template makes of turns, thoughts, and the place of a reply."""


def compare_templates(ours: ChatTemplate, theirs: ChatTemplate) -> str | None:
    """Where two templates part on a conversation with thoughts in it: a sentence's end, or None when they do not. One
    that refuses the conversation is compared by its refusal."""
    a, b = (_rendered(template) for template in (ours, theirs))
    if a == b:
        return None
    at = common_prefix(a, b)
    return f"after {a[max(at - 20, 0) : at]!r}, {a[at : at + 40]!r} stands against {b[at : at + 40]!r}"


def _rendered(template: ChatTemplate) -> str:
    try:
        return template.render(PROBE, "a conversation of three turns", reply=True)
    except (DataError, TeacherError) as error:
        return str(error)
