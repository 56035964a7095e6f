"""Experts in memory: opened once, closed when room is needed or nobody asks, refused alone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from limbeck.errors import RecipeError, StoreError
from limbeck.experts import Registry
from limbeck.serve import run
from limbeck.serve.pool import opener
from limbeck.serve.settings import load_serving
from tests.serve.conftest import expert_card, running

if TYPE_CHECKING:
    from pathlib import Path


class Opener:
    """Opens for real, counts, and can be held up or fail."""

    def __init__(self, broken: str = "") -> None:
        self.opened: list[str] = []
        self.threads: set[int] = set()
        self.broken = broken
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def __call__(self, settings: Any) -> Any:
        def open_expert(expert: Any, sequence_bytes: int) -> Any:
            self.opened.append(expert.name)
            self.threads.add(threading.get_ident())
            self.begun.set()
            assert self.may_go_on.wait(30)
            if expert.name == self.broken:
                raise StoreError(f"{expert.path} has a broken tensor")
            return opener(settings)(expert, sequence_bytes)

        return open_expert


@pytest.mark.slow
def test_concurrent_first_requests_open_once_and_the_loop_stays_free(experts_folder: Path) -> None:
    opened = Opener()
    opened.may_go_on.clear()
    with running(experts_folder, open_with=opened) as server, concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(server.chat, max_tokens=2) for _ in range(6)]
        assert opened.begun.wait(30)
        assert server.client.get("/health").status_code == 200  # while it is being opened
        assert not any(one.done() for one in asked)
        opened.may_go_on.set()
        assert [one.result().status_code for one in asked] == [200] * 6
        assert opened.opened == ["code"]
        assert server.events("expert_opened")[0]["bytes"] >= 2**20


@pytest.mark.slow
def test_room_is_made_by_closing_what_was_idle_longest(
    experts_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "limbeck.serve.pool")
    opened = Opener()
    with running(experts_folder, "memory_budget=1.5M", open_with=opened) as server:
        monkeypatch.setattr(server.built.house.pool, "measure", lambda: 0)
        for name in ("code", "weather", "code"):
            assert server.chat(model=name, max_tokens=2).status_code == 200
        assert opened.opened == ["code", "weather", "code"]
        assert list(server.built.house.pool.places) == ["code@1.0.0"]
        assert [one["expert"] for one in server.events("expert_closed")] == ["code@1.0.0", "weather@1.0.0"]
        text = server.client.get("/metrics").text
        assert 'limbeck_unloads_total{model="code",why="room"} 1.0' in text
        engine = server.built.house.pool.places["code@1.0.0"].opened.engine
        taken = 2**20 + engine.stats.most_memory_bytes  # of the card, and what keys and values can come to
        found = re.search(r'limbeck_model_bytes\{model="code@1.0.0"\} (\S+)', text)
        assert found is not None and float(found[1]) == taken
    said = [record.getMessage() for record in caplog.records]
    assert "closed code@1.0.0: room" in said and any(text.startswith("opened weather@1.0.0 in") for text in said)


@pytest.mark.slow
def test_keys_and_values_count_and_stay_within_the_budget(
    experts_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two experts of 1 MiB and their sequences: three MiB hold both with half a MiB each, and one with a whole."""
    for memory, together in (("0.4M", ["code@1.0.0", "weather@1.0.0"]), ("1M", ["weather@1.0.0"])):
        with running(experts_folder, "memory_budget=3M", f"sequence_memory={memory}") as server:
            pool = server.built.house.pool
            monkeypatch.setattr(pool, "measure", lambda: 0)
            for name in ("code", "weather"):
                assert server.chat(model=name, max_tokens=2).status_code == 200
            assert sorted(pool.places) == together
            for place in pool.places.values():
                most = place.opened.engine.stats.most_memory_bytes
                assert 0 < most <= float(memory[:-1]) * 2**20 and place.num_bytes == 2**20 + most
            assert pool.used <= pool.budget


