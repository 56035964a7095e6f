"""Answers as they really are: each shape of a provider is read right, or told by its own name; no bytes end in a
traceback."""

import asyncio
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.endpoint.client import open_endpoint
from limbeck.endpoint.given import read_given
from limbeck.endpoint.messages import ApiReply, ApiRequest, answer_from_json, answer_to_json
from limbeck.endpoint.parse import NEVER, Malformed, parse, read_answer, read_usage
from limbeck.endpoint.status import RequestRejected, RetryLater, judge
from limbeck.errors import LimbeckError, TeacherError
from limbeck.recipe import OpenAITeacher
from limbeck.types import Sampling
from tests.endpoint.fake_answers import as_json
from tests.endpoint.fake_server import FakeServer
from tests.endpoint.provider_shapes import SHAPES, Shape

USER = ({"role": "user", "content": "Name a bird."},)


@pytest.fixture(scope="module")
def server():
    with FakeServer() as server:
        yield server


def asked(server: FakeServer, shape: Shape) -> ApiReply | RetryLater | RequestRejected | TeacherError:
    server.script = lambda seen: as_json(json.dumps(shape.body).encode(), f"{shape.status} X")
    ask = ApiRequest(USER, sampling=Sampling(max_tokens=32), logprobs=shape.logprobs)

    async def go():
        async with open_endpoint(OpenAITeacher(base_url=server.url, model="m", api_key_env=None)) as endpoint:
            return await endpoint.ask(ask)

    try:
        return asyncio.run(go())
    except TeacherError as error:
        return error


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_shape_is_read_right_or_told_by_its_own_name(server, shape):
    found = asked(server, shape)
    if isinstance(shape.read, str):
        assert not isinstance(found, ApiReply) and shape.read in f"{found}", found
        return
    assert isinstance(found, ApiReply), found
    (choice,) = found.choices
    counts = found.prompt_tokens, found.completion_tokens
    assert (choice.text, choice.reasoning, choice.finish_reason, *counts) == shape.read
    assert bool(choice.tokens) == (shape.logprobs > 0)
    for token in choice.tokens or ():
        assert NEVER <= token.logp <= 0 and [one.logp for one in token.top if one.text == "zz"] in ([], [NEVER])
    assert answer_from_json(json.loads(json.dumps(answer_to_json(found)))) == found


def test_there_are_shapes_of_fifteen_providers():
    names = {shape.name.partition(",")[0] for shape in SHAPES}
    assert names >= {
        *("OpenAI", "Azure", "Mistral", "DeepSeek", "Gemini", "Groq", "Together", "Fireworks", "OpenRouter", "vLLM"),
        *("SGLang", "llama.cpp", "Ollama", "LM Studio", "Perplexity"),
    }


def test_choices_without_numbers_or_all_with_the_same_keep_their_order():
    for index in ({}, {"index": 0}, {"index": None}, {"index": 1.0}):
        choices = [{**index, "message": {"content": str(n)}, "finish_reason": "stop"} for n in range(3)]
        found = read_answer({"choices": choices}, ApiRequest(USER, sampling=Sampling(n=3)), 0.0)
        assert [choice.text for choice in found.choices] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": "10", "completion_tokens": 4.2}, (10, 5)),
        ({"prompt_tokens": -1, "completion_tokens": True}, (None, None)),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("inf"), "total_tokens": 9}, (None, None)),
        ({"prompt_tokens": 10, "total_tokens": 25}, (10, 15)),
        ({"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 12}, (10, 7)),
        ("many", (None, None)),
        ([], (None, None)),
    ],
)
def test_counts_of_any_kind(usage, counts):
    assert read_usage(usage) == counts


# ---- bytes that nobody would send ------------------------------------------------------------------------------------


KEYS = [
    *(
        "choices",
        "message",
        "content",
        "finish_reason",
        "logprobs",
        "top_logprobs",
        "token",
        "logprob",
        "bytes",
        "tokens",
    ),
    *("token_logprobs", "token_ids", "prompt_logprobs", "text", "type", "thinking", "refusal", "tool_calls", "usage"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "completion_tokens_details", "reasoning_tokens", "index"),
    *("model", "error", "code", "innererror", "metadata", "base_resp", "status_code", "object", "reasoning_content"),
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["stop", "text", *KEYS])
)


def containers(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)


VALUES = st.recursive(LEAVES, containers, max_leaves=30)
CHOICES = st.fixed_dictionaries(
    {"choices": st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), max_size=2)},
    optional={"usage": VALUES},
)
ASKS = st.builds(
    lambda chat, n, logprobs: ApiRequest(USER if chat else (), None if chat else "x", Sampling(n=n), logprobs),
    st.booleans(), st.integers(1, 2), st.integers(0, 2),
)  # fmt: skip


@given(VALUES | CHOICES, ASKS)
def test_any_value_is_an_answer_or_malformed(value, ask):
    try:
        found = read_answer(value, ask, 0.0)
    except Malformed:
        return
    assert answer_from_json(json.loads(json.dumps(answer_to_json(found)))) == found


@given(VALUES | CHOICES, st.booleans())
def test_any_value_is_a_score_or_malformed(value, echo):
    with contextlib.suppress(Malformed):
        read_given(value, ApiRequest(given=(3, 4), logprobs=1, echo=echo), 0.0)


@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_parsed_or_malformed(body):
    with contextlib.suppress(Malformed):
        parse(body)


HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "location"]), st.text(max_size=12) | st.floats().map(str)
)


@given(st.integers(300, 599), HEADERS, st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_refusal_is_understood_or_an_error_of_ours(status, headers, body):
    try:
        found = judge(status, headers, body, "m at x")
    except LimbeckError:
        return
    assert found.reason and (not isinstance(found, RetryLater) or found.after is None or found.after >= 0)


def test_any_body_through_the_whole_client():
    """The bytes of a response, through HTTP: truncated, of no type, of another one, deep."""
    bodies = [
        *(b"", b"\xff\xfe", b"[" * 90_000, b'{"error": null}', b"\xef\xbb\xbf{}", b"null", b"NaN", b'"\\ud800"'),
        *(b'{"choices": [{"message": {"content": ' + b"9" * 5000 + b"}}]}", b'{"choices": [{"index": 1e999}]}'),
    ]
    for body in bodies:
        with FakeServer(as_json(body)) as server:
            settings = OpenAITeacher(base_url=server.url, model="m", api_key_env=None)

            async def go(settings=settings):
                async with open_endpoint(settings) as endpoint:
                    return await endpoint.ask(ApiRequest(USER))

            assert isinstance(asyncio.run(go()), RetryLater)
