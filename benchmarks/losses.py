"""The loss and its gradients against the bare matrix products of the same shapes, and against other libraries.

    python benchmarks/losses.py [--group stored|live] [--dtype float32|bfloat16] [--rounds 3]
    python benchmarks/losses.py --memory [--vocab 262144] [--only ours]

From hidden rows and head to the gradients of both: 2,048 positions, width 256, a live teacher of width 576. The limit
is what nothing can leave out, as bare products in chunks of 1,024 rows with reused buffers: logits, both gradients, and
the teacher's logits where it is live. `--memory` runs each in a fresh process and prints the peak beyond
inputs and gradients. Other libraries: `make peers`, then `.venv-peers/bin/python benchmarks/losses.py`.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import torch
from common import interleave, machine
from peers import LIVE, STORED, Problem

from limbeck.losses import Terms, fused_terms, iter_logits
from limbeck.system.cost import measure
from limbeck.system.device import prepare_cpu, taken_memory
from limbeck.types import Dist, Head, LiveTarget

if TYPE_CHECKING:
    from collections.abc import Callable

NUM, WIDTH, TEACHER_WIDTH, CHUNK = 2048, 256, 576, 1024
OURS = {
    "stored": {
        "ours: CE": (None, Terms(ce_weight=1.0), False),
        "ours: top 32 + tail": ("top_k", Terms(), False),
        "ours: top 32 + tail, with CE": ("top_k", Terms(ce_weight=0.3), False),
        "ours: 50 draws": ("sampled", Terms(), False),
    },
    "live": {
        f"ours: {name}{', compiled' if compiled else ''}": ("live", Terms(name), compiled)
        for name in ("forward_kl", "reverse_kl", "jsd", "skew_forward")
        for compiled in (False, True)
    },
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--group", choices=["stored", "live"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--plain-malloc", action="store_true", help="without `limbeck.system.device.prepare_cpu`")
    parser.add_argument("--memory", action="store_true", help="peak memory in fresh processes, no timing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch._dynamo.config.recompile_limit = 64  # one process compiles every row; a job compiles one
    print(f"# {machine()}, {NUM} positions, vocabulary {args.vocab:,}, width {WIDTH}, teacher {TEACHER_WIDTH}")
    for group in [args.group] if args.group else ["stored", "live"]:
        for dtype in [args.dtype] if args.dtype else ["float32", "bfloat16"]:
            (memory if args.memory else timing)(args, group, dtype)


def timing(args: argparse.Namespace, group: str, dtype: str) -> None:
    if not args.plain_malloc:
        prepare_cpu()
    problem = make_problem(args.vocab, dtype)
    limit = "products alone"
    work = {limit: lambda: products(problem, group == "live")}
    values: dict[str, float] = {}
    for name, loss in losses(group, problem).items():
        if args.only in name:
            try:
                values[name] = loss().item()
            except ImportError as error:
                print(f"# skipped: {name} ({error})")
                continue
            work[name] = lambda loss=loss: backward(loss, problem)
    seconds = interleave(work, args.rounds)
    print(f"{group + ', ' + dtype:34}{'ms':>8}{'of products':>13}{'nats':>10}")
    for name, value in seconds.items():
        nats = f"{values[name]:10.4f}" if name in values else ""
        print(f"{name:34}{value * 1e3:8.0f}{value / seconds[limit]:13.3f}{nats}")


def memory(args: argparse.Namespace, group: str, dtype: str) -> None:
    if args.one:
        problem = make_problem(args.vocab, dtype)
        try:
            print("peak", beyond(losses(group, problem)[args.one], problem))
        except ImportError as error:
            print("skipped", error)
        return
    print(f"{group + ', ' + dtype:34}{'MiB':>8}")
    command = [sys.executable, __file__, "--group", group, "--dtype", dtype, "--vocab", str(args.vocab), "--memory"]
    for name in [*OURS[group], *(STORED if group == "stored" else LIVE)]:
        if args.only in name:
            output = subprocess.run([*command, "--one", name], capture_output=True, text=True, check=True).stdout
            word, value = output.splitlines()[-1].split(" ", 1)
            print(f"{name:34}{int(value) / 2**20:8.0f}" if word == "peak" else f"# skipped: {name} ({value})")


def make_problem(vocab: int, dtype: str) -> Problem:
    """Random rows and heads; logits of both sides have a spread as language models have it (entropies of 7 to 9)."""
    generator = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=generator).to(getattr(torch, dtype))  # noqa: E731
    return Problem(
        randn(NUM, WIDTH).requires_grad_(),
        randn(vocab, WIDTH).mul_(1.5 / WIDTH**0.5).requires_grad_(),
        randn(NUM, TEACHER_WIDTH),
        randn(vocab, TEACHER_WIDTH).mul_(2.0 / TEACHER_WIDTH**0.5),
        torch.randint(vocab, (NUM,), generator=generator),
    )


def losses(group: str, problem: Problem) -> dict[str, Callable[[], torch.Tensor]]:
    work = {}
    for name, (kind, terms, compiled) in OURS[group].items():
        target = stored(problem, kind) if kind in ("top_k", "sampled") else None
        if kind == "live":
            target = LiveTarget(problem.teacher_ND, problem.teacher_VD)
        work[name] = lambda target=target, terms=terms, compiled=compiled: ours(problem, target, terms, compiled)
    for name, loss in (STORED if group == "stored" else LIVE).items():
        work[name] = lambda loss=loss: loss(problem)
    return work


def stored(problem: Problem, kind: str, k: int = 32, draws: int = 50) -> Dist:
    """The k most probable tokens and the tail's mass, or independent draws of equal weight (a token may come twice)."""
    generator = torch.Generator().manual_seed(0)
    ids, logps, tails, entropies = [], [], [], []
    for _, u_nV in iter_logits(problem.teacher_ND, Head(problem.teacher_VD)):
        logp_nV = torch.log_softmax(u_nV, 1)
        entropies.append(-torch.linalg.vecdot(logp_nV.exp(), logp_nV))
        if kind == "top_k":
            top = logp_nV.topk(k, 1)
            ids.append(top.indices)
            logps.append(top.values)
            tails.append(torch.log1p(-top.values.exp().sum(1)))
        else:
            ids.append(torch.multinomial(logp_nV.exp(), draws, replacement=True, generator=generator))
            logps.append(torch.full((len(u_nV), draws), -math.log(draws)))
            tails.append(torch.full((len(u_nV),), -math.inf))
    entropy_N = torch.cat(entropies) if kind == "sampled" else None
    return Dist(torch.cat(ids), torch.cat(logps), torch.cat(tails), entropy_N)


