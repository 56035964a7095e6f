from __future__ import annotations

from typing import Any

import pytest

from limbeck.data import columns as module
from limbeck.data.columns import Columns
from limbeck.errors import DataError
from limbeck.recipe import FileSource


@pytest.mark.parametrize(
    ("available", "found"),
    [
        (["id", "text"], Columns(text="text")),
        (["prompt", "completion", "x"], Columns(prompt="prompt", completion="completion")),
        (["question", "answer"], Columns(prompt="question", completion="answer")),
        (["prompt", "response"], Columns(prompt="prompt", completion="response")),
        (["messages", "prompt_id"], Columns(messages="messages")),
        (["prompt"], Columns(prompt="prompt")),
        (["question", "id"], Columns(prompt="question")),
    ],
)
def test_columns_are_recognised_by_name(available: list[str], found: Columns) -> None:
    assert Columns().resolve(available, "f") == found


@pytest.mark.parametrize(
    ("named", "available", "message"),
    [
        (Columns(text="body"), ["text", "id"], r"f: there is no column 'body'; available are text, id\."),
        (Columns(prompt="q", completion="a"), ["q"], "there is no column 'a'; available are q"),
        (Columns(topic="kind"), ["text"], "there is no column 'kind'"),
        (Columns(), ["title", "body"], r"none of its columns is recognised .*available are title, body.*data\.source"),
        (Columns(), [], "available are none"),
        (Columns(), ["text", "messages"], "both text and messages are recognised"),
        (
            Columns(),
            ["prompt", "completion", "question", "answer"],
            "both prompt \\+ completion and question \\+ answer",
        ),
    ],
)
def test_columns_that_are_missing_or_not_clear(named: Columns, available: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        named.resolve(available, "f")


def test_named_columns_win_over_recognised_ones() -> None:
    named = Columns.of(FileSource(path="x", text="body", topic="kind"))
    assert named.resolve(["text", "body", "kind"], "f") is named


def example(columns: Columns, **row: Any) -> Any:
    return columns.example(row, "f:3")


def test_values_become_an_example() -> None:
    found = example(Columns(text="text", topic="kind"), text="é", kind=3)
    assert (found.text, found.topic, found.source, found.prompt, found.messages) == ("é", "3", "f:3", None, None)
    found = example(Columns(prompt="p", completion="c"), p="a", c="b")
    assert (found.text, found.prompt, found.completion, found.topic) == (None, "a", "b", "")


def test_nulls_are_empty() -> None:
    assert example(Columns(text="text", topic="kind"), text=None, kind=None).text == ""
    assert example(Columns(prompt="p", completion="c"), p="a", c=None).completion is None
    assert example(Columns(messages="m"), m=None).messages == []


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "value",
    [
        TURNS,
        '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
        {"role": ["user", "assistant"], "content": ["a", "b"]},
    ],
)
def test_messages_in_the_forms_they_come_in(value: Any) -> None:
    assert example(Columns(messages="m"), m=value).messages == TURNS


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 5}, "f:3: column 'text' holds int; it must hold text"),
        ({"text": ["a"]}, "holds list"),
        ({"text": "a\ud800"}, "column 'text' is not valid text: surrogates not allowed at character 2"),
        ({"m": "[{"}, "column 'm' is not JSON"),
        ({"m": "[" * 100_000}, "column 'm' is not JSON"),
        ({"m": 5}, "column 'm' must hold a list of messages"),
        ({"m": ["hello"]}, "column 'm' must hold a list of messages"),
        ({"m": [{"role": "user", "content": "\udfff"}]}, "column 'm' is not valid text"),
        ({"kind": [1], "text": "a"}, "column 'kind' holds list; a topic must be text or a number"),
    ],
)
def test_values_of_the_wrong_type(row: dict[str, Any], message: str) -> None:
    columns = Columns(text="text") if "text" in row else Columns(messages="m")
    columns = Columns(text="text", topic="kind") if "kind" in row else columns
    with pytest.raises(DataError, match=message):
        columns.example(row, "f:3")


def test_huge_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROW_BYTES", 10)
    with pytest.raises(DataError, match="column 'text' holds 11 characters; at most 10 are allowed"):
        example(Columns(text="text"), text="x" * 11)
