from __future__ import annotations

import pytest

from limbeck.capture.assemble import assemble
from limbeck.errors import CaptureError
from limbeck.system.sse import event
from tests.endpoint import fake_answers as up


def body(*values: object, end: bytes = b"data: [DONE]\n\n") -> bytes:
    return b"".join(map(event, values)) + end


def part(delta: dict | None = None, index: int = 0, **more: object) -> dict:
    return {"model": "m", "choices": [{"index": index, "delta": delta or {}, "finish_reason": None, **more}]}


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
    cut = assemble(body(part({"content": "a"}, finish_reason="stop"), end=b""))
    assert cut.finished and not cut.closed
    assert not assemble(body(part({"content": "a"}, finish_reason="stop"), {"error": {"message": "x"}})).finished


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"data: [DONE]\n\n",
        b"data: {\n\n",
        body({"choices": []}),
        body({"choices": [1]}),
        body({"choices": [{"index": "a"}]}),
        body(part({"tool_calls": [1]})),
    ],
)
def test_what_is_no_stream_of_completions(sent):
    with pytest.raises(CaptureError):
        assemble(sent)
