"""Whole training steps of one student on the same 8 x 256 tokens: from stored targets, with a live teacher, from labels
alone, with full logits as most trainers do, and in TRL's GKDTrainer.

    python benchmarks/steps.py [--student small|demo] [--precision bfloat16|float32] [--rounds 3] [--only stored]

Steps are whole: fetch (decoding included), forward, backward, clip, AdamW. Memory is the peak of a fresh process that
runs two steps of one kind. `small` is a random Llama of 17 million parameters (width 256, six layers), `demo` the
demo's student of twenty layers. TRL runs in processes of its own, as its users run it; once more with the memory
settings that `limbeck train` makes (`limbeck.system.device.prepare_cpu`), from which it gains as well. It is there
after `make peers`, for `.venv-peers/bin/python benchmarks/steps.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import interleave, machine, stdlib_rows, student, teacher
from peers import TUNED, trl_step
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.label.local import score
from limbeck.label.plan import codec_of, support_spec
from limbeck.losses import Terms
from limbeck.models.hf import packed_hidden
from limbeck.recipe import Optimizer, Sampled, TraceSection
from limbeck.system.cost import measure
from limbeck.system.device import prepare_cpu
from limbeck.text.packing import labels_of, pack
from limbeck.train.distiller import Distiller
from limbeck.train.optim import build_optimizer
from limbeck.types import Dist, LiveTarget, Row, Vocab

if TYPE_CHECKING:
    from collections.abc import Callable

    from limbeck.models.hf import HfLM

OURS = {
    "CE, fused": Terms(ce_weight=1.0),
    "stored": Terms(),
    "stored, with CE": Terms(ce_weight=0.3),
    "live": Terms(),
    "live jsd": Terms("jsd"),
}
PLAIN = "CE, full logits"
FORWARD = "teacher's forward, logits"
TRL = {"TRL GKD, tuned": TUNED, "TRL GKD, as it comes": {}, "TRL GKD, tuned, our malloc": TUNED}
KINDS = (*OURS, PLAIN, FORWARD, *TRL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--student", default="small", choices=["small", "demo"])
    parser.add_argument("--only", default="", help="only steps whose name contains this")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.one not in TRL or "malloc" in args.one:
        prepare_cpu()
    if args.one:
        step = trl(args, args.one) if args.one in TRL else build(args, [args.one])[args.one]
        if args.one not in TRL:
            step()
        with measure() as cost:
            seconds = step()
        print(cost.peak_bytes, seconds)
        return
    steps = build(args, [kind for kind in KINDS if args.only in kind])
    seconds = interleave(steps, args.rounds)
    print(f"# {machine()}, 8 x 256 tokens, {args.student} student, {args.precision}")
    print(f"{'step':28}{'ms':>8}{'of CE':>8}{'peak MiB':>10}")
    for kind, value in seconds.items():
        share = f"{value / seconds['CE, fused']:8.3f}" if "CE, fused" in seconds else ""
        print(f"{kind:28}{value * 1e3:8.0f}{share}{'' if args.no_memory else f'{peak(args, kind) / 2**20:10.0f}'}")
    if {"CE, fused", FORWARD, "live"} <= seconds.keys():
        print(f"live / (teacher's forward + CE) {seconds['live'] / (seconds[FORWARD] + seconds['CE, fused']):.3f}")


def peak(args: argparse.Namespace, kind: str) -> int:
    return int(alone(args, kind)[0])


def alone(args: argparse.Namespace, kind: str) -> list[str]:
    """Peak bytes, and seconds where it has a clock of its own, of a step in a fresh process."""
    command = [sys.executable, __file__, "--precision", args.precision, "--student", args.student, "--one", kind]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()


def build(args: argparse.Namespace, kinds: list[str]) -> dict[str, Callable[[], float | None]]:
    lm = teacher(args.precision)
    tokens = tokens_of(lm)
    ids_BT = torch.from_numpy(tokens.astype(np.int64))
    rows = [Row(f"{n:016x}", "train", "", "", ids, ((1, 256),), "") for n, ids in enumerate(tokens)]
    batch, vocab = pack(rows), lm.vocab
    model = small(lm.model.config.vocab_size) if args.student == "small" else student(lm)
    head: Any = model.get_output_embeddings()
    dtype = getattr(torch, args.precision)
    optimizer = build_optimizer(model, Optimizer())
    fetch = {"live": lambda: replace(batch, target=LiveTarget.of(lm.hidden(batch), lm.head))}
    if any(kind.startswith("stored") for kind in kinds):
        decode = reader(lm, rows)
        fetch["stored"] = lambda: replace(batch, target=decode())
    if not any(kind.startswith(("live", FORWARD)) for kind in kinds):
        del lm, fetch["live"]
    distillers = {kind: Distiller(model, terms, vocab=Vocab(vocab), precision=dtype) for kind, terms in OURS.items()}

    def step(kind: str) -> None:
        optimizer.zero_grad()
        if kind == PLAIN:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                logits_NV = head(packed_hidden(model, batch))
            torch.nn.functional.cross_entropy(logits_NV.float(), batch.labels_N).backward()
        else:
            fetched = fetch.get(kind.split()[0].rstrip(","), lambda: batch)()
            (distillers[kind](fetched).loss / batch.num_supervised).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def forward() -> None:
        with torch.no_grad():
            lm.model(ids_BT, use_cache=False).logits.sum()

    steps: dict[str, Callable[[], float | None]] = {}
    for kind in kinds:
        if kind not in TRL:
            steps[kind] = forward if kind == FORWARD else lambda kind=kind: step(kind)
        elif importlib.util.find_spec("trl"):
            steps[kind] = lambda kind=kind: float(alone(args, kind)[1])
        else:
            print(f"# skipped: {kind} (trl is not installed)")
    return steps


def tokens_of(lm: HfLM) -> np.ndarray:
    """8 x 256 tokens of the standard library."""
    return np.concatenate([row.ids for row in stdlib_rows(lm, 200)])[: 8 * 256].reshape(8, 256)


def reader(lm: HfLM, rows: list[Row]) -> Callable[[], Dist]:
    """What a stored target of the default kind takes at each step: bytes to tensors."""
    codec, spec = codec_of(TraceSection(), lm.vocab), support_spec(Sampled())
    supports = score(lm, rows, spec, 1.0, torch.Generator().manual_seed(0))
    rounding = np.random.default_rng(0)
    records = [
        (np.frombuffer(codec.encode(support, labels_of(row), "00" * 8, rounding), np.uint8), labels_of(row))
        for support, row in zip(supports, rows, strict=True)
    ]
    return lambda: codec.decode(records)


def trl(args: argparse.Namespace, kind: str) -> Callable[[], float]:
    """Models of its own; the teacher in bfloat16 where the settings are tuned, else as `from_pretrained` gives it."""
    lm = teacher("bfloat16" if TRL[kind] else "float32")
    model = small(lm.model.config.vocab_size) if args.student == "small" else student(lm)
    ids_BT = torch.from_numpy(tokens_of(lm).astype(np.int64))
    return trl_step(model, lm.model, lm.tokenizer, ids_BT, **TRL[kind])


def small(vocab: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=True,
        )
    )


if __name__ == "__main__":
    main()
