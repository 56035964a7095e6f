"""What the server adds to its engine: tokens a second at 8 streams, time to first token, the router, idle connections.

    python benchmarks/serve_http.py            # the demo teacher's model as the expert
    python benchmarks/serve_http.py --tiny     # a model whose steps take almost no time: the worst case

Engine and server are the same object in one process; clients are a process of their own. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from limbeck.engine.api import GenerateRequest
from limbeck.experts import ExpertCard, Registry, Scope
from limbeck.models.gguf_import import resolve_model
from limbeck.serve import run
from limbeck.serve.settings import load_serving
from limbeck.system.device import resident_memory
from limbeck.text.chat_template import ChatTemplate
from limbeck.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAMS, TOKENS, ROUNDS, IDLE = 8, 64, 5, 1000
PROMPT = "Write a function that reads a file line by line and counts the words in it."


@contextlib.contextmanager
def running(registry: Path) -> Iterator[tuple[str, run.Built, asyncio.AbstractEventLoop]]:
    settings = load_serving(None, ["port=0", "preload=[expert]", "limits.header_seconds=120", f"slots={STREAMS}"])
    built = run.build(registry, settings, on_message=lambda _: None)
    loop, asked, ready, at = asyncio.new_event_loop(), asyncio.Event(), threading.Event(), [""]

    def listening(host: str, port: int) -> None:
        at[0] = f"http://{host}:{port}"
        ready.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run.serve_until(asked, built, listening)))
    thread.start()
    ready.wait(120)
    try:
        yield at[0], built, loop
    finally:
        loop.call_soon_threadsafe(asked.set)
        thread.join()


async def bare(engine: Any, ids: np.ndarray, streams: int, tokens: int) -> tuple[float, float]:
    """Tokens a second of all streams together, and the median time to the first token."""
    firsts, counts, begun = [], [], time.perf_counter()

    async def one(index: int) -> None:
        async with contextlib.aclosing(engine.write(GenerateRequest(ids, sampling(tokens, index), 0))) as written:
            count = 0
            async for _ in written:
                if not count:
                    firsts.append(time.perf_counter() - begun)
                count += 1
            counts.append(count)

    await asyncio.gather(*(one(index) for index in range(streams)))
    return sum(counts) / (time.perf_counter() - begun), statistics.median(firsts)


def sampling(tokens: int, seed: int) -> Sampling:
    return Sampling(temperature=1.0, max_tokens=tokens, seed=seed)


async def _served(url: str, streams: int, tokens: int) -> tuple[float, float]:
    firsts, counts = [], []
    async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        await asyncio.gather(*(client.get("/health") for _ in range(streams)))  # connections are there
        begun = time.perf_counter()

        async def one(index: int) -> None:
            body = {"model": "expert", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens}
            body |= {"stream": True, "seed": index, "stream_options": {"include_usage": True}}
            first = True
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if first and '"content":"' in line and '"role"' not in line:
                        firsts.append(time.perf_counter() - begun)
                        first = False
                    if '"usage":{' in line:
                        counts.append(json.loads(line[6:])["usage"]["completion_tokens"])

        await asyncio.gather(*(one(index) for index in range(streams)))
        return sum(counts) / (time.perf_counter() - begun), statistics.median(firsts)


def client(url: str, pipe: Any) -> None:
    while (told := pipe.recv()) is not None:
        pipe.send(asyncio.run(_served(url, *told)))


def idle_connections(url: str) -> float:
    """MiB that so many open connections add to the server's process."""
    host, _, port = url.removeprefix("http://").partition(":")
    before = resident_memory()
    with contextlib.ExitStack() as held:
        for _ in range(IDLE):
            one = held.enter_context(socket.create_connection((host, int(port))))
            one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            one.recv(4096)
        return (resident_memory() - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        if chosen.tiny:
            from tests import tiny

            model = tiny.save_folder(path / "tiny", max_position_embeddings=512)
        else:
            model = Path(resolve_model("smollm2-135m"))
        Registry(path / "registry").add("expert", "1.0.0", ExpertCard(Scope("anything", chat=True)), model)
        with running(path / "registry") as (url, built, loop):
            report(url, built, loop, chosen.rounds)


def report(url: str, built: run.Built, loop: asyncio.AbstractEventLoop, rounds: int) -> None:
    place = next(iter(built.house.pool.places.values()))
    assert place.opened is not None
    opened = place.opened
    turns = [{"role": "user", "content": PROMPT}]
    prompt = ChatTemplate(opened.lm.tokenizer).prompt(turns, "prompt")
    ids = np.asarray(opened.lm.tokenizer(prompt)["input_ids"], dtype=np.int32)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=client, args=(url, theirs), daemon=True)
    process.start()

    def served(streams: int, tokens: int) -> tuple[float, float]:
        ours.send((streams, tokens))
        return ours.recv()

    def alone(streams: int, tokens: int) -> tuple[float, float]:
        return asyncio.run_coroutine_threadsafe(bare(opened.engine, ids, streams, tokens), loop).result()

    print(f"{torch.get_num_threads()} threads, {os.cpu_count()} cores, {len(ids)} tokens of prompt, {TOKENS} written")
    for streams in (1, STREAMS):
        found: dict[str, list[tuple[float, float]]] = {"engine": [], "server": []}
        for number in range(rounds + 1):
            for name, work in (("engine", alone), ("server", served)):
                result = work(streams, TOKENS)
                if number:  # the first warms up
                    found[name].append(result)
        rate = {name: statistics.median(one[0] for one in rows) for name, rows in found.items()}
        first = {name: statistics.median(one[1] for one in rows) for name, rows in found.items()}
        print(
            f"{streams} streams: engine {rate['engine']:.0f} tokens/s, server {rate['server']:.0f} "
            f"({rate['server'] / rate['engine']:.3f}); first token {1e3 * first['engine']:.1f} ms, "
            f"{1e3 * first['server']:.1f} ms ({first['server'] / first['engine']:.2f})"
        )
    ours.send(None)
    process.join()
    print(f"{IDLE} idle connections: {idle_connections(url):.1f} MiB")


if __name__ == "__main__":
    main()
