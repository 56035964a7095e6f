"""Who answers and why; the teacher behind another server; the cascade."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import openai
import pytest

from limbeck.errors import RecipeError
from limbeck.serve.settings import load_serving
from tests.endpoint.fake_answers import assistant
from tests.endpoint.fake_answers import plain as plain_answer
from tests.endpoint.fake_server import FakeServer
from tests.serve.conftest import Decided, Router, running, teacher

if TYPE_CHECKING:
    from pathlib import Path

PRICES = "upstream.prices={input: 1, output: 10}"


@dataclass
class Doubt:
    """Every reply is right with this probability."""

    chance: float
    threshold: float = 0.5

    def right(self, mean_logp: float) -> float:
        assert mean_logp < 0
        return self.chance


def say(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)]


def upstream(found: Any, *more: str) -> tuple[str, ...]:
    return (f"upstream.url={found.url}", "upstream.model=teacher", *more)


def test_without_a_router_auto_is_refused_with_a_sentence(server: Any) -> None:
    found = server.chat(model="auto")
    assert found.status_code == 404 and "limbeck route fit" in found.json()["error"]["message"]


@pytest.mark.slow
def test_auto_goes_where_the_router_says(experts_folder: Path) -> None:
    router = Router(by={"rain": Decided("weather", 0.97, "its words"), "loop": Decided("code", 0.8, "its words")})
    with running(experts_folder, router=router) as server:
        assert "auto" in [one["id"] for one in server.client.get("/v1/models").json()["data"]]
        found = server.chat("rain", model="auto")
        assert found.json()["model"] == "weather" and found.json()["limbeck"] == {
            "expert": "weather@1.0.0", "route": "auto", "confidence": 0.97, "reason": "its words"
        }  # fmt: skip
        assert found.headers["x-limbeck-route"] == "auto; confidence=0.970; reason=its words"
        assert server.complete("loop", model="auto").json()["model"] == "code"
        assert server.complete([1, 2], model="auto").json()["error"]["param"] == "prompt"
        lost = server.chat("love", model="auto")
        assert lost.status_code == 404 and lost.json()["error"]["code"] == "out_of_scope"


@pytest.mark.slow
def test_a_conversation_stays_on_its_expert(experts_folder: Path) -> None:
    by = {"rain": Decided("weather"), "loop": Decided("code")}
    router = Router(by=by)
    with running(experts_folder, router=router) as server:
        found = server.chat(model="auto", messages=say("rain", "yes", "loop")).json()
        assert found["model"] == "weather" and "stays" in found["limbeck"]["reason"]
        assert router.asked == ["rain"]
        assert server.chat(model="auto", messages=say("love", "yes", "loop")).json()["model"] == "code"


def test_what_is_out_of_scope_goes_to_the_teacher(experts_folder: Path) -> None:
    with teacher() as peer, running(experts_folder, *upstream(peer, PRICES), router=Router()) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        told: dict[str, Any] = {"model": "auto", "messages": say("love"), "temperature": 0.5, "max_tokens": 9}
        found = client.chat.completions.create(**told)
        assert found.choices[0].message.content == "The teacher says so." and found.model == "teacher"
        assert found.model_extra["limbeck"] == {  # type: ignore[index]
            "expert": None, "route": "fallback", "confidence": 0.1, "reason": "nobody's"
        }  # fmt: skip
        chunks = list(client.chat.completions.create(**told, stream=True))
        assert "".join(one.choices[0].delta.content or "" for one in chunks) == "The teacher says so."
        assert all(one.usage is None and one.model == "teacher" for one in chunks)
        assert chunks[0].model_extra["limbeck"]["route"] == "fallback"  # type: ignore[index]
        counted = list(client.chat.completions.create(**told, stream=True, stream_options={"include_usage": True}))
        assert counted[-1].usage.total_tokens == 15 and counted[-1].choices == []  # type: ignore[union-attr]
        sent = peer.bodies[0]
        assert sent == {"model": "teacher", "messages": say("love"), "temperature": 0.5, "max_tokens": 9}
        assert "authorization" not in peer.heads[0]
        text = server.client.get("/metrics").text
        cost = 3 * (10 * 1 + 5 * 10) / 1e6
        assert f'limbeck_upstream_cost_total{{model="teacher"}} {cost!r}' in text
        assert 'limbeck_routes_total{model="teacher",route="fallback"} 3.0' in text
        assert server.chat(model="teacher").json()["limbeck"]["route"] == "pinned"
        client.close()


def test_falling_back_can_be_refused(experts_folder: Path) -> None:
    with (
        teacher() as peer,
        running(experts_folder, *upstream(peer, "routing.fallback=refuse"), router=Router()) as server,
    ):
        assert server.chat("love", model="auto").json()["error"]["code"] == "out_of_scope"
        assert server.chat(model="teacher").status_code == 200 and len(peer.bodies) == 1


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [
        ("quote", 400, "upstream_refused"),
        ("broken", 503, "upstream_unavailable"),
        ("429-seven", 429, "rate_limit_exceeded"),
        ("html", 503, "upstream_malformed"),
    ],
)
def test_a_teacher_in_trouble(experts_folder: Path, trouble: str, status: int, code: str) -> None:
    with teacher(trouble) as peer, running(experts_folder, *upstream(peer)) as server:
        for stream in (False, True) if trouble != "html" else (False,):
            found = server.chat(model="teacher", stream=stream)
            assert found.status_code == status and found.json()["error"]["code"] == code
        if trouble == "429-seven":
            assert found.headers["retry-after"] == "7"
        assert server.chat().status_code == 200  # the others serve


def test_a_teacher_that_is_cut_off_or_gone(experts_folder: Path) -> None:
    with teacher("cut") as peer, running(experts_folder, *upstream(peer)) as server:
        events = server.chat(model="teacher", stream=True).text.split("\n\n")
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "upstream_unavailable"
    with running(experts_folder, *upstream(peer)) as server:
        found = server.chat(model="teacher")
        assert found.status_code == 503 and found.json()["error"]["code"] == "upstream_unavailable"
        assert peer.url not in found.text


def chunks(*, done: bool, **more: Any) -> bytes:
    """A stream as servers write it: a word, the end, what it cost."""
    usage = {"choices": [], "usage": {"prompt_tokens": 7.0, "completion_tokens": 9, "total_tokens": 16}}
    said = [{"choices": [{"index": 0, "delta": {"content": "Yes."}, "finish_reason": None}]}]
    said += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, usage]
    events = [json.dumps({"id": "x", "object": "chat.completion.chunk", **one, **more}) for one in said]
    return "".join(f"data: {one}\n\n" for one in [*events, *(["[DONE]"] if done else [])]).encode()


@pytest.mark.parametrize("body", [chunks(done=True), chunks(done=False), chunks(done=False, error=None)])
def test_streams_as_servers_end_them(experts_folder: Path, body: bytes) -> None:
    answer = plain_answer(body, "200 OK", "content-type: text/event-stream")
    with teacher(answer) as peer, running(experts_folder, *upstream(peer, PRICES)) as server:
        events = server.chat(model="teacher", stream=True).text.split("\n\n")
        assert (
            "Yes." in events[0]
            and events[-2] == "data: [DONE]"
            and not any(json.loads(one.removeprefix("data: ")).get("error") for one in events[:-2])
        )
        assert (
            f'limbeck_upstream_cost_total{{model="teacher"}} {(7 + 90) / 1e6!r}' in server.client.get("/metrics").text
        )


def test_what_was_written_is_paid_for_though_it_was_cut(experts_folder: Path) -> None:
    half = {"choices": [{"index": 0, "delta": {"content": "Y"}}], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}
    answer = plain_answer(f"data: {json.dumps(half)}\n\n".encode(), "200 OK", "content-type: text/event-stream")
    with teacher(answer) as peer, running(experts_folder, *upstream(peer, PRICES)) as server:
        events = server.chat(model="teacher", stream=True).text.split("\n\n")
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "upstream_unavailable"
        assert (
            f'limbeck_upstream_cost_total{{model="teacher"}} {(7 + 10) / 1e6!r}' in server.client.get("/metrics").text
        )


def test_a_server_that_does_not_know_stream_options(experts_folder: Path) -> None:
    refused = plain_answer(b'{"error": {"message": "Unrecognized argument: stream_options"}}', "400 Bad Request")
    whole = plain_answer(chunks(done=True), "200 OK", "content-type: text/event-stream")
    asked: list[bool] = []

    def script(request: Any) -> bytes:
        asked.append("stream_options" in request.json())
        return refused if asked[-1] else whole

    with FakeServer(assistant("-"), script=script) as peer, running(experts_folder, *upstream(peer)) as server:
        for _ in range(2):
            assert "Yes." in server.chat(model="teacher", stream=True).text
        assert asked == [True, False, False]


def test_a_slow_teacher_is_given_up(experts_folder: Path) -> None:
    with contextlib.ExitStack() as held:
        peer = held.enter_context(teacher("hang"))
        server = held.enter_context(running(experts_folder, *upstream(peer, "upstream.read_seconds=0.2")))
        assert server.chat(model="teacher").json()["error"]["code"] == "upstream_unavailable"


def test_a_backend_runs_an_expert(experts_folder: Path) -> None:
    router = Router(Decided("weather", 0.9, "its words"))
    with teacher() as peer, running(experts_folder, f"backends={{weather: '{peer.url}'}}", router=router) as server:
        for model, route in (("weather", "pinned"), ("auto", "auto")):
            found = server.chat(model=model).json()
            assert found["model"] == "weather" and found["limbeck"]["route"] == route
        assert [body["model"] for body in peer.bodies] == ["weather", "weather"]
        assert not server.built.house.pool.places


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_the_cascade_asks_the_teacher_where_the_expert_is_unsure(experts_folder: Path, stream: bool) -> None:
    router = Router(Decided("code"), cascades={"code": Doubt(0.3)})
    told = ("routing.cascade=true",)
    with teacher() as peer, running(experts_folder, *upstream(peer, *told), router=router) as server:
        plain = server.chat().json()["choices"][0]["message"]["content"]
        assert server.chat(stream=stream).status_code == 200 and not peer.bodies  # pinned: nobody doubts
        found = server.chat(model="auto", stream=stream)
        assert "teacher" in found.text and found.headers["x-limbeck-route"].startswith("cascade; confidence=0.300")
        assert len(peer.bodies) == 1
        router.cascades["code"] = Doubt(0.9)
        found = server.chat(model="auto", stream=stream)
        assert found.headers["x-limbeck-expert"] == "code@1.0.0" and len(peer.bodies) == 1
        if not stream:
            assert found.json()["choices"][0]["message"]["content"] == plain


@pytest.mark.slow
def test_the_cascade_judges_completions_too(experts_folder: Path) -> None:
    router = Router(Decided("code"), cascades={"code": Doubt(0.3)})
    with teacher() as peer, running(experts_folder, *upstream(peer, "routing.cascade=true"), router=router) as server:
        plain = server.complete().json()["choices"]
        found = server.complete(model="auto")
        assert found.json()["choices"][0]["text"] == "The teacher says so." and len(peer.bodies) == 1
        assert found.headers["x-limbeck-route"].startswith("cascade; confidence=0.300")
        asked = {"model": "auto", "max_tokens": 0, "echo": True, "logprobs": 1}
        nothing = server.complete(**asked)  # a prompt that is scored: there is no reply to doubt
        assert nothing.headers["x-limbeck-expert"] == "code@1.0.0" and len(peer.bodies) == 1
        router.cascades["code"] = Doubt(0.9)
        assert server.complete(model="auto").json()["choices"] == plain
        streamed = server.complete(model="auto", stream=True).text.split("\n\n")
        events = [json.loads(line.removeprefix("data: ")) for line in streamed if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == plain[0]["text"] and len(peer.bodies) == 1


def test_settings_of_routing_contradict_one_another() -> None:
    for overrides in (["routing.fallback=upstream"], ["routing.cascade=true"], ["routing.cascade_threshold=0.5"]):
        with pytest.raises(RecipeError, match=r"routing\."):
            load_serving(None, overrides)
