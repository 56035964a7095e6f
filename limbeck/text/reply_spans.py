"""Where the replies of a conversation stand in what a template made of it.

Nothing is looked for by its words: a reply may stand in the template's own. The conversation is rendered a second time
with private characters in its replies, which say where each begins and ends; without them the two renderings must be
equal. A reply begins behind what asks for it (the prompt of the turns before it), as far as the conversation agrees
with that; it ends behind the last special token of what the template writes to close it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from limbeck.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OPEN, THOUGHT = "<think>", "</think>"
"""What begins and ends a reasoning model's thoughts. Templates leave them out of earlier turns, some out of the last,
and some begin them for the model."""

ADVICE = (
    "Keep one assistant turn per row, the last; give the template values that keep it (data.template_values); or "
    "render conversations yourself and give them as plain text."
)

PLANES = (0xF0000, 0x100000)
"""Private characters, of which no text makes use; the second plane where one does of the first."""

BEGIN, ANSWER, END = range(3)
PER_TURN = 3
HALF_TAG = re.compile(r"[<\[][^<>\[\]\s]*$")

Turns = list[dict[str, Any]]


class ReplyPlace(NamedTuple):
    """Character positions of a reply: where it begins, where its content ends (its start, where there is none), where
    its turn ends. `thoughtless`: it had a reasoning that the template left out."""

    start: int
    content_end: int
    end: int
    thoughtless: bool = False


class Marked(NamedTuple):
    """A rendering, and where its marks stand: by turn, what each says and its position."""

    text: str
    marks: dict[int, list[tuple[int, int]]]

    def places(self, turn: int, kind: int, low: int, high: int) -> list[int]:
        return [at for found, at in self.marks.get(turn, ()) if found == kind and low <= at <= high]


@dataclass(frozen=True)
class RenderedTurns:
    """A conversation, rendered by `render(turns, reply)`, in which the places of its replies are told. `special`
    matches a special token."""

    turns: Turns
    render: Callable[[Turns, bool], str]
    special: re.Pattern[str]
    source: str

    @cached_property
    def whole(self) -> Marked:
        return self._marked(self.turns, self.render(self.turns, False))

    def replies(self) -> list[ReplyPlace]:
        """Raises DataError where a place cannot be told."""
        numbers = [index for index, turn in enumerate(self.turns) if turn["role"] == "assistant"]
        starts = [self._start(index) for index in numbers]
        bounds = [*starts[1:], len(self.whole.text)]
        return [self._place(*each) for each in zip(numbers, starts, bounds, strict=True)]

    # ---- begin ----

    def _start(self, index: int) -> int:
        """Behind what asks for the reply, as far as the conversation has it: some templates open the reasoning there,
        and leave it out of a finished turn."""
        if index == 0:
            raise DataError(
                f"{self.source}: the conversation begins with an assistant turn; a user turn must come first."
            )
        text = self.whole.text
        prompt = self.render(self.turns[:index], True)
        if text.startswith(prompt):
            return len(prompt)
        same = common_prefix(prompt, text)
        asked = common_prefix(self.render(self.turns[:index], False), prompt)
        if same < asked:
            raise DataError(
                f"{self.source}: the chat template renders the first {index} turns differently when more follow (from "
                f"{prompt[same : same + 40]!r} on), so the place of the reply is unknown. {ADVICE}"
            )
        first = min((at for _, at in self.whole.marks.get(index, ()) if at >= asked), default=len(text))
        half = HALF_TAG.search(text[asked:same]) if same < first else None
        return asked + half.start() if half else min(same, first)

    # ---- end ----

    def _place(self, index: int, start: int, bound: int) -> ReplyPlace:
        ends = self.whole.places(index, END, start, bound)
        after = ends[-1] if ends else start
        closing = self.whole.text[after:bound]
        told = self._last_stop if index == len(self.turns) - 1 else self._stop
        stop = told(index, closing, start)
        return ReplyPlace(start, after, after + stop, self._thoughtless(index, start, bound))

    def _last_stop(self, index: int, closing: str, start: int) -> int:
        """Where the closing of the last turn ends in what follows its content: what stands once behind a conversation
        is not there where another turn follows."""
        found = [match.end() for match in self.special.finditer(closing)]
        if not closing.strip():
            return len(closing)
        if len(found) == 1 and not (self._calls(index) and closing[found[0] :].strip()):
            return found[0]
        turns = [*self.turns[: index + 1], {"role": "user", "content": "?"}]
        try:
            other = self._behind(index, turns, start)
        except DataError:  # no other turn may follow
            other = closing
        return self._agreed(index, closing, other, alone=closing)

    def _stop(self, index: int, closing: str, start: int) -> int:
        """The same of a turn that others follow, by what the template writes where it is the last."""
        other = self._behind(index, self.turns[: index + 1], start)
        return self._agreed(index, closing, other, alone=other)

    def _behind(self, index: int, turns: Turns, start: int) -> str:
        """What stands behind the content of a turn in another rendering; behind `start` where no content is told."""
        found = self._marked(turns, self.render(turns, False))
        places = found.places(index, END, 0, len(found.text))
        return found.text[places[-1] if places else start :]

    def _agreed(self, index: int, closing: str, other: str, *, alone: str) -> int:
        """Behind the last special token that both have. One more where they part within a call: they end it by other
        tokens. `alone` is the one of the two that nothing follows."""
        found = [match.end() for match in self.special.finditer(closing)]
        same = common_prefix(closing, other)
        shared = sum(end <= same for end in found)
        if shared > 1 and alone[same:].strip() and self._always_asks(index):
            return found[shared - 2]  # the last one begins what asks for the next reply
        rest = found[shared] if shared < len(found) else len(closing)
        if not shared:
            return found[0] if found and same < len(alone) else same
        between = closing[found[shared - 1] : min(rest, same) if same == len(alone) else rest]
        if self._calls(index) and self.special.sub("", between).strip():
            return same if same == len(alone) else rest
        return found[shared - 1]

    def _always_asks(self, index: int) -> bool:
        return self.render(self.turns[:index], True) == self.render(self.turns[:index], False)

    def _calls(self, index: int) -> bool:
        return bool(self.turns[index].get("tool_calls"))

    def _thoughtless(self, index: int, start: int, bound: int) -> bool:
        content = self.turns[index].get("content") or ""
        thought = content.partition(THOUGHT)[0].rpartition(OPEN)[2].strip() if THOUGHT in content else ""
        return bool(thought) and thought not in self.whole.text[start:bound]

    # ---- marks ----

    def _marked(self, turns: Turns, text: str) -> Marked:
        """`text`, which the template makes of `turns`, with the places of its replies: all marks where they change
        nothing else, or those of the ends alone. (A template may look at how a content begins.)"""
        plane = next((each for each in PLANES if not re.search(f"[{chr(each)}-{chr(each + 0xFFFD)}]", text)), 0)
        for kinds in ((BEGIN, ANSWER, END), (END,)) if plane else ():
            written = [_mark(turn, plane + PER_TURN * index, kinds) for index, turn in enumerate(turns)]
            try:
                found = _read(self.render(written, False), plane)
            except DataError:
                continue
            if found.text == text:
                return found
        return Marked(text, {})


def _mark(turn: dict[str, Any], first: int, kinds: Sequence[int]) -> dict[str, Any]:
    """A reply with a character where it begins, where its answer begins behind a reasoning, and where it ends: within
    the spaces around, which a template may strip, and within the tags, which it may look for."""
    content = turn.get("content")
    if turn["role"] != "assistant" or not isinstance(content, str) or not content.strip():
        return turn
    end = len(content.rstrip())
    begun = re.match(rf"\s*(?:{OPEN}\s*)?", content)
    answer = content.rfind(THOUGHT) + len(THOUGHT)
    places = {BEGIN: min(begun.end() if begun else 0, end), END: end}
    if THOUGHT in content and answer < end:
        places[ANSWER] = answer + len(content[answer:]) - len(content[answer:].lstrip())
    parts, last = [], 0
    for kind, at in sorted(places.items(), key=lambda item: (item[1], item[0])):
        if kind in kinds:
            parts += [content[last:at], chr(first + kind)]
            last = at
    return {**turn, "content": "".join([*parts, content[last:]])}


def _read(text: str, plane: int) -> Marked:
    parts: list[str] = []
    marks: dict[int, list[tuple[int, int]]] = {}
    last, removed = 0, 0
    for match in re.finditer(f"[{chr(plane)}-{chr(plane + 0xFFFD)}]", text):
        turn, kind = divmod(ord(match[0]) - plane, PER_TURN)
        marks.setdefault(turn, []).append((kind, match.start() - removed))
        parts.append(text[last : match.start()])
        last, removed = match.end(), removed + 1
    return Marked("".join([*parts, text[last:]]), marks)


def common_prefix(a: str, b: str) -> int:
    """Length of the longest common beginning, by bisection: slices compare at memory speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
