"""Which columns of a table make an example, and one row of it as an example."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from limbeck.errors import DataError
from limbeck.text.chat_template import texts_within
from limbeck.text.content import spoken
from limbeck.text.encode import Example

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from limbeck.recipe import DatasetSource, FileSource

ROW_BYTES = 8 * 2**20
"""Most bytes of one row, or of one value of it."""

DEEPEST = 200
"""Levels of a value of Parquet, which has a schema, that are looked into."""

PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
"""Columns that are recognised as a pair, besides `text` and `messages`."""

RECOGNISED = "text, messages, " + ", ".join(f"{prompt} + {completion}" for prompt, completion in PAIRS)


@dataclass(frozen=True)
class Columns:
    """The columns of an example: `text`, or `prompt` with or without `completion`, or `messages`; its `topic`, and its
    `reference`: what a right answer is compared with."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    topic: str | None = None
    reference: str | None = None
    tools: str | None = None

    @classmethod
    def of(cls, source: FileSource | DatasetSource) -> Columns:
        """What the recipe names."""
        named = (source.text, source.prompt, source.completion, source.messages, source.topic, source.reference)
        return cls(*named, source.tools)

    @property
    def names(self) -> list[str]:
        named = (self.text, self.prompt, self.completion, self.messages, self.topic, self.reference, self.tools)
        return [name for name in named if name]

    def resolve(self, available: Collection[str], where: str) -> Columns:
        """The columns to read of those available: the named ones, or else those recognised by their names.

        Raises DataError, with the available columns, when a named one is missing or none or several are recognised.
        """
        listed = ", ".join(map(str, available)) or "none"
        missing = [name for name in self.names if name not in available]
        if missing:
            raise DataError(f"{where}: there is no column {missing[0]!r}; available are {listed}.")
        beside = self.tools or ("tools" if "tools" in available else None)
        if self.text or self.prompt or self.messages:
            return replace(self, tools=beside) if self.messages and beside else self
        found = [{"text": "text"}] if "text" in available else []
        found += [{"messages": "messages"}] if "messages" in available else []
        pairs = [{"prompt": a, "completion": b} for a, b in PAIRS if a in available and b in available]
        alone = [{"prompt": name} for name in ("prompt", "question") if name in available] if not pairs else []
        found += pairs or alone
        if len(found) != 1:
            several = " and ".join(" + ".join(one.values()) for one in found)
            problem = f"both {several} are recognised" if found else f"none of its columns is recognised ({RECOGNISED})"
            raise DataError(
                f"{where}: {problem}; available are {listed}. Name the column in data.source: text, prompt with "
                "completion, or messages."
            )
        tools = beside if "messages" in found[0] else self.tools
        return Columns(topic=self.topic, reference=self.reference, tools=tools, **found[0])

    def columnar(self, row: dict[str, Any], source: str) -> Example:
        """A row of a columnar file as an example, without the nulls that the file fills in. Raises as `example`."""
        nested = {name: without_nulls(row[name]) for name in (self.messages, self.tools) if name}
        return self.example({**row, **nested}, source)

    def example(self, row: Mapping[str, Any], source: str) -> Example:
        """One row as an example. Nulls are empty. Raises DataError when a value is of another type than it must be."""
        return Example(
            text=_text(row, self.text, source) or "" if self.text else None,
            prompt=_text(row, self.prompt, source) or "" if self.prompt else None,
            completion=_text(row, self.completion, source),
            messages=_messages(row[self.messages], self.messages, source) if self.messages else None,
            topic=_topic(row, self.topic, source),
            source=source,
            reference=_reference(row, self.reference, source),
            tools=_tools(row[self.tools], self.tools, source) if self.tools else (),
        )


def _text(row: Mapping[str, Any], column: str | None, source: str) -> str | None:
    value = row[column] if column else None
    if value is not None and not isinstance(value, str):
        turns = isinstance(value, list) and all(isinstance(one, dict) for one in value)
        advice = " Conversations stand in one column, prompt and reply together: data.source.messages." * turns
        raise DataError(f"{source}: column {column!r} holds {type(value).__name__}; it must hold text.{advice}")
    if value is not None:
        check_text(value, f"{source}: column {column!r}")
    return value


def check_text(value: str, where: str) -> None:
    """Raise DataError unless a text is within the budget and valid Unicode (JSON can smuggle half characters in)."""
    if len(value) > ROW_BYTES:
        raise DataError(f"{where} holds {len(value):,} characters; at most {ROW_BYTES:,} are allowed. Split the row.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} is not valid text: {error.reason} at character {error.start + 1}.") from error


def _topic(row: Mapping[str, Any], column: str | None, source: str) -> str:
    value = row[column] if column else None
    if value is None:
        return ""
    if not isinstance(value, str | int | float | bool):
        raise DataError(f"{source}: column {column!r} holds {type(value).__name__}; a topic must be text or a number.")
    check_text(str(value), f"{source}: column {column!r}")
    return str(value)


def _reference(row: Mapping[str, Any], column: str | None, source: str) -> str:
    """Text and numbers as they are, lists and maps (unit tests, schemas) as JSON."""
    value = row[column] if column else None
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    check_text(text, f"{source}: column {column!r}")
    return text


def _messages(value: Any, column: str, source: str) -> list[dict[str, Any]]:
    """A list of messages, from a list, from JSON in a text column, or from the dict of lists that `datasets` makes."""
    if isinstance(value, str):
        check_text(value, f"{source}: column {column!r}")
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: column {column!r} is not JSON: {error}.") from error
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        value = [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise DataError(f"{source}: column {column!r} must hold a list of messages, each with a role and a content.")
    _check_within(value, f"{source}: column {column!r}")
    if any("role" not in message and "from" in message for message in value):
        raise DataError(
            f"{source}: column {column!r} has turns with `from` and `value`; they must have `role` (system, user, "
            "assistant, tool) and `content`. Rename them."
        )
    return [_plain(message, source, column) for message in value]


def _plain(message: dict[str, Any], source: str, column: str) -> dict[str, Any]:
    """A turn whose content is a text: parts of text are joined."""
    if not isinstance(message.get("content"), list):
        return message
    try:
        return {**message, "content": spoken(message).text}
    except DataError as error:
        raise DataError(f"{source}: column {column!r}: {error}") from None


def _tools(value: Any, column: str, source: str) -> list[dict[str, Any]]:
    """Functions that the assistant may call, from a list or from JSON in a text column."""
    if isinstance(value, str):
        check_text(value, f"{source}: column {column!r}")
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: column {column!r} is not JSON: {error}.") from error
    if not isinstance(value or [], list) or not all(isinstance(tool, dict) for tool in value or []):
        raise DataError(f"{source}: column {column!r} must hold a list of functions, as JSON Schema describes them.")
    _check_within(value, f"{source}: column {column!r}")
    return value or []


def _check_within(value: Any, where: str) -> None:
    for text in texts_within(value):
        check_text(text, where)


def without_nulls(value: Any, depth: int = 0) -> Any:
    """Maps without what a columnar file fills in: it has one struct for all calls, so that each has the arguments of
    every other one, as nulls. A null that was meant cannot be told from those."""
    if isinstance(value, dict) and depth < DEEPEST:
        return {name: without_nulls(one, depth + 1) for name, one in value.items() if one is not None}
    return [without_nulls(one, depth + 1) for one in value] if isinstance(value, list) and depth < DEEPEST else value
