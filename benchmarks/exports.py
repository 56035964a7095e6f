"""Exported models against the model they were made of: size, fidelity, and tokens per second one after the other.

Fidelity is measured on functions of Python's standard library that the export never saw: mean KL(source || export) in
nats and how often both find the same token the most likely. Speed is that of greedy replies to one prompt, and to
eight at once, all formats interleaved with the source in single precision; a reply's own length counts.

    python benchmarks/exports.py [--positions 400] [--rounds 5] [--formats gguf:q8_0,gguf:q4_0]
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from common import interleave, machine, stdlib_rows, teacher

from limbeck.export.gguf import write_gguf
from limbeck.export.onnx import write_onnx
from limbeck.models.llamacpp import LlamaLM
from limbeck.models.onnx import OnnxLM
from limbeck.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable

    from limbeck.models.hf import HfLM
    from limbeck.types import LocalLM

WRITERS: dict[str, tuple[Callable[..., None], Callable[[Path], LocalLM], tuple[str, ...]]] = {}
"""By format: its writer, what opens its folder, and the kinds of quantization that are shown."""

if find_spec("gguf") and find_spec("cyllama"):
    WRITERS["gguf"] = (write_gguf, LlamaLM.open, ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"))
if find_spec("onnx") and find_spec("onnxscript") and find_spec("onnxruntime"):
    WRITERS["onnx"] = (write_onnx, OnnxLM.open, ("fp32", "int8", "int4"))

PROMPTS = [
    f"Once upon a time, in a small village by the {place}, there lived a baker who"
    for place in ("sea", "river", "forest", "lake", "hills", "road", "castle", "harbour")
]
TOKENS = 64


def source_logits(lm: HfLM, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :, : lm.vocab].float()


def fidelity(lm: HfLM, export: LocalLM, rows: list[np.ndarray]) -> tuple[float, float]:
    """Mean KL in nats and share of equal most likely tokens, over all positions of `rows`."""
    divergences, same = [], []
    for ids in rows:
        p, q = source_logits(lm, ids).log_softmax(-1), export.logits(ids).log_softmax(-1)
        divergences.append((p.double().exp() * (p.double() - q.double())).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
    return float(torch.cat(divergences).mean()), float(torch.cat(same).float().mean())


def rates(models: dict[str, LocalLM], rounds: int, num: int) -> dict[str, float]:
    """Tokens per second of greedy replies to `num` prompts at once, by name."""
    greedy, lengths = Sampling(temperature=0, max_tokens=TOKENS), dict.fromkeys(models, 0)

    def write(name: str) -> None:
        prompts = [np.array(models[name].tokenizer(text)["input_ids"], dtype=np.int32) for text in PROMPTS[:num]]
        lengths[name] = sum(len(replies[0].ids) for replies in models[name].generate(prompts, greedy))

    seconds = interleave({name: lambda name=name: write(name) for name in models}, rounds)
    return {name: lengths[name] / seconds[name] for name in models}


def megabytes(folder: Path) -> float:
    return max(file.stat().st_size for file in folder.iterdir()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--positions", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", default="", help="such as gguf:q8_0,gguf:q4_0")
    options = parser.parse_args()
    chosen = [name.split(":") for name in options.formats.split(",") if name]
    chosen = chosen or [[name, quant] for name, (_, _, quants) in WRITERS.items() for quant in quants]
    lm = teacher("float32")
    print(f"# {machine()}; {options.positions} positions, {options.rounds} rounds of {TOKENS} tokens")
    rows = [row.ids for row in stdlib_rows(lm, 60, 128)]
    ends = np.cumsum([len(ids) for ids in rows])
    rows = rows[: int(np.searchsorted(ends, options.positions)) + 1] if options.positions else []
    with tempfile.TemporaryDirectory() as tmp:
        models: dict[str, LocalLM] = {"source float32": lm}
        sizes = {"source float32": sum(one.numel() * 4 for one in lm.model.parameters()) / 1e6}
        scores: dict[str, tuple[float, float]] = {}
        for name, quant in chosen:
            write, open_export, _ = WRITERS[name]
            folder = Path(tmp, f"{name} {quant}")
            folder.mkdir()
            write(folder, lm, quant=quant)
            models[folder.name], sizes[folder.name] = open_export(folder), megabytes(folder)
            if rows:
                scores[folder.name] = fidelity(lm, models[folder.name], rows)
        one, eight = (rates(models, options.rounds, num) if options.rounds else {} for num in (1, len(PROMPTS)))
    print(f"{'':16} {'MB':>8} {'KL':>10} {'top-1':>7} {'tokens/s':>9} {'ratio':>6} {'8 at once':>9} {'ratio':>6}")
    for name in models:
        kl, top = scores.get(name, (0.0, 1.0))
        speeds = (
            cell for found in (one, eight) if found for cell in (found[name], found[name] / found["source float32"])
        )
        print(f"{name:16} {sizes[name]:8.1f} {kl:10.2e} {top:7.1%}", *(f"{speed:8.2f}" for speed in speeds))


if __name__ == "__main__":
    main()