def ours(problem: Problem, target: Dist | LiveTarget | None, terms: Terms, compiled: bool) -> torch.Tensor:
    labels_N = problem.labels_N if terms.needs_labels else None
    head = Head(problem.weight_VD)
    return fused_terms(problem.hidden_ND, head, target, terms, labels_N=labels_N, compile=compiled).loss / NUM


def backward(loss: Callable[[], torch.Tensor], problem: Problem) -> None:
    problem.hidden_ND.grad = problem.weight_VD.grad = None
    loss().backward()


def products(problem: Problem, live: bool) -> None:
    """Three products, four with a live teacher (its own is as wide as two of the student's), and nothing else."""
    with torch.no_grad():
        dtype, vocab = problem.hidden_ND.dtype, problem.weight_VD.shape[0]
        z_cV = _buffer("z", (CHUNK, vocab), dtype)
        dhidden_ND = _buffer("dh", (NUM, WIDTH), dtype)
        dweight_VD = _buffer("dw", (vocab, WIDTH), dtype)
        for start in range(0, NUM, CHUNK):
            part = slice(start, start + CHUNK)
            if live:
                torch.mm(problem.teacher_ND[part], problem.teacher_VD.T, out=_buffer("u", (CHUNK, vocab), dtype))
            torch.mm(problem.hidden_ND[part], problem.weight_VD.T, out=z_cV)
            torch.mm(z_cV, problem.weight_VD, out=dhidden_ND[part])
            torch.mm(z_cV.T, problem.hidden_ND[part], out=dweight_VD)


_buffers: dict[tuple, torch.Tensor] = {}


def _buffer(name: str, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    return _buffers.setdefault((name, shape, dtype), torch.zeros(1, dtype=dtype).expand(shape).contiguous())


def beyond(loss: Callable[[], torch.Tensor], problem: Problem) -> int:
    """Peak bytes beyond inputs and gradients, of a second run: the first loads libraries and compiles."""
    backward(loss, problem)
    problem.hidden_ND.grad = problem.weight_VD.grad = None
    with measure() as cost:
        before = taken_memory()
        backward(loss, problem)
    grads = (problem.hidden_ND.grad, problem.weight_VD.grad)
    return cost.peak_bytes - before - sum(grad.nbytes for grad in grads if grad is not None)


if __name__ == "__main__":
    main()
