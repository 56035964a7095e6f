"""The store: whole lines whatever happens to it, and traffic that does not notice."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from limbeck.capture.exchange import Frame, pack, record_of, take
from limbeck.capture.recorder_link import is_sampled
from limbeck.errors import CaptureError
from limbeck.system.sealed import sealed_line
from limbeck.text.redact import make_redactor
from tests.capture.conftest import KEY, chat, post, status_of
from tests.endpoint import fake_answers as up

META = {
    **{"id": "r", "time": 1e9, "conversation": "", "path": "/v1/chat/completions", "request-encoding": ""},
    **{"content-encoding": "", "content-type": "application/json", "whole": True, "first_byte": 0.1, "seconds": 0.2},
    **{"tags": {}, "secrets": []},
}
CLEAN = make_redactor(("all",))


def record(asked: object, answer: object, **meta: object) -> dict:
    bodies = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in (asked, answer)]
    return record_of(Frame({**META, **meta}, *bodies), CLEAN, {})


async def ask(at, number: int, first: int = 0) -> None:
    """Traffic, which must be well."""
    for each in range(first, first + number):
        through = await at.raw(post("/v1/chat/completions", chat(f"question {each}")))
        assert status_of(through) == 200 and b"Four, of course." in through


# ---- records ---------------------------------------------------------------------------------------------------------


def test_the_fields_of_a_record():
    asked = chat(
        "Hi", temperature=0.5, seed=3, api_key="unknown fields are not kept", user="nor this", tools=[{"a": 1}]
    )
    answer = up.completion(asked, "Yes")
    assert record(asked, answer) == {
        "version": 1, "id": "r", "time": "2001-09-09T01:46:40.000+00:00", "conversation": "",
        "path": "/v1/chat/completions", "model_asked": "m", "model": "m-2026-01-01",
        "messages": [{"role": "user", "content": "Hi"}], "tools": [{"a": 1}],
        "replies": [{"index": 0, "content": "Yes", "finish_reason": "stop"}], "finish_reasons": ["stop"],
        "usage": up.USAGE, "sampling": {"temperature": 0.5, "seed": 3}, "stream": False,
        "seconds": {"first_byte": 0.1, "total": 0.2}, "tags": {}, "system_fingerprint": up.FINGERPRINT,
    }  # fmt: skip


def test_log_probabilities_go_when_their_text_was_redacted():
    """They would spell it out, token by token."""
    asked = chat("Hi", logprobs=True)
    for text, kept in (("All is well", True), ("Write to bob@x.example", False)):
        found = record(asked, up.completion(asked, text))
        assert ("logprobs" in found["replies"][0]) == kept
        assert "bob" not in json.dumps(found)
    asked = {"model": "m", "prompt": "bob@x.example", "logprobs": 1, "echo": True}
    answer = up.completion(asked, "fine")
    answer["choices"][0]["logprobs"]["tokens"] = ["bob", "@x", ".example", " fine"]
    assert "bob" not in json.dumps(record(asked, answer))


def test_images_are_kept_as_their_hash():
    url = "data:image/png;base64," + "A" * 5000
    parts = [{"type": "text", "text": "See" + " long" * 100}, {"type": "image_url", "image_url": {"url": url}}]
    found = record(chat(parts), up.completion(chat(), "Yes"))["messages"][0]["content"]
    assert found[0] == parts[0]
    assert found[1]["image_url"]["url"].startswith("data:image/png;sha256=") and len(str(found)) < 1000


@pytest.mark.parametrize("pack_", [gzip.compress, zlib.compress, lambda data: zlib.compress(data)[2:-4]])
def test_packed_bodies(pack_):
    encoding = "gzip" if pack_ is gzip.compress else "deflate"
    body = pack_(json.dumps(up.completion(chat(), "packed")).encode())
    assert record(chat(), body, **{"content-encoding": encoding})["replies"][0]["content"] == "packed"


@pytest.mark.parametrize(
    ("asked", "answer", "meta"),
    [
        (b"no json", {}, {}), (b"[]", {}, {}), (b"\xff", {}, {}), (b"[" * 100_000, {}, {}),
        (chat(), b"<html>", {}), (chat(), {"error": {}}, {}), (chat(), {"choices": []}, {}),
        (chat(), {"choices": [1]}, {}),
        ({"model": "m"}, {"choices": [{}]}, {}), ({"messages": ["a"]}, {"choices": [{}]}, {}),
        (chat(), b"x", {"content-encoding": "br"}), (chat(), b"x", {"content-encoding": "gzip"}),
        (chat(), gzip.compress(b"a" * 2**27), {"content-encoding": "gzip"}),
        (chat(), b"data: {}\n\n", {"content-type": "text/event-stream"}),
    ],
)  # fmt: skip
def test_what_is_no_exchange(asked, answer, meta):
    with pytest.raises(CaptureError):
        record(asked, answer, **meta)


def test_half_characters_and_line_ends_stay_on_their_line():
    line = sealed_line(record(chat("\ud800 \u2028 \n"), up.completion(chat(), "é")))
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert json.loads(line)["messages"][0]["content"] == "\ud800 \u2028 \n"


def test_frames_in_any_pieces():
    stream = b"".join(pack({"n": n}, b"a" * n, b"b") for n in range(20))
    buffer, found = bytearray(), []
    for at in range(0, len(stream), 7):
        buffer += stream[at : at + 7]
        found += take(buffer)
    assert [(frame.meta["n"], len(frame.request)) for frame in found] == [(n, n) for n in range(20)]
    assert not buffer


def test_sampling_is_a_function_of_the_key_and_of_the_right_share():
    kept = {key for key in map(str, range(20_000)) if is_sampled(key, 0.1)}
    assert 1850 < len(kept) < 2150
    assert kept == {key for key in map(str, range(20_000)) if is_sampled(key, 0.1)}
    assert kept < {key for key in map(str, range(20_000)) if is_sampled(key, 0.2)}
    assert all(is_sampled(str(number), 1.0) for number in range(100))


# ---- the store and what may happen to it -----------------------------------------------------------------------------


def test_conversations_are_sampled_whole(running):
    async def main():
        async with running(sample=0.5) as at:
            for number in range(20):
                header = f"x-limbeck-conversation: talk {number // 2}"
                await at.raw(post("/v1/chat/completions", chat(), header))
            status = await at.settled(20)
        talks = [record["conversation"] for record in at.records()]
        assert sorted(talks) == sorted(f"talk {n}" for n in range(10) if is_sampled(f"talk {n}", 0.5) for _ in "ab")
        assert status["recorded"] == len(talks) and status["sampled_out"] == 20 - len(talks)

    asyncio.run(main())


def test_segments_are_bounded_and_for_the_owner_alone(running):
    async def main():
        async with running(segment_bytes=2000) as at:
            await ask(at, 12)
            await at.settled(12)
        files = sorted(at.store.glob("capture-*.jsonl"))
        assert len(files) > 2 and all(file.stat().st_size <= 2000 for file in files)
        assert len(at.records()) == 12
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert stat.S_IMODE(at.store.stat().st_mode) == 0o700

    asyncio.run(main())


def test_a_full_store_records_no_more(running):
    async def main():
        async with running(max_bytes=3000) as at:
            await ask(at, 12)
            status = await at.settled(12)
            assert status["full"] > 0 and status["recorded"] > 0 and "limit" in status["trouble"]
        assert sum(file.stat().st_size for file in at.store.glob("*.jsonl")) <= 3000
        assert len(at.records()) == status["recorded"]

    asyncio.run(main())


def test_a_folder_that_is_deleted(running):
    async def main():
        async with running() as at:
            await ask(at, 2)
            await at.settled(2)
            shutil.rmtree(at.store)
            await ask(at, 2)
            status = await at.settled(4)
            assert status["failed"] == 2 and "cannot be written" in status["trouble"]
            await asyncio.sleep(0.3)  # the time after which the store is tried again
            await ask(at, 1)
            status = await at.settled(5)
            assert status["recorded"] == 3 and status["trouble"] == ""
        assert len(at.records()) == 1

    asyncio.run(main())


def test_a_store_that_becomes_a_file(running):
    async def main():
        async with running() as at:
            shutil.rmtree(at.store)
            at.store.write_text("in the way")
            for number in range(3):
                await ask(at, 1)
                await at.settled(number + 1)
                await asyncio.sleep(0.25)
            assert at.proxy.status()["failed"] == 3

    asyncio.run(main())


def test_files_may_not_grow(running, monkeypatch):
    """A limit on the size of files, which is a full disk for whoever meets it: half a line is taken back."""
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)); import limbeck.capture.recorder as r; r.main()"
    real = asyncio.create_subprocess_exec

    def limit(*command, **how):
        return real(command[0], "-c", limited, **how)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", limit)

    async def main():
        async with running(retry_seconds=60) as at:
            await ask(at, 10)
            status = await at.settled(10)
            assert status["failed"] >= 5 and "File too large" in status["trouble"]
        for file in at.store.glob("*.jsonl"):
            assert file.read_bytes().endswith(b"\n") or not file.stat().st_size
        assert len(at.records()) == 10 - status["failed"] or len(at.records()) < 5

    asyncio.run(main())


def test_a_recorder_that_stands_still(running):
    """The queue is bounded: what does not fit is dropped and counted, and traffic goes on."""

    async def main():
        async with running(max_pending=100_000) as at:
            pid = at.proxy.tap._process.pid
            os.kill(pid, signal.SIGSTOP)
            for _ in range(30):
                through = await at.raw(post("/v1/chat/completions", chat("x" * 20_000)))
                assert status_of(through) == 200
            assert 15 < at.proxy.status()["dropped"] < 30
            os.kill(pid, signal.SIGCONT)
            status = await at.settled(30)
            assert status["recorded"] == 30 - status["dropped"]

    asyncio.run(main())


def test_a_recorder_that_is_killed_is_started_again(running, caplog):
    caplog.set_level(logging.INFO, "limbeck")

    async def main():
        async with running() as at:
            await ask(at, 3)
            await at.settled(3)
            pid = at.proxy.tap._process.pid
            os.kill(pid, signal.SIGKILL)
            await ask(at, 2)
            async with asyncio.timeout(20):
                while (process := at.proxy.tap._process) is None or process.pid == pid or at.proxy.status()["trouble"]:
                    await asyncio.sleep(0.02)
            await ask(at, 4)
            status = await at.settled(9)
            assert (status["recorded"], status["dropped"]) == (7, 2)
        assert len(at.records()) == 7 and len(list(at.store.glob("*.jsonl"))) == 2

    asyncio.run(main())
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert any(level == "WARNING" and text.startswith("the recorder ended") for level, text in said)
    assert ("INFO", "the recorder was started again") in said


def test_a_pattern_that_never_ends(running):
    """A regular expression of the user's own that backtracks for ever stops the recorder, and nothing else."""

    async def main():
        async with running(redact=(r"bad=(a+)+b",), max_pending=2000) as at:
            await at.raw(post("/v1/chat/completions", chat("a" * 60)))
            await ask(at, 5)
            assert at.proxy.status()["recorded"] == 0
            os.kill(at.proxy.tap._process.pid, signal.SIGKILL)

    asyncio.run(main())


