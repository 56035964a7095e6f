"""Records of exchanges in whatever words a server answers; and bytes that nobody would send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.capture.assemble import assemble
from limbeck.capture.exchange import Frame, record_of
from limbeck.errors import CaptureError
from limbeck.system.jsonl import compact_line
from limbeck.system.sse import event
from limbeck.text.redact import make_redactor

META = {
    **{"id": "1", "time": 0.0, "conversation": "", "path": "/v1/chat/completions", "request-encoding": ""},
    **{"content-encoding": "", "content-type": "application/json", "whole": True, "first_byte": 0.0, "seconds": 0.0},
    **{"tags": {}, "secrets": []},
}
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Can I put anything in?"}]}


def recorded(answer: Any, asked: Any = ASKED, **meta: Any) -> dict[str, Any]:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return record_of(Frame(META | meta, json.dumps(asked).encode(), body), make_redactor(("none",)), {})


def answer(message: dict[str, Any] | None = None, finish: Any = "stop", **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "choices": [{"index": 0, "message": message or {"content": "a"}, "finish_reason": finish, **more}],
    }


def reply(*args: Any, **more: Any) -> dict[str, Any]:
    return recorded(answer(*args, **more))["replies"][0]


@pytest.mark.parametrize(
    ("told", "kept"),
    [("eos", "stop"), ("MAX_TOKENS", "length"), (None, "unknown"), ("", "unknown"), ("tea", "tea"), ("error", "cut")],
)
def test_reasons_are_kept_in_our_words(told, kept):
    assert recorded(answer(finish=told))["finish_reasons"] == [kept]


def test_a_stream_that_says_it_is_over_is_not_cut():
    chunk = {"model": "m", "choices": [{"index": 0, "delta": {"content": "all of it"}}]}
    for end, kept in ((b"data: [DONE]\n\n", "unknown"), (b"", "cut")):
        found = recorded(event(chunk) + end, **{"content-type": "text/event-stream"})
        assert found["finish_reasons"] == [kept] and found["replies"][0]["content"] == "all of it"


def test_contents_in_other_forms():
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a bird"}]
    found = reply({"content": parts})
    assert (found["content"], found["reasoning_content"]) == ("a bird", "hm")
    found = reply({"content": None, "refusal": "No."})
    assert (found["content"], found["refusal"], found["finish_reason"]) == (None, "No.", "refusal")
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 999}}
    assert (
        "sha256=" in json.dumps(reply({"content": [picture]})) and len(json.dumps(reply({"content": [picture]}))) < 999
    )


def test_numbers_that_json_does_not_have_are_null():
    logprobs = {
        "content": [{"token": "a", "logprob": float("-inf"), "top_logprobs": [{"token": "b", "logprob": float("nan")}]}]
    }
    line = compact_line(recorded(answer(logprobs=logprobs)))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    token = json.loads(line, parse_constant=refuse)["replies"][0]["logprobs"]["content"][0]
    assert token["logprob"] is None and token["top_logprobs"][0]["logprob"] is None


def test_a_key_that_is_a_word_is_left_in_texts_and_a_real_one_is_not():
    found = recorded(
        answer({"content": "anything, but not k3y-of-mine"}), secrets=["Bearer anything", "anything", "k3y-of-mine"]
    )
    assert found["replies"][0]["content"] == "anything, but not [key]"
    assert found["messages"][0]["content"] == ASKED["messages"][0]["content"]


# ---- bytes that nobody would send ------------------------------------------------------------------------------------


KEYS = [
    *(
        "choices",
        "message",
        "delta",
        "content",
        "finish_reason",
        "logprobs",
        "tool_calls",
        "function",
        "index",
        "usage",
    ),
    *("type", "text", "tokens", "arguments", "name", "id", "model", "error", "messages", "prompt", "reasoning"),
]
LEAVES = st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.sampled_from([*KEYS, "", "stop"])


def containers(inner: Any) -> Any:
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)


VALUES = st.recursive(LEAVES, containers, max_leaves=25)
CHOICES = st.fixed_dictionaries(
    {"choices": st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), max_size=2)}
)


def only_capture_errors(work: Any) -> Any:
    try:
        return work()
    except CaptureError:
        return None


@given(VALUES | CHOICES, VALUES, st.booleans())
def test_any_exchange_is_a_record_or_an_error_of_ours(found, asked, whole):
    record = only_capture_errors(lambda: recorded(found, asked, whole=whole))
    record2 = only_capture_errors(lambda: recorded(found, whole=whole))
    for one in (record, record2):
        if one is not None:
            json.loads(compact_line(one))


@given(st.lists(CHOICES | VALUES, max_size=4), st.binary(max_size=20), st.integers(0, 400))
def test_any_stream_is_an_answer_or_an_error_of_ours(chunks, noise, cut):
    whole = b"".join(event(chunk) for chunk in chunks if isinstance(chunk, dict))
    for body in (whole, whole[:cut], whole + noise, noise + whole, noise):
        only_capture_errors(lambda body=body: assemble(body))
        only_capture_errors(lambda body=body: recorded(body, **{"content-type": "text/event-stream"}))


@pytest.mark.parametrize(
    "deep",
    [
        b"[" * 100_000,
        b'{"choices":' * 50_000,
        b'{"choices":[{"logprobs":{"content":' + b"[" * 5000 + b"]" * 5000 + b"}}]}",
    ],
)
def test_depth_is_an_error_of_ours(deep):
    only_capture_errors(lambda: recorded(deep))
    only_capture_errors(lambda: assemble(b"data: " + deep + b"\n\n"))
