from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.capture.sse import assemble, events
from limbeck.errors import CaptureError
from tests.endpoint import fake_answers as up


def body(*values: object, end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(value)}\n\n" for value in values) + end


def part(delta: dict | None = None, index: int = 0, **more: object) -> dict:
    return {"model": "m", "choices": [{"index": index, "delta": delta or {}, "finish_reason": None, **more}]}


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)
def test_events_of_any_line_end(texts, end, commented):
    lines = [f"{': note' + end if commented else ''}event: x{end}data: {text}{end}{end}" for text in texts]
    assert list(events("".join(lines))) == texts


def test_events_of_several_lines_and_cut_ones():
    assert list(events("\ufeffdata: a\ndata:b\n\ndata: cut off")) == ["a\nb"]


@pytest.mark.parametrize("request_", [{"model": "m", "messages": []}, {"model": "m", "prompt": "x"}])
@pytest.mark.parametrize("more", [{}, {"n": 3}, {"logprobs": True}])
def test_a_stream_becomes_the_answer_that_it_is_cut_from(request_, more):
    asked = {**request_, **more}
    found = assemble(body(*up.chunks(asked, "some words in a row")))
    want = up.completion(asked, "some words in a row")
    assert found.finished and found.closed
    assert (found.answer["model"], found.answer["usage"]) == (want["model"], up.USAGE)
    for choice, wanted in zip(found.answer["choices"], want["choices"], strict=True):
        assert choice["finish_reason"] == "stop" and choice["index"] == wanted["index"]
        assert choice.get("text") == wanted.get("text")
        assert choice.get("message", {}).get("content") == wanted.get("message", {}).get("content")
        if more.get("logprobs"):
            assert {name: values for name, values in choice["logprobs"].items() if values} == {
                name: values for name, values in wanted["logprobs"].items() if values
            }


def test_tool_calls_reasoning_and_refusals():
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}
    found = assemble(
        body(
            part({"role": "assistant", "reasoning_content": "Two "}),
            part({"reasoning_content": "numbers."}),
            part({"content": None, "tool_calls": [call]}),
            part({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}),
            part({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}),
            part({"refusal": "No."}, index=1),
            part(finish_reason="tool_calls"),
            part(index=1, finish_reason="content_filter"),
        )
    )
    first, second = found.answer["choices"]
    assert first["message"]["reasoning_content"] == "Two numbers." and first["message"]["content"] is None
    assert first["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a":1}'}
    assert second["message"]["refusal"] == "No." and found.finished


def test_what_is_not_whole():
    assert not assemble(body(part({"content": "a"}))).finished  # no finish reason
    cut = assemble(body(part({"content": "a"}, finish_reason="stop"), end=""))
    assert cut.finished and not cut.closed
    assert not assemble(body(part({"content": "a"}, finish_reason="stop"), {"error": {"message": "x"}})).finished


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data: [DONE]\n\n",
        "data: {\n\n",
        body({"choices": []}),
        body({"choices": [1]}),
        body({"choices": [{"index": "a"}]}),
        body(part({"tool_calls": [1]})),
    ],
)
def test_what_is_no_stream_of_completions(text):
    with pytest.raises(CaptureError):
        assemble(text)
