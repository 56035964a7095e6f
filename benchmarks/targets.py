"""Bytes per position, reading speed and fidelity of every kind of stored target.

    python benchmarks/targets.py [--data FOLDER] [--positions 4096] [--plot docs/lab/targets-frontier.svg]

Fidelity: cosine and norm ratio of the gradient from stored targets against that from the teacher's full distribution,
over whole records of at least so many positions: on hidden rows (dL/dh, where nothing averages out) and on the head
(dL/dW). The student is the demo teacher with eight layers removed, or (--student) its first N layers, both untrained.
Text: functions of the standard library; with FOLDER also medical answers (FOLDER/medquad/test.jsonl) and chats
(FOLDER/gsm8k/test.jsonl, the assistant's turn), and the mean over all.

Bytes are those of the records, context hashes included. Peers' bytes are those of their formats; their fidelity is what
truncation alone loses: exact values, the rest as one cell (`tail`), or cut off (`renormalise`, what trainers do).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from common import encoded_rows, machine, stdlib_rows, teacher
from frontier import draw

from limbeck.label.plan import codec_of, support_spec
from limbeck.losses import fused_distill_loss, iter_logits
from limbeck.losses.support import SupportSpec, join, select, split
from limbeck.models.hf import head_layer, packed_attention, packed_hidden
from limbeck.recipe import FileSource, Hybrid, Sampled, TopK, TraceSection
from limbeck.students.prune import prune_layers
from limbeck.text.packing import labels_of, pack, plan_batches
from limbeck.types import Dist, Head, LiveTarget

if TYPE_CHECKING:
    from limbeck.models.hf import HfLM
    from limbeck.types import Row

REMOVED = (13, 14, 15, 12, 17, 3, 16, 25)
TARGETS = {
    **{f"sampled {draws}": Sampled(draws=draws) for draws in (8, 12, 18, 24, 36, 48, 64, 128)},
    **{
        f"hybrid {head}/{draws}": Hybrid(head=head, min_prob=least, draws=draws)
        for head, least, draws in ((4, 0.05, 16), (8, 0.02, 32), (8, 0.02, 64))
    },
    **{f"top_k {k}": TopK(k=k) for k in (4, 8, 16, 32, 128)},
    **{f"top_k 32 {rest}": TopK(k=32, tail=rest) for rest in ("gold", "spread", "renormalise")},
    **{f"sampled {n} probability": Sampled(draws=n, value="probability") for n in (32, 256)},
}
PEERS = {  # name: bytes, tokens kept
    "DistillKit k=128": (312, 128),
    "DistillKit k=50": (114, 50),
    "int32 + fp16, k=32": (192, 32),
    "16 + 8 bits, k=32": (96, 32),
}


@dataclass(frozen=True)
class Text:
    """Records of one kind of text, with what teacher and student make of them."""

    rows: list[Row]
    teacher_ND: torch.Tensor
    student_ND: torch.Tensor


@dataclass(frozen=True)
class Result:
    name: str
    bytes: float
    reads: float  # positions per second; 0 where nothing was decoded
    rows: float  # cosine of dL/dh
    head: float  # cosine of dL/dW
    norm_rows: float
    norm_head: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of medquad/ and gsm8k/; without it only code is measured")
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--student", type=int, metavar="N", help="the first N layers instead of all but eight")
    parser.add_argument("--only", default="", help="targets whose name begins with this")
    parser.add_argument("--plot", type=Path, help="write the frontier here, as SVG")
    args = parser.parse_args()
    lm = teacher()
    keep = range(args.student) if args.student else [n for n in range(30) if n not in REMOVED]
    student = prune_layers(lm.model, tuple(keep))
    weight_VD = head_layer(student).weight.detach().float()
    print(f"# {machine()}, student: layers {', '.join(map(str, keep))} of {lm.name}")
    print("# cosine and norm ratio of gradients to the full teacher's, on hidden rows (dL/dh) and on the head (dL/dW)")
    results: dict[str, list[Result]] = {}
    for text, rows in texts(lm, args.data, args.positions).items():
        results[text] = measure(lm, student, weight_VD, rows, args.only)
        show(text, sum(row.num_supervised for row in rows), results[text])
    if len(results) > 1:
        mean = [average(same) for same in zip(*results.values(), strict=True)]
        show("mean of all", 0, mean)
        if args.plot:
            args.plot.write_text(draw([(r.name, r.bytes, r.rows, r.head) for r in mean]))


def texts(lm: HfLM, folder: Path | None, positions: int) -> dict[str, list[Row]]:
    found = {"code": until(stdlib_rows(lm, 200, 256), positions)}
    for name, file, chat in (("medical", "medquad/test.jsonl", False), ("chat", "gsm8k/test.jsonl", True)):
        if folder and (folder / file).exists():
            source = FileSource(path=str(folder / file), prompt="question", completion="answer")
            found[name] = until(encoded_rows(lm, source, 200, 256, chat_template=chat), positions)
        else:
            print(f"# no {name} text: {file} is not in --data")
    return found


def until(rows: list[Row], positions: int) -> list[Row]:
    total = np.cumsum([row.num_supervised for row in rows])
    return rows[: int(np.searchsorted(total, positions)) + 1]


def measure(lm: HfLM, student, weight_VD: torch.Tensor, rows: list[Row], only: str) -> list[Result]:
    text = hidden(lm, student, rows)
    head = Head(lm.head.weight_VD.float())
    full = gradients(text.student_ND, weight_VD, LiveTarget.of(text.teacher_ND, head))
    out = []
    for name, target in TARGETS.items():
        if name.startswith(only):
            dist, size, speed = stored(text, head, target, lm.vocab)
            out.append(Result(name, size, speed, *compare(gradients(text.student_ND, weight_VD, dist), full)))
    for name, (size, k) in PEERS.items():
        for rest in ("tail", "renormalise"):
            if name.startswith(only):
                dist = truncated(text.teacher_ND, head, k, rest)
                same = compare(gradients(text.student_ND, weight_VD, dist), full)
                out.append(Result(f"{name}, {rest}", size, 0.0, *same))
    return out


def hidden(lm: HfLM, student, rows: list[Row]) -> Text:
    theirs, own, order = [], [], []
    for indices in plan_batches([len(row.ids) for row in rows], 2048):
        batch = pack([rows[index] for index in indices])
        theirs.append(lm.hidden(batch).float())
        with torch.no_grad(), packed_attention(student):
            own.append(packed_hidden(student, batch).float())
        order += [rows[index] for index in indices]
    return Text(order, torch.cat(theirs), torch.cat(own))


def gradients(student_ND: torch.Tensor, weight_VD: torch.Tensor, target) -> tuple[torch.Tensor, torch.Tensor]:
    h, w = student_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
    dh, dw = torch.autograd.grad(fused_distill_loss(h, w, target), (h, w))
    return dh, dw


def compare(own, full) -> tuple[float, float, float, float]:
    cosines, ratios = [], []
    for mine, theirs in zip(own, full, strict=True):
        a, b = mine.double().flatten(), theirs.double().flatten()
        cosines.append((a @ b / (a.norm() * b.norm())).item())
        ratios.append((a.norm() / b.norm()).item())
    return *cosines, *ratios


def stored(text: Text, head: Head, target, vocab: int) -> tuple[Dist, float, float]:
    """What comes back from a store's records, their bytes per position, and positions decoded per second."""
    codec = codec_of(TraceSection(target=target), vocab)
    generator, rounding = torch.Generator().manual_seed(0), np.random.default_rng(0)
    kept = choose(text.teacher_ND, head, support_spec(target), generator)
    parts = split(kept, [row.num_supervised for row in text.rows])
    labels = [labels_of(row) for row in text.rows]
    records = [codec.encode(part, gold, "00" * 8, rounding) for part, gold in zip(parts, labels, strict=True)]
    buffers = [(np.frombuffer(record, np.uint8), gold) for record, gold in zip(records, labels, strict=True)]
    num = sum(map(len, labels))
    batches = [[buffers[index] for index in indices] for indices in plan_batches([len(gold) for gold in labels], 2048)]
    seconds = []
    for _ in range(15):
        begun = time.perf_counter()
        for batch in batches:
            codec.decode(batch)
        seconds.append(time.perf_counter() - begun)
    return codec.decode(buffers), sum(map(len, records)) / num, num / min(seconds)


