"""One expert after the other that was made to do harm, or is broken, beside a good one, which goes on answering."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from limbeck.errors import EngineFull
from limbeck.experts import Registry
from limbeck.serve import pool
from limbeck.serve.pool import opener
from limbeck.serve.threads import Turns, in_thread
from limbeck.system.atomic import seal_dir
from tests.models.strangers import DAMAGED, LYING, damaged
from tests.serve.conftest import SECONDS, expert_card, running
from tests.serve.test_security import BODY, address, said

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.serve.conftest import Running


TEMPLATES = {
    "a loop": "{% for a in range(99999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'x' * 10**9 }}",
    "doubling": "{% set x = namespace(v='x') %}{% for i in range(40) %}{% set x.v = x.v ~ x.v %}{% endfor %}{{ x.v }}",
    "a range": "{% for a in range(10**9) %}x{% endfor %}",
    "recursion": "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}",
    "brackets": "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
    "no syntax": "{% for %}",
    "a division": "{{ 1 / 0 }}",
    "an attribute": "{{ ''.__class__.__mro__ }}",
}


def hostile(tmp_path: Path, tiny_llama: Path, names: dict[str, Any]) -> Path:
    """A registry of one good expert, and of one for each (name, what makes its folder)."""
    registry = Registry(tmp_path / "registry")
    registry.add("good", "1.0.0", expert_card("good"), tiny_llama)
    for name, made in names.items():
        registry.add(name, "1.0.0", expert_card(name), made)
    return registry.path


def with_template(sound: Path, folder: Path, template: str) -> Path:
    shutil.copytree(sound, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@contextlib.contextmanager
def always_answered(server: Running, name: str = "good") -> Iterator[list[float]]:
    """The good expert and /health are asked again and again: seconds of each answer."""
    stop, seconds, wrong = threading.Event(), [], []

    def ask() -> None:
        while not stop.is_set():
            begun = time.monotonic()
            found = (server.client.get("/health").status_code, server.chat(model=name, max_tokens=2).status_code)
            seconds.append(time.monotonic() - begun)
            wrong.extend([found] if found != (200, 200) else [])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        thread.join(SECONDS)
    assert not wrong and seconds


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_holds_up_its_own_expert_alone(kind: str, tmp_path: Path, tiny_llama: Path) -> None:
    bad = with_template(tiny_llama, tmp_path / "bad", TEMPLATES[kind])
    with running(hostile(tmp_path, tiny_llama, {"bad": bad}), "limits.request_seconds=3") as server:
        assert server.chat(model="good", max_tokens=2).status_code == 200
        with always_answered(server) as seconds, ThreadPoolExecutor(3) as several:
            begun = time.monotonic()
            found = list(several.map(lambda _: server.chat(model="bad", max_tokens=2), range(3)))
            assert time.monotonic() - begun < 10
        for one in found:
            assert one.status_code in (400, 503) and one.json()["error"]["message"]
            assert one.json()["error"]["code"] != "internal_error"
        assert sorted(seconds)[len(seconds) // 2] < 2


@pytest.mark.slow
def test_damaged_and_lying_experts_are_refused_alone(tmp_path: Path, tiny_llama: Path) -> None:
    kinds = dict(enumerate([*DAMAGED, *LYING]))
    folders = {f"x{number}": damaged(tiny_llama, tmp_path / f"x{number}", kind) for number, kind in kinds.items()}
    folders = {name: folder for name, folder in folders.items() if kinds[int(name[1:])] != "another file"}
    with running(hostile(tmp_path, tiny_llama, folders)) as server, always_answered(server):
        for name in folders:
            begun = time.monotonic()
            found = server.chat(model=name)
            error = found.json()["error"]
            assert (found.status_code, error["code"]) == (503, "expert_damaged"), kinds[int(name[1:])]
            assert "cannot be opened" in error["message"] and str(tmp_path) not in error["message"]
            assert time.monotonic() - begun < 10
            assert server.chat(model=name).json()["error"] == error  # from memory: it is not tried again at once


@pytest.mark.slow
def test_what_makes_opening_fail_in_any_way_is_told(experts_folder: Path) -> None:
    def failing(settings: Any) -> Any:
        real = opener(settings)

        def open_expert(expert: Any, sequence_bytes: int) -> Any:
            if expert.name == "code":
                raise errors.pop()
            return real(expert, sequence_bytes)

        return open_expert

    errors = [RecursionError("deep"), MemoryError(), KeyError("weight"), OverflowError("wide"), TimeoutError("slow")]
    with running(experts_folder, open_with=failing) as server:
        while errors:
            server.built.house.pool._failed.clear()
            name = type(errors[-1]).__name__
            found = server.chat()
            assert found.status_code == 503 and name in found.json()["error"]["message"]
        assert server.chat(model="weather").status_code == 200


@pytest.mark.slow
def test_opening_one_holds_up_no_other(experts_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never ends is given up, and not tried again; the server ends without it."""
    ends = threading.Event()
    monkeypatch.setattr(pool, "CLOSING_SECONDS", 0.2)

    def stuck(settings: Any) -> Any:
        real = opener(settings)

        def open_expert(expert: Any, sequence_bytes: int) -> Any:
            assert expert.name != "code" or ends.wait(SECONDS)
            return real(expert, sequence_bytes)

        return open_expert

    with running(experts_folder, "limits.open_seconds=1", open_with=stuck) as server:
        with ThreadPoolExecutor(1) as other:
            waiting = other.submit(server.chat)
            assert server.chat(model="weather").status_code == 200 and not waiting.done()
            found = waiting.result()
        assert found.status_code == 503 and "more than 1 s" in found.json()["error"]["message"]
        assert int(found.headers["retry-after"]) > 1000
        ends.set()


