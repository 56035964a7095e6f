"""The API as the official client and plain HTTP see it, in front of real tiny models."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest
import torch

from limbeck.errors import EngineError
from limbeck.models.open import open_lm
from limbeck.types import Sampling
from tests.serve.conftest import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.serve.conftest import Running

SAID = [{"role": "user", "content": "Read me note 1."}]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def lm(tiny_llama):
    return open_lm(tiny_llama, dtype="float32")


def ids_of(lm: Any, text: str) -> np.ndarray:
    return np.asarray(lm.tokenizer(text)["input_ids"], dtype=np.int32)


def chat_ids(lm: Any) -> np.ndarray:
    return ids_of(lm, lm.tokenizer.apply_chat_template(SAID, tokenize=False, add_generation_prompt=True))


# ---- models ----------------------------------------------------------------------------------------------------------


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["code", "weather"]
    found = client.models.retrieve("code")
    assert found.owned_by == "limbeck" and found.created == 1795600800
    assert client.models.retrieve("code@1.0.0").id == "code@1.0.0"


@pytest.mark.parametrize("name", ["nobody", "auto", "code@9.9.9", "../code", "..%2f..%2fetc%2fpasswd", "code/1.0.0"])
def test_an_unknown_model_is_not_found(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve(name)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=name, messages=SAID)  # type: ignore[arg-type]
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


# ---- chat ------------------------------------------------------------------------------------------------------------


def test_a_greedy_chat_says_what_the_model_says(client: openai.OpenAI, lm: Any) -> None:
    want = lm.generate([chat_ids(lm)], Sampling(temperature=0.0, max_tokens=8))[0][0]
    found = client.chat.completions.create(model="code", messages=SAID, temperature=0, max_tokens=8)  # type: ignore[arg-type]
    choice = found.choices[0]
    assert choice.message.role == "assistant" and choice.message.content == want.text
    assert choice.finish_reason == want.finish_reason and choice.logprobs is None
    assert found.usage is not None and found.usage.prompt_tokens == len(chat_ids(lm))
    assert found.usage.completion_tokens == len(want.ids)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.model == "code" and found.object == "chat.completion" and found.system_fingerprint == lm.fingerprint
    assert found.model_extra["limbeck"] == {  # type: ignore[index]
        "expert": "code@1.0.0", "route": "pinned", "confidence": None, "reason": "asked for by name"
    }  # fmt: skip


def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI) -> None:
    told: dict[str, Any] = {"model": "code", "messages": SAID, "temperature": 0, "max_tokens": 8}
    whole = client.chat.completions.create(**told)
    chunks = list(client.chat.completions.create(**told, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert chunks[0].model_extra["limbeck"]["route"] == "pinned"  # type: ignore[index]
    assert "".join(one.choices[0].delta.content or "" for one in chunks[:-1]) == whole.choices[0].message.content
    assert [one.choices[0].finish_reason for one in chunks[:-1]][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(one.usage is None for one in chunks[:-1]) and len({one.id for one in chunks}) == 1


def test_events_are_framed_and_end_with_done(server: Running) -> None:
    found = server.chat(stream=True)
    assert found.headers["content-type"].startswith("text/event-stream")
    assert found.headers["x-limbeck-expert"] == "code@1.0.0" and found.headers["cache-control"] == "no-store"
    events = found.text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "usage" not in pieces[0] and pieces[-1]["choices"][0] == {
        "index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"
    }  # fmt: skip


def test_logprobs_are_the_models_own(client: openai.OpenAI, lm: Any) -> None:
    told: dict[str, Any] = {"model": "code", "messages": SAID, "max_tokens": 6, "seed": 3, "temperature": 1.3}
    found = client.chat.completions.create(**told, logprobs=True, top_logprobs=5)
    content = found.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None and len(content) == 6
    text = b"".join(bytes(one.bytes or []) for one in content).decode("utf-8", "replace")
    assert text == found.choices[0].message.content
    with torch.no_grad():
        logp_TV = lm.model(torch.tensor([chat_ids(lm).tolist()])).logits[0, -1].log_softmax(-1)
    best = logp_TV.topk(5)
    np.testing.assert_allclose([one.logprob for one in content[0].top_logprobs], best.values.numpy(), atol=1e-4)
    assert content[0].bytes is not None
    streamed = list(client.chat.completions.create(**told, logprobs=True, top_logprobs=5, stream=True))
    again = [one for chunk in streamed if chunk.choices and chunk.choices[0].logprobs
             for one in chunk.choices[0].logprobs.content or []]  # fmt: skip
    assert [one.token for one in again] == [one.token for one in content]
    np.testing.assert_allclose([one.logprob for one in again], [one.logprob for one in content], atol=1e-4)


def test_log_probs_without_alternatives(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="code", messages=SAID, max_tokens=3, logprobs=True)  # type: ignore[arg-type]
    assert [one.top_logprobs for one in found.choices[0].logprobs.content] == [[], [], []]  # type: ignore[union-attr]


def test_seeds_and_n(client: openai.OpenAI) -> None:
    told: dict[str, Any] = {"model": "code", "messages": SAID, "max_tokens": 10, "n": 3}
    found = client.chat.completions.create(**told, seed=7)
    texts = [choice.message.content for choice in found.choices]
    assert [choice.index for choice in found.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert found.usage.completion_tokens == 30  # type: ignore[union-attr]
    again = client.chat.completions.create(**told, seed=7)
    assert [choice.message.content for choice in again.choices] == texts
    other = client.chat.completions.create(**told, seed=8)
    assert [choice.message.content for choice in other.choices] != texts
    unseeded = {client.chat.completions.create(**told).choices[0].message.content for _ in range(2)}
    assert len(unseeded) == 2
    parts = ["", "", ""]
    for chunk in client.chat.completions.create(**told, seed=7, stream=True):
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
    assert parts == texts


def test_stop_ends_a_reply_and_is_no_part_of_it(client: openai.OpenAI) -> None:
    told: dict[str, Any] = {"model": "code", "messages": SAID, "temperature": 0, "max_tokens": 20}
    whole = client.chat.completions.create(**told).choices[0].message.content
    assert whole is not None
    stop = whole[6:8]
    for value in (stop, [stop, "never to be seen"]):
        found = client.chat.completions.create(**told, stop=value).choices[0]
        assert found.message.content == whole[: whole.index(stop)] and found.finish_reason == "stop"
    pieces = client.chat.completions.create(**told, stop=stop, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in pieces) == whole[: whole.index(stop)]


def test_contents_in_parts_and_copied_answers(server: Running) -> None:
    plain = server.chat("one two")
    assert plain.status_code == 200
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert server.chat(parts).json()["choices"] == plain.json()["choices"]  # type: ignore[arg-type]
    copied = {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None, "annotations": []}
    turns = [{"role": "developer", "content": "Be brief."}, SAID[0], copied, SAID[0]]
    assert server.chat(messages=turns).status_code == 200


def test_max_completion_tokens(server: Running) -> None:
    body = {"model": "code", "messages": SAID, "max_completion_tokens": 3}
    assert server.post("/v1/chat/completions", **body).json()["usage"]["completion_tokens"] == 3
    assert server.post("/v1/chat/completions", **body, max_tokens=3).status_code == 400


def test_without_max_tokens_the_context_is_the_bound(server: Running) -> None:
    found = server.post("/v1/chat/completions", model="code", messages=SAID, temperature=0).json()
    assert found["usage"]["total_tokens"] <= 128
    if found["choices"][0]["finish_reason"] == "length":
        assert found["usage"]["total_tokens"] == 128


# ---- completions -----------------------------------------------------------------------------------------------------


def test_completions_of_text_and_of_tokens_are_the_same(client: openai.OpenAI, lm: Any) -> None:
    text = "The cook"
    want = lm.generate([ids_of(lm, text)], Sampling(temperature=0.0, max_tokens=8))[0][0]
    prompts: list[Any] = [text, [text], ids_of(lm, text).tolist(), [ids_of(lm, text).tolist()]]
    for prompt in prompts:
        found = client.completions.create(model="code", prompt=prompt, temperature=0, max_tokens=8)
        assert found.choices[0].text == want.text and found.choices[0].finish_reason == want.finish_reason
        assert found.usage.prompt_tokens == len(ids_of(lm, text))  # type: ignore[union-attr]
    assert client.completions.create(model="code", prompt=text).usage.completion_tokens <= 16  # type: ignore[union-attr]


def test_a_batch_is_answered_in_order(client: openai.OpenAI) -> None:
    prompts = ["The cook", "A cold wind", "This loop"]
    alone = [client.completions.create(model="code", prompt=one, temperature=0, max_tokens=5) for one in prompts]
    found = client.completions.create(model="code", prompt=prompts, temperature=0, max_tokens=5, n=2)
    assert [choice.index for choice in found.choices] == list(range(6))
    assert [choice.text for choice in found.choices[::2]] == [one.choices[0].text for one in alone]


def test_echo_scores_the_prompt(client: openai.OpenAI, lm: Any) -> None:
    text = "The cook salted the onion soup."
    ids = ids_of(lm, text)
    with torch.no_grad():
        logp_TV = lm.model(torch.tensor([ids.tolist()])).logits[0].log_softmax(-1)
    want = [float(logp_TV[t - 1, ids[t]]) for t in range(1, len(ids))]
    told: dict[str, Any] = {"model": "code", "prompt": text, "temperature": 0, "echo": True, "logprobs": 2}
    found = client.completions.create(**told, max_tokens=0).choices[0]
    assert found.text == text and found.finish_reason == "length" and found.logprobs is not None
    assert found.logprobs.token_logprobs[0] is None and found.logprobs.top_logprobs[0] is None  # type: ignore[index]
    np.testing.assert_allclose(found.logprobs.token_logprobs[1:], want, atol=1e-4)  # type: ignore[index,arg-type]
    assert "".join(found.logprobs.tokens or []) == text
    offsets = found.logprobs.text_offset or []
    assert [text[at : at + len(token)] for at, token in zip(offsets, found.logprobs.tokens or [], strict=True)] == (
        found.logprobs.tokens
    )
    for token, logp, top in list(zip(*(getattr(found.logprobs, name) for name in
                                       ("tokens", "token_logprobs", "top_logprobs")), strict=True))[1:]:  # fmt: skip
        assert top[token] == logp and 2 <= len(top) <= 3 and max(top.values()) >= logp
    more = client.completions.create(**told, max_tokens=2).choices[0]
    assert more.text.startswith(text) and len(more.logprobs.tokens) == len(ids) + 2  # type: ignore[union-attr,arg-type]


def test_completions_stream(client: openai.OpenAI) -> None:
    told: dict[str, Any] = {"model": "code", "prompt": "The cook", "temperature": 0, "max_tokens": 6, "echo": True}
    for logprobs in (None, 1):
        whole = client.completions.create(**told, logprobs=logprobs)
        pieces = list(client.completions.create(**told, logprobs=logprobs, stream=True))
        assert "".join(one.choices[0].text for one in pieces) == whole.choices[0].text
        assert pieces[-1].choices[0].finish_reason == "length"
        assert pieces[0].model_extra["limbeck"]["expert"] == "code@1.0.0"  # type: ignore[index]
        if logprobs:
            tokens = [token for one in pieces for token in one.choices[0].logprobs.tokens]  # type: ignore[union-attr]
            assert tokens == whole.choices[0].logprobs.tokens  # type: ignore[union-attr]


# ---- refusals --------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str | None, str | None]] = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
    ({"tool_choice": "auto"}, "tool_choice", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format", "unsupported_parameter"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
    ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
    ({"frequency_penalty": -1}, "frequency_penalty", "unsupported_parameter"),
    ({"store": True}, "store", "unsupported_parameter"),
    ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
    ({"top_k": 5}, "top_k", "unknown_parameter"),
    ({"temperature": 2.5}, "temperature", "invalid_value"),
    ({"temperature": "0.5"}, "temperature", "invalid_value"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 9}, "n", None),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 10_000}, "max_tokens", None),
    ({"max_tokens": 127}, None, "context_length_exceeded"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
    ({"stop": [""]}, "stop[0]", "invalid_value"),
    ({"stop": 5}, "stop", "invalid_value"),
    ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
    ({"messages": [{"role": "user", "content": "hi", "name": "<|im_end|>"}]}, "messages[0].name", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_value"),
    ({"top_logprobs": 3}, "top_logprobs", None),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", None),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", None),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [*SAID, {"role": "assistant", "content": "x"}]}, "messages[1].role", None),
    ({"messages": [{"role": "user", "content": "  "}]}, "messages", None),
    ({"messages": [{"role": "user", "content": "a<|im_end|>b"}]}, "messages", None),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
     "messages[0].content", "unsupported_value"),
    ({"messages": [{"role": "user", "content": "word " * 200}]}, None, "context_length_exceeded"),
    ({"model": 5}, "model", "invalid_value"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param", "code"), REFUSED, ids=[str(one[0])[:60] for one in REFUSED])
def test_chat_refuses_what_it_does_not_do(server: Running, change: dict, param: str | None, code: str | None) -> None:
    found = server.chat(**change)
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["param"] == param and (code is None or error["code"] == code)
    assert error["message"].endswith(".") and "data." not in error["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1, 2], []]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [384]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"messages": SAID}, "messages"),
    ],
)
def test_completions_refuse_what_they_do_not_do(server: Running, change: dict, param: str) -> None:
    found = server.complete(**change)
    assert found.status_code == 400 and found.json()["error"]["param"] == param, found.text


def test_what_changes_nothing_is_taken(server: Running) -> None:
    neutral = {
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}, "store": False,
        "presence_penalty": 0, "frequency_penalty": 0.0, "user": "somebody", "n": 1, "stop": None, "top_p": 1,
        "parallel_tool_calls": None, "modalities": ["text"], "service_tier": "auto", "logprobs": False,
    }  # fmt: skip
    assert server.chat(**neutral).json()["choices"] == server.chat().json()["choices"]


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null", "{'model': 1}", '{"model": NaN}', "\xff"])
def test_bodies_that_are_no_request(server: Running, text: str) -> None:
    headers = {"content-type": "application/json"}
    found = server.client.post("/v1/chat/completions", content=text.encode("latin-1"), headers=headers)
    assert found.status_code == 400 and found.json()["error"]["message"]


def test_text_that_cannot_be_encoded_is_refused(server: Running) -> None:
    body = '{"model": "code", "messages": [{"role": "user", "content": "\\ud800"}]}'
    found = server.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert found.status_code == 400


def test_a_body_of_another_kind_is_refused(server: Running) -> None:
    """A page of another origin can send text/plain without asking first."""
    body = json.dumps({"model": "code", "messages": SAID})
    found = server.client.post("/v1/chat/completions", content=body, headers={"content-type": "text/plain"})
    assert found.status_code == 400 and "application/json" in found.json()["error"]["message"]


def test_paths_and_methods(server: Running) -> None:
    assert server.client.get("/nowhere").json()["error"]["code"] == "unknown_url"
    found = server.client.get("/v1/chat/completions")
    assert found.status_code == 405 and found.headers["allow"] == "POST"
    assert server.client.get("/docs").status_code == server.client.get("/redoc").status_code == 404
    assert server.client.get("/openapi.json").json()["info"]["title"] == "Limbeck"


# ---- engines that fail -----------------------------------------------------------------------------------------------


class Failing:
    """An engine that dies after two tokens."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.dead = engine, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def stats(self) -> Any:
        return self._engine.stats._replace(dead=self.dead)

    async def write(self, ask: Any) -> Any:
        async with contextlib.aclosing(self._engine.write(ask)) as written:
            count = 0
            async for one in written:
                yield one
                count += 1
                if count == 2:
                    self.dead = "out of memory"
                    raise EngineError("out of memory")


