"""Serving: the batching engine against a bare loop of forwards, one stream and many, and the time to the first token.

    python benchmarks/serve.py engine [--streams 8] [--tokens 48] [--rounds 5] [--dtype auto]
    python benchmarks/serve.py gguf [--quant q8_0]        # the same file in llama.cpp, in batches and in turns
    python benchmarks/serve.py memory [--requests 1000]

"bare loop" is the least that a program could do by itself with transformers: one left-padded batch, prefilled once,
then a forward with its cache and an argmax per step; no text, no log-probs, nobody joins or leaves. All run in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import interleave, machine, stdlib_rows, teacher

from limbeck.engine.api import GenerateRequest
from limbeck.engine.batching import BatchEngine
from limbeck.engine.serial import SerialEngine
from limbeck.export.gguf import write_gguf
from limbeck.models.hf import HfLM, attending
from limbeck.models.llamacpp import LlamaLM
from limbeck.system.device import resident_memory
from limbeck.types import Sampling

PROMPT, LONG_PROMPT = 48, 384
DRAWN = {"temperature": 0.8, "top_p": 0.95}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48, help="of each reply")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--quant", default="q8_0")
    args = parser.parse_args()
    PARTS[args.part](args)


def engine_part(args) -> None:
    warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
    lm = teacher(args.dtype)
    lm.model.generation_config.eos_token_id = None  # all replies are of one length
    lm.tokenizer.eos_token = None
    ids = np.concatenate([row.ids for row in stdlib_rows(lm, 80)])
    work = Work(lm, BatchEngine(lm, slots=args.streams, max_context=1024), ids, args.tokens)
    lengths = [PROMPT] * args.streams
    mixed = [PROMPT + 40 * at for at in range(args.streams)]
    seconds = interleave(
        {
            "bare 1": lambda: work.bare(lengths[:1]),
            "engine 1": lambda: work.engine_(lengths[:1]),
            f"bare {args.streams}": lambda: work.bare(lengths),
            f"engine {args.streams}": lambda: work.engine_(lengths),
            f"engine {args.streams}, drawn": lambda: work.engine_(lengths, **DRAWN),
            f"engine {args.streams}, mixed lengths": lambda: work.engine_(mixed),
            "bare prefill": lambda: work.bare_prefill(LONG_PROMPT),
            "engine, first token": lambda: work.first(LONG_PROMPT),
        },
        args.rounds,
    )
    work.engine.close()
    report(args, lm, seconds)


def gguf_part(args) -> None:
    source = teacher("bfloat16")
    ids = np.concatenate([row.ids for row in stdlib_rows(source, 80)])
    with tempfile.TemporaryDirectory() as folder:
        write_gguf(Path(folder), source, quant=args.quant)
        lm = replace(LlamaLM.open(folder), end_ids=[])  # all replies are of one length
        del source
        engines = {"batches": BatchEngine(lm, max_context=1024), "turns": SerialEngine(lm, slots=8, max_context=1024)}
        works = {name: Work(lm, engine, ids, args.tokens) for name, engine in engines.items()}
        seconds = interleave(
            {
                f"{name}, {num} streams": lambda name=name, num=num: works[name].engine_([PROMPT] * num)
                for num in (1, args.streams)
                for name in works
            },
            args.rounds,
        )
        print(f"# {machine()}, GGUF {args.quant}, prompts of {PROMPT} tokens, replies of {args.tokens}")
        for name, value in seconds.items():
            num = int(name.split()[1])
            print(f"{name:28}{value * 1e3:8.0f} ms{num * args.tokens / value:10.1f} tokens/s")
        for engine in engines.values():
            engine.close()


def report(args, lm: HfLM, seconds: dict[str, float]) -> None:
    num, tokens = args.streams, args.tokens
    rate = {name: (num if str(num) in name else 1) * tokens / value for name, value in seconds.items()}
    print(f"# {machine()}, {lm.name} in {lm.dtype}, prompts of {PROMPT} tokens, replies of {tokens}")
    print(f"{'':28}{'ms':>8}{'tokens/s':>10}")
    for name, value in seconds.items():
        shown = "" if "first" in name or "prefill" in name else f"{rate[name]:10.1f}"
        print(f"{name:28}{value * 1e3:8.0f}{shown}")
    print(f"{num} streams against one: {rate[f'engine {num}'] / rate['engine 1']:.2f} times the tokens/s (at least 3)")
    first = seconds["engine, first token"] / seconds["bare prefill"]
    print(f"time to the first token, prompt of {LONG_PROMPT}: {first:.2f} of the bare prefill (at most 1.1)")
    for count in (1, num):
        print(f"engine over the bare loop at {count}: {seconds[f'engine {count}'] / seconds[f'bare {count}']:.2f}")
    print(f"drawn over greedy: {seconds[f'engine {num}, drawn'] / seconds[f'engine {num}']:.2f}")


@dataclass
class Work:
    lm: HfLM | LlamaLM
    engine: BatchEngine | SerialEngine
    ids: np.ndarray
    tokens: int
    at: int = 0

    def prompts(self, lengths: list[int]) -> list[np.ndarray]:
        """Other text each time, so that nothing stands in memory already."""
        out = []
        for length in lengths:
            self.at = (self.at + 997) % (len(self.ids) - length)
            out.append(self.ids[self.at : self.at + length])
        return out

    def bare(self, lengths: list[int]) -> None:
        model = self.lm.model
        ids_BT = torch.from_numpy(np.stack(self.prompts(lengths)).astype(np.int64))
        with torch.inference_mode(), attending(model, "sdpa"):
            out = model(ids_BT, use_cache=True, logits_to_keep=1)
            for _ in range(self.tokens - 1):
                next_B1 = out.logits[:, -1:].argmax(-1)
                out = model(next_B1, past_key_values=out.past_key_values, use_cache=True)
            out.logits[:, -1].argmax(-1).tolist()

    def engine_(self, lengths: list[int], *, temperature: float = 0.0, top_p: float = 1.0) -> None:
        asyncio.run(self._replies(self.prompts(lengths), Sampling(temperature, top_p, max_tokens=self.tokens)))

    async def _replies(self, prompts: list[np.ndarray], wanted: Sampling) -> None:
        counts = await asyncio.gather(*(self._reply(ids, wanted) for ids in prompts))
        assert counts == [self.tokens] * len(prompts)

    async def _reply(self, ids: np.ndarray, sampling: Sampling) -> int:
        async with contextlib.aclosing(self.engine.write(GenerateRequest(ids, sampling))) as writing:
            return len([one async for one in writing])

    def bare_prefill(self, length: int) -> None:
        ids_BT = torch.from_numpy(np.stack(self.prompts([length])).astype(np.int64))
        with torch.inference_mode(), attending(self.lm.model, "sdpa"):
            self.lm.model(ids_BT, use_cache=True, logits_to_keep=1).logits[0, -1].argmax().item()

    def first(self, length: int) -> float:
        return asyncio.run(self._first(self.prompts([length])[0]))

    async def _first(self, ids: np.ndarray) -> float:
        begun = time.perf_counter()
        async with contextlib.aclosing(self.engine.write(GenerateRequest(ids, Sampling(temperature=0.0)))) as writing:
            await anext(writing)
            return time.perf_counter() - begun


def memory_part(args) -> None:
    """Resident memory while requests of random lengths come and go, some of which are left by their readers."""
    lm = teacher(args.dtype)
    engine = BatchEngine(lm, slots=8, max_context=512)
    draw = np.random.default_rng(0)
    sizes: list[float] = []

    async def one() -> None:
        ids = draw.integers(3, lm.vocab, int(draw.integers(1, 64))).astype(np.int32)
        sampling = Sampling(temperature=float(draw.integers(0, 2)), max_tokens=int(draw.integers(1, 12)))
        async with contextlib.aclosing(engine.write(GenerateRequest(ids, sampling))) as writing:
            async for _ in writing:
                if draw.random() < 0.02:
                    return

    async def everything() -> None:
        for done in range(0, args.requests, 20):
            await asyncio.gather(*(one() for _ in range(20)))
            sizes.append(resident_memory() / 2**20)
            if (done // 20) % 5 == 0:
                print(f"{done + 20:6} requests: {sizes[-1]:8.1f} MiB", flush=True)

    asyncio.run(everything())
    print(engine.stats)
    engine.close()
    quarter = max(len(sizes) // 4, 1)
    growth = statistics.median(sizes[-quarter:]) - statistics.median(sizes[quarter : 2 * quarter])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"last quarter against the second: {growth:+.1f} MiB; peak {peak:.0f} MiB")


PARTS = {"engine": engine_part, "gguf": gguf_part, "memory": memory_part}

if __name__ == "__main__":
    main()
