"""The capture proxy: what it adds to a request, and how many pass it. A stub upstream, the proxy and its recorder are
processes of their own; the load comes from this one. Direct requests and requests through the proxy take turns.

    python benchmarks/capture.py [--seconds 4] [--rounds 3] [--connections 32]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from limbeck.capture import CaptureSettings
from limbeck.capture.proxy import serve

PROMPT = "Write a short note to the team on what was decided, and who does what until Friday. " * 12
REPLY = "The team decided to ship on Friday. Ann writes the notes, Ben runs the tests, and Cy watches the logs. " * 10
NUM_EVENTS = 50
PACE = 0.002
"""Seconds between the events of a stream whose delay is measured; for the throughput they come as fast as they can."""

KEY = "sk-benchmark-0123456789abcdef"


def request_bytes(kind: str) -> bytes:
    """`kind`: answer, stream or paced."""
    asked = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "stream": kind != "answer", "user": kind}
    body = json.dumps(asked).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def answer_bytes() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": REPLY}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 200, "completion_tokens": 220, "total_tokens": 420}
    answer = {"id": "c", "object": "chat.completion", "model": "m-1", "choices": [choice], "usage": usage}
    body = json.dumps(answer).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def event_bytes(text: str | None) -> bytes:
    """Its id is when it was made: the clock of all processes is the same."""
    delta = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": None if text else "stop"}
    chunk = {"id": time.monotonic_ns(), "object": "chat.completion.chunk", "model": "m", "choices": [delta]}
    data = b"data: %s\n\n" % json.dumps(chunk).encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


# ---- the upstream ----------------------------------------------------------------------------------------------------


class Stub(asyncio.Protocol):
    """Answers at once; streams NUM_EVENTS events, a packet each."""

    def __init__(self) -> None:
        self.received = b""
        self.answer = answer_bytes()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return
        self.received = b""
        if b'"stream": true' in body:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            self.transport.write(head)
            self.stream(0, PACE if b'"paced"' in body else 0.0)
        else:
            self.transport.write(self.answer)

    def stream(self, number: int, pace: float) -> None:
        if number < NUM_EVENTS - 1:
            self.transport.write(event_bytes(f" word{number}"))
            asyncio.get_running_loop().call_later(pace, self.stream, number + 1, pace)
        else:
            self.transport.write(event_bytes(None) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


async def run_stub() -> None:
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def run_proxy(upstream: str, store: str, sample: float) -> None:
    async with serve(CaptureSettings(upstream, Path(store), port=0, sample=sample)) as proxy:
        print(proxy.address[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(json.dumps(proxy.status()), flush=True)


# ---- the load --------------------------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """One connection, one request after the other. `seconds` of every request; of a paced stream, of every event."""

    def __init__(self, kind: str, deadline: float) -> None:
        self.request, self.paced, self.deadline = request_bytes(kind), kind == "paced", deadline
        self.end = answer_bytes()[-24:] if kind == "answer" else b"\n0\r\n\r\n"
        self.seconds: list[float] = []
        self.num_requests = 0
        self.done = asyncio.get_running_loop().create_future()
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.begun = time.monotonic()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self.paced:
            self.seconds += [now - int(made) / 1e9 for made in re.findall(rb'"id": (\d+),', data)]
        self.tail = (self.tail + data)[-len(self.end) :]
        if self.tail != self.end:
            return
        self.tail = b""
        self.num_requests += 1
        if not self.paced:
            self.seconds.append(now - self.begun)
        if now < self.deadline:
            self.ask()
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))


async def load(port: int, kind: str, connections: int, seconds: float) -> tuple[int, list[float]]:
    """Requests, and the seconds of each or of their events."""
    loop = asyncio.get_running_loop()
    deadline = time.monotonic() + seconds
    made = [await loop.create_connection(lambda: Client(kind, deadline), "127.0.0.1", port) for _ in range(connections)]
    await asyncio.gather(*(client.done for _, client in made))
    return sum(client.num_requests for _, client in made), [each for _, client in made for each in client.seconds]


@contextlib.contextmanager
def started(*args: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, __file__, *args]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def measure(args: argparse.Namespace, direct: int, proxy: int) -> int:
    """Print the figures; how many requests went through the proxy."""
    passed = 0
    where = {"direct": direct, "through the proxy": proxy}

    def rounds(kind: str, connections: int, seconds: float) -> dict[str, list[tuple[float, list[float]]]]:
        """Requests per second and times of every round, by way; the ways take turns."""
        nonlocal passed
        found: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in where}
        for _ in range(args.rounds):
            for name, port in where.items():
                begun = time.monotonic()
                number, times = asyncio.run(load(port, kind, connections, seconds))
                found[name].append((number / (time.monotonic() - begun), times))
                passed += number if port == proxy else 0
        return found

    rounds("answer", 4, 0.3)
    for kind, name in (("answer", "a request"), ("paced", f"an event of a stream, {1e3 * PACE:g} ms apart")):
        found = rounds(kind, 1, args.seconds / 2)
        quantiles = {
            way: [1e3 * statistics.quantiles([one for _, times in runs for one in times], n=100)[at] for at in (49, 98)]
            for way, runs in found.items()
        }
        both = ", ".join(f"{median:.2f} ms (99% within {slow:.2f}) {way}" for way, (median, slow) in quantiles.items())
        added = quantiles["through the proxy"][0] - quantiles["direct"][0]
        print(f"{name}, one at a time: {both}: {added:+.2f} ms at the median")
    for kind, name in (("answer", "answers"), ("stream", f"streams of {NUM_EVENTS} events")):
        found = rounds(kind, args.connections, args.seconds)
        rates = {way: statistics.median(rate for rate, _ in runs) for way, runs in found.items()}
        both = ", ".join(f"{rate:,.0f}/s {way}" for way, rate in rates.items())
        print(f"{name}, {args.connections} connections: {both}")
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--sample", type=float, default=1.0)
    parser.add_argument("--stub", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--proxy", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stub:
        asyncio.run(run_stub())
    elif args.proxy:
        upstream, store = args.proxy
        asyncio.run(run_proxy(upstream, store, args.sample))
    else:
        print(f"# Python {sys.version.split()[0]}, {len(os.sched_getaffinity(0))} cores, all processes on them")
        with tempfile.TemporaryDirectory() as folder, started("--stub") as (_, direct):
            url, store = f"http://127.0.0.1:{direct}", f"{folder}/store"
            with started("--proxy", url, store, "--sample", str(args.sample)) as (process, proxy):
                passed = measure(args, direct, proxy)
                out, _ = process.communicate(timeout=60)
            status = json.loads(out)
            print(
                f"passed {passed}; recorded {status['recorded']}, dropped {status['dropped']}, failed, unreadable, "
                f"waiting: {status['failed']}, {status['unreadable']}, {status['waiting']}; "
                f"{sum(file.stat().st_size for file in Path(store).iterdir()) / 2**20:.0f} MiB"
            )


if __name__ == "__main__":
    main()