def test_files_that_change_after_the_look_are_not_served(tmp_path: Path, tiny_llama: Path) -> None:
    path = hostile(tmp_path, tiny_llama, {"changed": tiny_llama, "swapped": tiny_llama})
    model = path / "experts" / "changed" / "1.0.0" / "model"

    def meddling(settings: Any) -> Any:
        real = opener(settings)

        def open_expert(expert: Any, sequence_bytes: int) -> Any:
            if expert.name == "swapped":  # while it is opened
                replace(expert.model_path / "generation_config.json", b'{"eos_token_id": 7}')
            return real(expert, sequence_bytes)

        return open_expert

    with running(path, "rescan_seconds=3600", open_with=meddling) as server:
        weights = bytearray((model / "model.safetensors").read_bytes())
        weights[-9] ^= 1
        replace(model / "model.safetensors", bytes(weights))
        for name, file in (("changed", "model.safetensors"), ("swapped", "generation_config.json")):
            found = server.chat(model=name)
            assert found.status_code == 503 and file in found.json()["error"]["message"]
        assert server.chat(model="good").status_code == 200


def test_files_that_are_cut_short_while_they_are_open_end_nothing(tmp_path: Path, tiny_llama: Path) -> None:
    """Weights that are a mapping of a file end the process when the file does: SIGBUS, at the next token."""
    path = hostile(tmp_path, tiny_llama, {"cut": tiny_llama})
    file = path / "experts" / "cut" / "1.0.0" / "model" / "model.safetensors"
    replace(file, file.read_bytes())
    with running(path, "rescan_seconds=3600") as server:
        before = server.chat(model="cut").json()["choices"]
        os.truncate(file, 100)
        assert server.chat(model="cut").json()["choices"] == before


def replace(file: Path, data: bytes) -> None:
    file.unlink()  # it may be a link to the fixture's
    file.write_bytes(data)


def test_an_index_that_leaves_the_folder_is_no_expert(tmp_path: Path, tiny_llama: Path) -> None:
    path = hostile(tmp_path, tiny_llama, {"bad": tiny_llama})
    folder = path / "experts" / "bad" / "1.0.0"
    outside = path / "outside.safetensors"
    (folder / "model" / "model.safetensors").rename(outside)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../../../outside.safetensors"}}
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    seal_dir(folder)
    with running(path) as server:
        found = server.chat(model="bad")
        assert found.status_code == 503 and "beside config.json" in found.json()["error"]["message"]
        assert server.chat(model="good").status_code == 200


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_work_takes_turns_and_a_wait_that_is_given_up_is_no_turn() -> None:
    may_end, begun = threading.Event(), []

    def work(number: int) -> int:
        begun.append(number)
        assert may_end.wait(SECONDS)
        return number

    async def several() -> None:
        turns = Turns(2)
        first = asyncio.create_task(turns.take(work, 0))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(first), 0.05)
        first.cancel()
        later = [asyncio.create_task(turns.take(work, number)) for number in (1, 2)]
        await asyncio.sleep(0.05)
        assert begun == [0]  # its thread is still at it, whoever waits
        with pytest.raises(EngineFull):
            await turns.take(work, 3)
        may_end.set()
        assert await asyncio.gather(*later) == [1, 2] and begun == [0, 1, 2]

    asyncio.run(several())


def test_a_thread_hands_out_what_it_raises_and_ends_with_the_process() -> None:
    threads = []

    def work() -> None:
        threads.append(threading.current_thread())
        raise RecursionError("deep")

    with pytest.raises(RecursionError, match="deep"):
        asyncio.run(in_thread(work))
    assert threads[0].daemon


# ---- clients that send half a request --------------------------------------------------------------------------------


def test_half_requests_shut_out_nobody(experts_folder: Path) -> None:
    limits = ("limits.max_in_flight=2", "limits.body_seconds=20", "limits.max_connections=12")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(json.dumps(BODY))}\r\n\r\n"
    with contextlib.ExitStack() as held:
        server = held.enter_context(running(experts_folder, *limits))
        assert server.chat().status_code == 200
        for sent in (head.encode(), head.encode() + b"{", b"POST /v1/chat", b""):
            for _ in range(10):
                one = held.enter_context(socket.create_connection(address(server), timeout=SECONDS))
                one.sendall(sent)
            for _ in range(3):
                assert said(server, whole()).startswith(b"HTTP/1.1 200")
        assert len(server.built.gate.busy) == 0


def whole() -> bytes:
    body = json.dumps(BODY)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return f"{head}content-type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
    ],
)
def test_a_request_of_two_lengths_is_one_and_the_last(server: Running, lines: str) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n0\r\n\r\n"
    found = said(server, head.encode() + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 400") and found.count(b"HTTP/1.1") == 1 and b"connection: close" in found


@pytest.mark.slow
def test_wide_json_is_refused_soon(server: Running) -> None:
    """A megabyte of the smallest things, of which each is wrong."""
    for key, items in (("messages", "{},"), ("messages", "[],"), ("prompt", "-1,"), ("prompt", "{},"), ("stop", "1,")):
        text = f'{{"model": "code", "{key}": [{items * (900_000 // len(items))}1]}}'
        path = "/v1/completions" if key == "prompt" else "/v1/chat/completions"
        begun = time.process_time()
        found = server.client.post(path, content=text, headers={"content-type": "application/json"})
        assert found.status_code == 400 and len(found.text) < 1000
        assert time.process_time() - begun < 2
