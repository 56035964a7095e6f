"""`limbeck capture` as it is run: its lines, its end, and its refusals; and captured traffic as a transfer set."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.capture.run import counts
from limbeck.data import read_examples
from limbeck.recipe import CapturedSource
from tests.capture.conftest import KEY, chat, post, status_of
from tests.endpoint import fake_answers as up
from tests.endpoint.fake_server import FakeServer

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def limbeck(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limbeck", "capture", *args]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_from_the_command_line(tmp_path, number):
    """It tells where it listens, records, and ends with its counts when it is asked to."""
    store = tmp_path / "traffic"
    more = ["--port", "0", "--redact", "email", "--redact", r"ticket=TCK-\d+", "--tag", "app=desk", "--max-bytes", "1G"]

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/v1/chat/completions", chat("TCK-77 of a@b.example"), f"Authorization: Bearer {KEY}"))
        answer = await reader.read()
        writer.close()
        return answer

    async def main():
        async with FakeServer(up.assistant()) as upstream:
            command = [sys.executable, "-m", "limbeck", "capture", "--upstream", upstream.root, "--store", str(store)]
            process = await asyncio.create_subprocess_exec(*command, *more, stderr=subprocess.PIPE, env=ENV)
            assert process.stderr is not None
            first = (await process.stderr.readline()).decode()
            assert first.startswith(f"capturing {upstream.root} in {store}; clients use base_url http://127.0.0.1:")
            answer = await ask(int(first.partition("base_url http://127.0.0.1:")[2].partition("/")[0]))
            assert status_of(answer) == 200
            process.send_signal(number)
            rest = (await process.stderr.read()).decode()
            assert await process.wait() == 0
            assert rest == "stopped. 1 requests: 1 completions recorded.\n"
            assert KEY not in first + rest

    asyncio.run(main())
    (example,) = read_examples(CapturedSource(path=str(store)), bad_rows="stop", on_bad=print)
    assert example.messages is not None
    assert [message["content"] for message in example.messages] == ["[ticket] of [email]", "Four, of course."]
    (line,) = (store / "capture-00000.jsonl").read_text().splitlines()
    assert json.loads(line)["tags"] == {"app": "desk"}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--host", "0.0.0.0"], 2, "--allow-remote"),
        (["--tag", "desk"], 2, "is not NAME=VALUE"),
        (["--redact", "names"], 2, "allowed are all, none"),
        (["--max-bytes", "much"], 2, "is no size"),
        (["--upstream", "file:///etc"], 2, "allowed are http and https"),
    ],
)
def test_refusals(tmp_path, args, code, message):
    out = limbeck("--store", str(tmp_path / "s"), "--upstream", "http://127.0.0.1:1", *args)
    assert out.returncode == code and "Traceback" not in out.stderr
    assert message in " ".join(out.stderr.replace("│", " ").split())
    assert not (tmp_path / "s").exists()


def test_counts_in_words():
    zero = dict.fromkeys(("sampled_out", "dropped", "failed", "full", "too_large", "unreadable", "waiting", "cut"), 0)
    assert counts({**zero, "requests": 3, "recorded": 2}) == "3 requests: 2 completions recorded."
    many = {**zero, "requests": 1204, "recorded": 1180, "cut": 3, "full": 4, "failed": 1, "sampled_out": 9}
    assert counts(many) == (
        "1,204 requests: 1,180 completions recorded (3 cut), 9 sampled out, 1 lost by the store, "
        "4 not kept by the full store."
    )