def choose(hidden_ND: torch.Tensor, head: Head, spec: SupportSpec, generator: torch.Generator):
    return join([select(z, spec, 1.0, generator) for _, z in iter_logits(hidden_ND, head)])


def truncated(hidden_ND: torch.Tensor, head: Head, k: int, rest: str) -> Dist:
    kept = choose(hidden_ND, head, SupportSpec(k, 0), torch.Generator())
    p_NK, tail_N = kept.head_p_nH, kept.tail_n
    if rest == "renormalise":
        p_NK, tail_N = p_NK / p_NK.sum(1, keepdim=True), torch.zeros_like(tail_N)
    return Dist(kept.head_ids_nH, p_NK.log(), tail_N.log())


def average(same: tuple[Result, ...]) -> Result:
    values = [vars(result) for result in same]
    names = [name for name in values[0] if name != "name"]
    return Result(same[0].name, *(sum(value[name] for value in values) / len(same) for name in names))


def show(text: str, positions: int, results: list[Result]) -> None:
    print(f"\n{text}{f': {positions} positions' if positions else ''}")
    print(f"{'target':32}{'bytes':>7}{'read/s':>11}{'cos dh':>9}{'cos dW':>9}{'norm dh':>9}{'norm dW':>9}")
    for r in results:
        speed = f"{r.reads:11,.0f}" if r.reads else f"{'':11}"
        print(f"{r.name:32}{r.bytes:7.1f}{speed}{r.rows:9.4f}{r.head:9.4f}{r.norm_rows:9.3f}{r.norm_head:9.3f}")


if __name__ == "__main__":
    main()
