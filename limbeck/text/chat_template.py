"""Conversations through a model's own chat template, and where in the rendered text its replies stand.

Templates are programs that come with models: some insert a system message, trim contents, open the reasoning, or render
a turn differently when others follow. They are run within bounds (`sandbox`), and nothing is assumed of them
(`reply_spans`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

from limbeck.errors import DataError, EmptyRow, LimbeckError, TeacherError, UnsupervisedRow
from limbeck.text.reply_spans import OPEN, THOUGHT, RenderedTurns, common_prefix
from limbeck.text.sandbox import FAILURES, render_template

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

    from limbeck.types import Span

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a turn that hold its reasoning. Templates read the first or the second, whichever a row has."""

Messages = list[dict[str, Any]]
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TemplateSettings:
    """What a template is given besides a conversation: `values` of variables that it reads (`enable_thinking`), and the
    day that its clock shows. Rows are made with a fixed one, so that they are the same tomorrow; None is today."""

    values: Mapping[str, Any] = field(default_factory=dict)
    day: date | None = None


AS_THEY_ARE = TemplateSettings()


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    settings: TemplateSettings = AS_THEY_ARE

    def prompt(self, messages: Sequence[Mapping[str, Any]], source: str, tools: Tools = ()) -> str:
        """The conversation up to where the next reply begins; assistant turns at its end are left out.

        Raises DataError naming `source` for a conversation that is malformed or that the template refuses, TeacherError
        when there is no template.
        """
        turns = self._checked(messages, source)
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns:
            raise DataError(f"{source}: the conversation has no turn to reply to; it must have a user turn.")
        return self.render(turns, source, reply=True, tools=tools)

    def conversation(
        self, messages: Sequence[Mapping[str, Any]], source: str, tools: Tools = ()
    ) -> tuple[str, tuple[Span, ...]]:
        """The whole conversation, and the character range of each assistant turn: from where its prompt ends to behind
        its end-of-turn token. Raises as `prompt`, and DataError when the place of a reply cannot be told.

        Where the prompt of the last turn opens the reasoning and the template leaves the reasoning of finished turns
        out, that turn is the prompt with the reply behind it, word for word: what the model will have written.
        """
        turns = self._checked(messages, source)
        if not any(turn["role"] == "assistant" for turn in turns):
            raise UnsupervisedRow(
                f"{source}: the conversation has no assistant turn, so there is nothing to score. Add one, or let the "
                f"teacher write it: trace.mode.kind=generate.{_roles(turns)}"
            )
        rendered = self._rendered(turns, source, tools)
        places = rendered.replies()
        spans = tuple((place.start, place.end) for place in places)
        if not (places[-1].thoughtless and turns[-1]["role"] == "assistant"):
            return rendered.whole.text, spans
        prompt = self.render(turns[:-1], source, reply=True, tools=tools)
        if not prompt.rstrip().endswith(OPEN):
            raise DataError(
                f"{source}: the chat template drops the reasoning of the last turn, which would not be learnt "
                "from. Cut it off yourself, give the template values that keep it (data.template_values), or render "
                "conversations yourself and give them as plain text."
            )
        reply = turns[-1]["content"].lstrip().removeprefix(OPEN).lstrip("\n").rstrip()
        text = prompt + reply + self.end_of_turn
        return text, (*spans[:-1], (len(prompt), len(text)))

    def render(self, turns: Messages, source: str, *, reply: bool = False, tools: Tools = ()) -> str:
        """What the template makes of `turns`; `reply` adds what asks for a reply."""
        if not self.tokenizer.chat_template:
            raise TeacherError(
                f"{source} is a conversation, but the teacher's tokenizer has no chat template (a base model?). Choose "
                "an instruct teacher, give plain text, or join pairs as plain text: data.chat_template=false."
            )
        given = {**self.tokenizer.special_tokens_map, **self.settings.values}
        given |= {"messages": _with_reasoning(turns), "tools": list(tools) or None, "documents": None}
        try:
            template = self.tokenizer.get_chat_template(None, list(tools) or None)  # type: ignore[arg-type]
            text = render_template(template, {**given, "add_generation_prompt": reply}, self.settings.day)
            text.encode()  # half characters, which JSON can write
        except FAILURES as error:
            why = " ".join(str(error).split())[:500] or type(error).__name__
            raise DataError(f"{source}: the chat template refuses this conversation: {why}") from error
        return text

    def _rendered(self, turns: Messages, source: str, tools: Tools = ()) -> RenderedTurns:
        return RenderedTurns(
            turns, lambda some, reply: self.render(some, source, reply=reply, tools=tools), self.special, source
        )

    @cached_property
    def special(self) -> re.Pattern[str]:
        """Matches a special token in text, the longest first."""
        return _any_of(self._special_tokens)

    @cached_property
    def control(self) -> re.Pattern[str]:
        """Matches what nobody may write in a turn: a special token, but those around a reasoning."""
        return _any_of(self._special_tokens - {OPEN, THOUGHT})

    @cached_property
    def _special_tokens(self) -> set[str]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        return ({token.content for token in added if token.special} | {str(self.tokenizer.eos_token or "")}) - {""}

    @cached_property
    def end_of_turn(self) -> str:
        """What stands behind a reply to end it, "" where the template ends turns with nothing. Raises as
        `conversation`."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "limbeck"}]
        rendered = self._rendered(turns, "a conversation of one turn")
        place = rendered.replies()[-1]
        if place.content_end == place.start:
            raise DataError("the chat template does not write out what an assistant says; its replies cannot be told.")
        return rendered.whole.text[place.content_end : place.end]

    @cached_property
    def end_id(self) -> int | None:
        """The special token that ends an assistant's turn; None where it is none, where the template refuses to show
        it, or where there is no template."""
        try:
            end = self.end_of_turn if self.tokenizer.chat_template else ""
        except LimbeckError:
            return None
        tokens: Any = self.tokenizer(end, add_special_tokens=False, verbose=False)["input_ids"] if end else []
        added = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return next((id for id in reversed(tokens) if id in added | set(self.tokenizer.all_special_ids)), None)

    @cached_property
    def opened(self) -> str:
        """What the prompt for a reply has, and a finished turn without a reasoning has not: the beginning of the
        reasoning. "" for most templates. Raises as `conversation`."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "limbeck"}]
        rendered = self._rendered(turns, "a conversation of one turn")
        prompt = self.render(turns[:1], "a conversation of one turn", reply=True)
        start = rendered.replies()[-1].start
        return prompt[start:] if not rendered.whole.text.startswith(prompt) else ""

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
                    f"{source}: turn {number} is {found}; a turn must have a role and a content, both text: "
                    '{"role": "user", "content": "..."}.'
                )
            if not (content or "").strip() and not calls and turn["role"] != "system":
                raise EmptyRow(f"{source}: turn {number} is empty. Remove the row, or set data.bad_rows=skip.")
            for text in texts_within(turn):
                if control := self.control.search(text):
                    raise DataError(
                        f"{source}: turn {number} contains the control token {control[0]!r}, which would break the "
                        "conversation apart. Remove it, or render conversations yourself and give them as plain text."
                    )
        return turns


def texts_within(value: Any) -> Iterator[str]:
    """Every text in a value of lists and maps, keys too, however deep."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            stack += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            stack += one


def _any_of(names: set[str]) -> re.Pattern[str]:
    ordered = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def _roles(turns: Messages) -> str:
    found = sorted({turn["role"] for turn in turns})
    return f" Its roles are {', '.join(map(repr, found))}; the one who is learnt from must be 'assistant'."


def _with_reasoning(turns: Messages) -> Messages:
    """Turns whose reasoning has all names that templates know, as transformers gives it to them."""
    found = []
    for turn in turns:
        said = next((turn[name] for name in REASONING if turn.get(name) is not None), None)
        found.append(turn if said is None else {"thinking": said, **turn, "reasoning_content": said})
    return found


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
