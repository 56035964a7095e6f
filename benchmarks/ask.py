"""Asking an endpoint: requests per second against what latency and concurrency allow, and memory over many requests.

    python benchmarks/ask.py [--requests 6400] [--latency 0.2] [--concurrency 64]
    python benchmarks/ask.py --requests 200000 --latency 0.02     # memory; the rate is then the processor's

The endpoint is a stub in a process of its own on loopback that answers after `--latency` seconds; everything else is
real: the official client, the journal with its fsyncs, tokens, shards. The bound is concurrency / latency.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.data import row_id
from limbeck.label.remote import run_ask
from limbeck.label.replies import keep_text
from limbeck.models.gguf_import import resolve_model
from limbeck.recipe import Recipe
from limbeck.system.device import resident_memory
from limbeck.text.encode import Encoder, Example
from limbeck.text.tokenizer import load_tokenizer
from limbeck.types import Callbacks, Progress, Row

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from transformers import PreTrainedTokenizerBase

REPLY = (
    b'{"id":"x","object":"chat.completion","created":0,"model":"stub","system_fingerprint":"fp","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":32,"completion_tokens":48,"total_tokens":80}}'
) % (b"The wren is a small bird that sings louder than birds ten times its size. " * 3)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(REPLY)


class Stub(asyncio.Protocol):
    """One connection: every request is answered alike, after `latency` seconds."""

    def __init__(self, latency: float) -> None:
        self.latency, self.buffer = latency, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.index(b"content-length:") + len(b"content-length:")
            whole = end + 4 + int(head[at:].split(b"\r\n", 1)[0])
            if len(self.buffer) < whole:
                return
            self.buffer = self.buffer[whole:]
            asyncio.get_running_loop().call_later(self.latency, self.transport.write, HEAD + REPLY)


async def serve(latency: float, told: Connection) -> None:
    server = await asyncio.get_running_loop().create_server(partial(Stub, latency), "127.0.0.1", 0, backlog=1024)
    told.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def run_stub(latency: float, told: Connection) -> None:
    asyncio.run(serve(latency, told))


def recipe_of(port: int, concurrency: int, mode: dict[str, Any] | None = None) -> Recipe:
    endpoint = {"kind": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "model": "stub", "api_key_env": None}
    return Recipe.model_validate(
        {
            "name": "ask",
            "teacher": {**endpoint, "concurrency": concurrency},
            "data": {"source": {"kind": "files", "path": "unused.jsonl"}},
            "trace": {"mode": mode or {"kind": "generate", "max_tokens": 64}, "target": {"kind": "text"}},
            "objective": {"ce_weight": 1.0},
            "student": {"kind": "pretrained", "path": "unused"},
            "train": {"budget": {"kind": "steps", "steps": 1}},
        }
    )


def prompts(tokenizer: PreTrainedTokenizerBase, count: int) -> list[Row]:
    encoder = Encoder(tokenizer, max_length=512, need_reply=False)
    rows = []
    for number in range(count):
        example = Example(prompt=f"Tell me something about bird number {number} of the list.", source=f"birds:{number}")
        made = encoder.encode(example)
        rows.append(Row(row_id(made.text), "train", "", made.text, made.ids, (), "", encoder.asked(example)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=6400)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--concurrency", type=int, default=64)
    args = parser.parse_args()
    tokenizer = load_tokenizer(resolve_model("smollm2-135m"))
    rows = prompts(tokenizer, args.requests)
    ours, theirs = multiprocessing.Pipe()
    stub = multiprocessing.get_context("spawn").Process(target=run_stub, args=(args.latency, theirs), daemon=True)
    stub.start()
    samples: list[tuple[float, float, float]] = []  # replies, seconds, MiB

    def watch(progress: Progress) -> None:
        if not samples or progress.done >= samples[-1][0] + args.requests / 10:
            samples.append((progress.done, time.perf_counter() - begun, resident_memory() / 2**20))

    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(ours.recv(), args.concurrency)
        begun = time.perf_counter()
        cpu = time.process_time()
        callbacks = Callbacks(watch, print, lambda: False)
        run_ask(recipe, Path(folder) / "traces", keep_text(recipe, tokenizer), rows, callbacks)
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
        journal = (Path(folder) / "traces" / "journal.jsonl").stat().st_size / 2**20
    stub.terminate()
    for replies, seconds, mib in samples:
        print(f"{replies:9,.0f} replies {seconds:7.1f} s {mib:7.0f} MiB resident")
    bound = args.concurrency / args.latency
    steady = (samples[-1][0] - samples[1][0]) / (samples[-1][1] - samples[1][1])
    print(
        f"# latency {args.latency:g} s, {args.concurrency} at once, {os.cpu_count()} cores; journal {journal:.0f} MiB"
    )
    print(f"# {cpu / args.requests * 1e3:.2f} ms of processor time a request; the bound is {bound:.0f} requests/s")
    for name, rate in (("with start and end", args.requests / wall), ("after the first tenth", steady)):
        print(f"{rate:.0f} requests/s {name}, {rate / bound:.1%} of the bound")


if __name__ == "__main__":
    main()