@pytest.mark.slow
def test_what_is_in_use_is_never_closed(experts_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.serve import pool as pool_module

    monkeypatch.setattr(pool_module, "RETRY", 0.2)
    with running(experts_folder, "memory_budget=1.5M", "sequence_memory=0.4M", "preload=[code]") as server:
        pool = server.built.house.pool
        monkeypatch.setattr(pool, "measure", lambda: 0)
        place = pool.places["code@1.0.0"]
        place.num_bytes, place.users = 2**20, place.users + 1
        found = server.chat(model="weather")
        assert found.status_code == 503 and found.json()["error"]["code"] == "no_memory"
        assert found.headers["retry-after"] and list(pool.places) == ["code@1.0.0"]
        place.users -= 1
        assert server.chat(model="weather").status_code == 200


def test_an_expert_that_never_fits_is_refused(experts_folder: Path) -> None:
    with running(experts_folder, "memory_budget=0.5M") as server:
        found = server.chat()
        assert found.status_code == 503 and found.json()["error"]["code"] == "over_memory_budget"
        assert "1.0 MiB" in found.json()["error"]["message"]


def test_an_expert_that_cannot_be_opened_is_refused_alone(experts_folder: Path) -> None:
    opened = Opener(broken="code")
    with running(experts_folder, "preload=[code]", open_with=opened) as server:
        for _ in range(3):
            found = server.chat()
            assert found.status_code == 503 and found.json()["error"]["code"] == "expert_damaged"
            assert "broken tensor" in found.text and str(experts_folder) not in found.text
        assert server.chat(model="weather").status_code == 200
        assert opened.opened.count("code") == 1  # not tried again for a while


@pytest.mark.slow
def test_idle_experts_are_closed(experts_folder: Path) -> None:
    with running(experts_folder, "ttl_seconds=0.2") as server:
        assert server.chat(max_tokens=2).status_code == 200
        assert server.events("expert_closed", 1)[0]["why"] == "idle"
        assert server.chat(max_tokens=2).status_code == 200


@pytest.mark.slow
def test_the_registry_is_looked_at_again(experts_folder: Path, tmp_path: Path, tiny_llama: Path) -> None:
    registry = Registry(tmp_path)
    registry.add("code", "1.0.0", expert_card("code"), tiny_llama)
    with running(tmp_path, "rescan_seconds=0.1") as server:
        assert server.chat("hi", model="code").headers["x-limbeck-expert"] == "code@1.0.0"
        registry.add("code", "1.1.0", expert_card("code"), tiny_llama)
        assert server.events("expert_added", 1)[0]["expert"] == "code@1.1.0"
        assert server.chat("hi", model="code").headers["x-limbeck-expert"] == "code@1.1.0"
        assert server.chat("hi", model="code@1.0.0").headers["x-limbeck-expert"] == "code@1.0.0"
        (tmp_path / "experts" / "code" / "1.1.0" / "expert.json").write_text("{}")
        assert server.events("expert_damaged", 1)[0]["expert"] == "code/1.1.0"
        assert server.chat("hi", model="code").headers["x-limbeck-expert"] == "code@1.0.0"


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["preload=[nobody]"], "nobody"),
        (["upstream.url=http://x", "upstream.model=code"], "two models|Two models"),
        (["routing.fallback=refuse"], "no router"),
        (["upstream.url=http://x", "upstream.model=t", "upstream.api_key_env=NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
    ],
)
def test_settings_that_do_not_fit_the_registry(experts_folder: Path, overrides: list[str], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        run.build(experts_folder, load_serving(None, overrides), on_message=lambda _: None)


def test_a_port_in_use_is_told(server: Any, experts_folder: Path) -> None:
    port = server.url.rpartition(":")[2]
    built = run.build(experts_folder, load_serving(None, [f"port={port}"]), on_message=lambda _: None)
    with pytest.raises(RecipeError, match=port):
        asyncio.run(run.serve_until(asyncio.Event(), built, lambda *_: None))
