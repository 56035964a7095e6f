"""Captured exchanges as examples."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data import count_rows, read_examples, source_files
from limbeck.errors import DataError
from limbeck.recipe import CapturedSource
from limbeck.recipe.rules.check import check_static
from limbeck.system.sealed import sealed_line
from tests.recipes import tiny_recipe

USER = {"role": "user", "content": "Hi"}


def exchange(reply: Any = "Hello", messages: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    return {
        **{"version": 1, "id": "r", "time": "2026-01-02T00:00:00.000+00:00", "model": "big-1", "model_asked": "big"},
        **{"tags": {}, "messages": [USER] if messages is None else messages},
        "replies": [{"index": 0, "content": reply, "finish_reason": "stop"}],
        **more,
    }


@pytest.fixture
def capture(tmp_path: Path):
    def write(*exchanges: dict[str, Any], tail: bytes = b"") -> str:
        number = len(list(tmp_path.glob("capture-*")))
        lines = b"".join(json.dumps(one).encode() + b"\n" for one in exchanges)
        (tmp_path / f"capture-{number:05d}.jsonl").write_bytes(lines + tail)
        (tmp_path / ".lock").touch()
        return str(tmp_path)

    return write


def read(path: str, told: list[str] | None = None, **source: Any) -> list[Any]:
    how = "stop" if told is None else "skip"
    on_bad = (told if told is not None else []).append
    return list(read_examples(CapturedSource(path=path, **source), bad_rows=how, on_bad=on_bad))


def texts(path: str, **source: Any) -> list[str]:
    return [example.messages[-1]["content"] for example in read(path, **source)]


def test_an_exchange_is_a_conversation(capture):
    folder = capture(exchange(tags={"topic": "greeting"}))
    (example,) = read(folder, topic="topic")
    assert example.messages == [USER, {"role": "assistant", "content": "Hello"}]
    assert (example.topic, example.truth) == ("greeting", "Hello")
    assert example.source.endswith("capture-00000.jsonl:1")
    source = CapturedSource(path=folder)
    assert [file.name for file in source_files(source)] == ["capture-00000.jsonl"] and count_rows(source) == 1


def test_half_a_last_line_is_nothing_and_a_damaged_one_is_told(capture):
    folder = capture(exchange("a"), tail=b'{"version": 1, "id"')
    capture(exchange("b"), tail=b"not json\n" + json.dumps(exchange("c")).encode() + b"\n")
    told: list[str] = []
    assert [example.messages[-1]["content"] for example in read(folder, told)] == ["a", "b", "c"]
    assert len(told) == 1 and "capture-00001.jsonl:2: the line is damaged" in told[0]
    with pytest.raises(DataError, match="data.bad_rows=skip"):
        read(folder)


def test_no_damage_becomes_other_text(capture, tmp_path):
    """Every byte of a recorded line, with one bit changed: the exchange is as it was recorded, or it is told."""
    said = ["before", "the answer is 42", "behind"]
    folder = capture(*map(exchange, said))
    file = tmp_path / "capture-00000.jsonl"
    written = b"".join(sealed_line(json.loads(line)) for line in file.read_bytes().splitlines())
    for at in range(len(written)):
        file.write_bytes(written[:at] + bytes([written[at] ^ (1 << at % 8)]) + written[at + 1 :])
        told: list[str] = []
        found = [example.messages[-1]["content"] for example in read(folder, told)]
        assert found == said or (told and set(found) < set(said))


def test_segments_are_read_in_the_order_of_their_numbers(capture, tmp_path):
    folder = capture(exchange("second"))
    (tmp_path / "capture-00000.jsonl").rename(tmp_path / "capture-100000.jsonl")
    (tmp_path / "capture-99999.jsonl").write_text(json.dumps(exchange("first")) + "\n")
    (tmp_path / "capture-notes.jsonl").write_text("not of a capture")
    assert texts(folder) == ["first", "second"]


def test_several_models_must_be_named(capture):
    small = {"model": "small-1", "model_asked": "small"}
    folder = capture(exchange("a"), exchange("b"), exchange("c", **small))
    with pytest.raises(DataError, match=r"several models: big-1 \(2\), small-1 \(1\).*data.source.models"):
        read(folder)
    assert texts(folder, models=("big",)) == ["a", "b"]
    assert texts(folder, models=("small-1",)) == ["c"]
    assert texts(folder, models=("big", "small")) == ["a", "b", "c"]
    assert texts(folder, exclude_models=("small",)) == ["a", "b"]


def test_filters(capture):
    folder = capture(
        exchange("old", time="2026-01-01T00:00:00+00:00", tags={"app": "x", "user": "1"}),
        exchange("new", time="2026-01-03T00:00:00+00:00", tags={"app": "y"}),
        exchange("cut", replies=[{"index": 0, "content": "cut", "finish_reason": "cut"}]),
        exchange("long", replies=[{"index": 0, "content": "long", "finish_reason": "length"}]),
    )
    assert texts(folder) == ["old", "new"]
    assert texts(folder, tags=("app=x", "user=1")) == ["old"]
    assert texts(folder, since="2026-01-02") == ["new"]
    assert texts(folder, until="2026-01-02T01:00+02:00") == ["old"]
    assert texts(folder, finish_reasons=("cut", "length")) == ["cut", "long"]
    with pytest.raises(DataError, match="holds no reply that data.source asks for"):
        read(folder, tags=("app=z",))


def test_each_turn_is_learnt_once(capture):
    """The second exchange repeats the first one with its reply: the longer conversation is kept. Another reply to the
    same question is not repeated, and stays."""
    longer = [USER, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "And?"}]
    folder = capture(exchange(), exchange("Bye", longer), exchange("Good day"))
    assert texts(folder) == ["Bye", "Good day"]


def test_several_replies_and_reasoning(capture):
    replies = [{"index": n, "content": f"r{n}", "finish_reason": "stop", "reasoning_content": "Hm."} for n in range(2)]
    folder = capture(exchange(replies=replies))
    assert texts(folder) == ["r0", "r1"]
    assert texts(folder, reasoning="think") == ["<think>\nHm.\n</think>\n\nr0", "<think>\nHm.\n</think>\n\nr1"]
    assert read(folder)[1].source.endswith(":1, reply 1")


def test_plain_completions(capture):
    several = [{"index": n, "content": f"r{n}", "finish_reason": "stop"} for n in range(4)]
    folder = capture(
        {**exchange(" b"), "messages": None, "prompt": "a"},
        {**exchange(replies=several), "messages": None, "prompt": ["p", "q"]},
        {**exchange(" c"), "messages": None, "prompt": [1, 2, 3]},
    )
    told: list[str] = []
    found = [(example.prompt, example.completion) for example in read(folder, told)]
    assert found == [("a", " b"), ("p", "r0"), ("p", "r1"), ("q", "r2"), ("q", "r3")]
    assert "the prompt is token ids" in told[0]


def test_what_is_no_text(capture):
    parts = [{"type": "text", "text": "See"}, {"type": "text", "text": "this"}]
    picture = [{"role": "user", "content": [*parts, {"type": "image_url", "image_url": {"url": "x"}}]}]
    folder = capture(
        exchange("a", [{"role": "developer", "content": "Be kind"}, {"role": "user", "content": parts}]),
        exchange("b", picture),
        exchange(None),
    )
    told: list[str] = []
    (example,) = read(folder, told)
    assert example.messages[:2] == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "See\nthis"},
    ]
    assert "something else than text" in told[0] and "the reply has no text" in told[1]


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="there is no capture at"):
        read(str(tmp_path / "none"))
    (tmp_path / "capture-00000.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no reply"):
        read(str(tmp_path))


def test_a_newer_version_is_not_guessed_at(capture):
    with pytest.raises(DataError, match="is of version 2; this Limbeck reads 1"):
        read(capture(exchange(version=2), exchange()))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["models=[a]", "exclude_models=[a]"], "which `models` asks for"),
        (["tags=[app]"], "each must be NAME=VALUE"),
        (["since=yesterday"], "must be a time"),
        (["since=2026-01-02", "until=2026-01-01"], "not after `since`"),
    ],
)
def test_rules(keys, message):
    overrides = ["data.source.kind=captured", "data.source.path=traffic", *(f"data.source.{key}" for key in keys)]
    (found,) = check_static(tiny_recipe(*overrides))
    assert message in found.message


def test_a_sound_recipe():
    assert not check_static(tiny_recipe("data.source.kind=captured", "data.source.path=t", "data.source.topic=app"))


# ---- other words -----------------------------------------------------------------------------------------------------


def test_reasons_in_other_words_and_none_at_all(capture):
    ends = {"a": "eos", "b": "END_TURN", "c": "MAX_TOKENS", "d": None, "e": "stop"}
    folder = capture(
        *(exchange(n, replies=[{"index": 0, "content": n, "finish_reason": end}]) for n, end in ends.items())
    )
    assert texts(folder) == ["a", "b", "e"]
    assert texts(folder, finish_reasons=("length",)) == ["c"] and texts(folder, finish_reasons=("unknown",)) == ["d"]


def test_a_refusal_is_learnt_only_where_it_is_asked_for_and_ends_nothing(capture):
    refused = {"index": 0, "content": None, "refusal": "I will not", "finish_reason": "stop"}
    folder = capture(exchange(), exchange(replies=[refused]))
    assert texts(folder) == ["Hello"]
    assert texts(folder, finish_reasons=("stop", "refusal")) == ["Hello", "I will not"]


def test_parts_of_a_recorded_reply(capture):
    parts = [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "a bird"}]
    folder = capture(exchange(replies=[{"index": 0, "content": parts, "finish_reason": "stop"}]))
    assert texts(folder) == ["a bird"]
    assert texts(folder, reasoning="think") == ["<think>\nhm\n</think>\n\na bird"]


def call(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": "{}"}, **more}


def test_a_turn_that_comes_back_in_another_form_is_the_same_turn(capture):
    """A client sends a reply back in parts, and calls without the numbers of a stream; other calls are other turns."""
    said = [USER, {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}, USER]
    folder = capture(exchange(), exchange("Again", said))
    assert texts(folder) == ["Again"]
    first = {"index": 0, "content": None, "tool_calls": [call("f", index=0)], "finish_reason": "stop"}
    second = {"index": 0, "content": None, "tool_calls": [call("g", index=0)], "finish_reason": "stop"}
    back = [USER, {"role": "assistant", "content": "", "tool_calls": [call("f")]}, {"role": "tool", "content": "1"}]
    folder = capture(*(exchange(replies=[one]) for one in (first, second)), exchange("Done", back))
    calls = [example.messages[-1].get("tool_calls") for example in read(folder)]
    assert [one[0]["function"]["name"] for one in calls if one] == ["g"]


KEYS = ["replies", "content", "tags", "finish_reason", "messages", "role", "index"]
LEAVES = st.none() | st.booleans() | st.integers(-1, 2) | st.text(max_size=3)


def containers(inner: Any) -> Any:
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner)


@given(st.recursive(LEAVES, containers, max_leaves=12))
def test_any_line_is_an_example_or_told(value):
    with tempfile.TemporaryDirectory() as folder:
        for one in (value, exchange(replies=value), exchange(messages=value), exchange(value), exchange(tags=value)):
            line = json.dumps(one).encode() + b"\n" + json.dumps(exchange("good")).encode() + b"\n"
            (Path(folder) / "capture-00000.jsonl").write_bytes(line)
            try:
                read(folder, told=[])
            except DataError:
                continue