PROXY = """
import asyncio, sys
from pathlib import Path
from limbeck.capture import CaptureSettings
from limbeck.capture.proxy import serve

async def main():
    async with serve(CaptureSettings(sys.argv[1], Path(sys.argv[2]), port=0)) as proxy:
        print(proxy.address[1], flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("who", ["proxy", "group"])
def test_kill_9_keeps_whole_lines(running, who, tmp_path):
    """The proxy is killed in the middle of traffic, and started again on the same folder."""
    store = tmp_path / "killed"
    root = str(Path(__file__).parents[2])

    async def round_(at, first: int) -> int:
        command = [sys.executable, "-c", PROXY, at.upstream.root, str(store)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root})
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        answered = 0

        async def traffic():
            nonlocal answered
            while True:
                request = post("/v1/chat/completions", chat(f"question {first + answered} " + "x" * 5000))
                through = await at.raw(request, to=port)
                answered += b"Four, of course." in through

        with contextlib.suppress(TimeoutError, ConnectionError, OSError):
            async with asyncio.timeout(0.4):
                await traffic()
        if who == "group":
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdout.close()
        return answered

    async def main():
        async with running() as at:
            answered = [await round_(at, first) for first in (0, 10**6)]
            await asyncio.sleep(0.5)
            lines = [line for file in sorted(store.glob("*.jsonl")) for line in file.read_bytes().split(b"\n")[:-1]]
            texts = [json.loads(line)["messages"][0]["content"].split(" ")[1] for line in lines]
            assert len(texts) == len(set(texts)) and len(texts) > 10
            # The last one may have been recorded and not have reached the client any more.
            asked = [*range(answered[0] + 1), *range(10**6, 10**6 + answered[1] + 1)]
            assert set(map(int, texts)) <= set(asked)

    asyncio.run(main())


def test_the_canary(running, tmp_path, caplog):
    """The client's key is in its headers, its query, its text, its metadata and the answer, plain and inside JSON; it
    is in no file, no status and no log."""

    async def answer(request):
        assert request.header("Authorization") == f"Bearer {KEY}" and KEY in request.path
        yield up.as_json(up.completion(request.json(), f"Your key {KEY} is fine"))

    shape = "not-a-known-shape!"

    async def main():
        async with running(answer, redact=("none",)) as at:
            for secret in (KEY, shape):
                calls = [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"k": secret})}}
                ]
                messages = [
                    {"role": "user", "content": f"I use {secret}"},
                    {"role": "assistant", "content": None, "tool_calls": calls},
                ]
                asked = {
                    "model": f"m-{secret}",
                    "messages": messages,
                    "metadata": {secret: secret},
                    "api_key": secret,
                    "tools": [{"description": secret}],
                    "stop": [secret],
                    "user": secret,
                }
                headers = [
                    f"Authorization: Bearer {KEY}",
                    f"api-key: {shape}",
                    f"x-limbeck-tag-a: {secret}",
                    f"x-limbeck-conversation: {secret}",
                    f"x-request-id: {secret}",
                ]
                through = await at.raw(post(f"/v1/chat/completions?key={KEY}", asked, *headers))
                assert KEY.encode() in through
            status = await at.settled(2)
            assert status["recorded"] == 2
        written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        told = written.decode() + json.dumps(status) + caplog.text + "".join(map(str, tmp_path.rglob("*")))
        assert written.count(b"I use [key]") == 2
        for secret in (KEY, KEY[:16], KEY[-12:], shape):
            assert secret not in told

    asyncio.run(main())
