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
    ended = part({"content": "a"}, finish_reason="stop")
    for end, whole in ((b"", True), (b"data: [DONE]\n\n", True), (b"data: [DONE]", True)):  # some leave [DONE] out
        assert assemble(body(ended, end=end)).is_whole(ended_well=True) is whole
    assert not assemble(body(ended, end=b"")).is_whole(ended_well=False)
    assert not assemble(body(ended, {"error": {"message": "x"}})).is_whole(ended_well=True)
    no_reason = part({"content": "a"})
    assert assemble(body(no_reason)).is_whole(ended_well=False)  # it says that it is over
    assert not assemble(body(no_reason, end=b"")).is_whole(ended_well=True)


def message(*deltas: dict) -> dict:
    return assemble(body(*map(part, deltas))).answer["choices"][0]["message"]


def called(*pieces: dict) -> list[tuple]:
    calls = message(*({"tool_calls": [piece]} for piece in pieces))["tool_calls"]
    return [(one["index"], one["function"]["name"], one["function"]["arguments"]) for one in calls]


def call(name: str | None = None, arguments: object = None, **more: object) -> dict:
    return {**more, "function": {"name": name, "arguments": arguments}}


def test_calls_without_an_index_or_with_the_same_one_are_told_apart():
    two = [(0, "f", '{"a": 1}'), (1, "g", "{}")]
    assert called(call("f", '{"a": 1}'), call("g", "{}")) == two
    assert called(call("f", '{"a"'), call(None, ": 1}"), call("g", "{}")) == two
    assert called(call("f", '{"a": 1}', index=0, id="x"), call("g", "{}", index=0, id="y")) == two
    assert called(call("f", '{"a"', id="x"), call("f", ": 1}", id="x"), call("g", "{}", id="y")) == two
    assert called(call("f", {"a": 1}, index=0), call("g", {}, index=1)) == two  # arguments as an object
    assert called(call("f", '{"a"', index=0), call("g", "{}", index=1), call(None, ": 1}", index=0)) == two
    old = message({"function_call": {"name": "f", "arguments": '{"a"'}}, {"function_call": {"arguments": ": 1}"}})
    assert old["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_contents_in_parts_and_reasoning_under_other_names():
    thinking = {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "h"}]}]}
    found = message(thinking, {"content": [{"type": "text", "text": "a "}]}, {"content": "bird"}, {"reasoning": "m"})
    assert (found["content"], found["reasoning_content"]) == ("a bird", "hm")
    whole = assemble(body({"choices": [{"message": {"content": "all"}, "finish_reason": "stop"}]}))
    assert whole.answer["choices"][0]["message"]["content"] == "all"


def test_a_last_event_without_its_blank_line_is_read_and_half_of_one_is_not():
    head = event(part({"content": "a"}))
    last = event(part({"content": "b"}, finish_reason="stop")).rstrip()
    for end, text in ((last, "ab"), (last[:-9], "a")):
        assert assemble(head + end).answer["choices"][0]["message"]["content"] == text


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