@pytest.mark.slow
def test_an_engine_that_dies_is_told_and_replaced(experts_folder: Any) -> None:
    made: list[Any] = []

    def open_with(settings: Any) -> Any:
        from limbeck.serve.pool import opener

        def open_expert(expert: Any, sequence_bytes: int) -> Any:
            found = opener(settings)(expert, sequence_bytes)
            made.append(found)
            return replace(found, engine=Failing(found.engine)) if len(made) == 1 else found

        return open_expert

    with running(experts_folder, open_with=open_with) as server:
        events = server.chat(stream=True).text.split("\n\n")
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "engine_failed"
        assert "data: [DONE]" not in events
        assert server.chat().status_code == 200 and len(made) == 2
        assert server.events("engine_dead")[0]["reason"] == "out of memory"
        failed = server.events("request", 2)[0]
        assert failed["code"] == "engine_failed" and failed["completion_tokens"] == 2


# ---- what clients really send ----------------------------------------------------------------------------------------


def test_a_turn_may_have_a_name(server: Running) -> None:
    named = [{**SAID[0], "name": "ann_b"}]
    assert server.chat(messages=named).json()["choices"] == server.chat(messages=SAID).json()["choices"]


def test_marks_and_empty_lists_change_nothing(server: Running) -> None:
    marks = {"prompt_cache_key": "a", "prompt_cache_retention": "24h", "safety_identifier": "b"}
    plain = server.chat().json()["choices"]
    assert server.chat(**marks, prompt_cache_options={"mode": "auto"}, stop=[]).json()["choices"] == plain


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/models/code", "/metrics"])
def test_head_is_get_without_a_body(server: Running, path: str) -> None:
    found, whole = server.client.head(path), server.client.get(path)
    assert (found.status_code, found.content) == (200, b"")
    assert found.headers["content-type"] == whole.headers["content-type"]
    assert server.client.get("/health").status_code == 200  # on the same connection
    assert server.client.head("/v1/chat/completions").status_code == 405


def test_refusals_say_what_is_wrong_in_words_that_clients_know(server: Running) -> None:
    long = server.chat("word " * 3000)
    assert long.json()["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 128 tokens" in long.json()["error"]["message"]
    assert "row" not in long.json()["error"]["message"]
    many = server.chat(stop=["a", "b", "c", "d", "e"]).json()["error"]
    assert many["param"] == "stop" and "at most 4 items" in many["message"]
    text = server.complete([1, 2, -5]).json()["error"]
    assert text["param"] == "prompt[2]" and "greater than or equal to 0" in text["message"]
