"""Whether an export is still the model that it was made from: both read the same text and write the same beginnings."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from limbeck.errors import DataError, ExportError, TeacherError
from limbeck.evaluate.row_scores import row_scores
from limbeck.evaluate.samples import choose_prompts
from limbeck.system.meter import Meter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from limbeck.types import LocalLM, OnProgress, Row, Trace

MOST_POSITIONS = 4096
PROMPTS, NEW_TOKENS = 4, 32
LONGEST_PROMPT = 256
LONGEST_ROW = 1024  # tokens: logits of a whole row exist at once


@dataclass(frozen=True)
class Parity:
    """An export against its source, on the same positions and prompts.

    `kl` is the mean KL(source || export) in nats per position, `kl_most` the largest of one position; `agreement` the
    share of positions with the same first choice; `greedy_equal` the share of prompts that both continue greedily with
    the same tokens. `bytes` are the files of weights. `tokens_per_second` are of writing one sequence, prompt
    excluded: medians over prompts that both write in turn. `text` says what was read.
    """

    kl: float
    kl_most: float
    agreement: float
    greedy_equal: float
    bytes: int
    source_bytes: int
    tokens_per_second: float
    source_tokens_per_second: float
    positions: int
    text: str


class Sizes(NamedTuple):
    """Bytes of the files that hold each one's weights."""

    source: int
    export: int


def parity(
    source: LocalLM,
    export: LocalLM,
    rows: Sequence[Row | Trace],
    sizes: Sizes,
    *,
    text: str,
    on_progress: OnProgress,
) -> Parity:
    """Compare an export with its source on the supervised positions of `rows`, the first MOST_POSITIONS of them, and on
    the first words of a few rows, continued greedily.

    Raises TeacherError when the two have different tokens, DataError when the rows have nothing to read, ExportError
    when the export's logits are not finite.
    """
    _refuse_strangers(source, export)
    rows = list(_chosen(rows, min(source.max_context or 2**30, export.max_context or 2**30)))
    if not rows:
        raise DataError("there is no text to judge the export on: no row has two tokens. Give other rows.")
    total = sum(row.num_supervised for row in rows)
    kl_sum = kl_most = 0.0
    same, meter = 0, Meter("export", "positions", total, on_progress)
    for row in rows:
        scores = row_scores(export, row.ids, row.spans, source=source)
        if not torch.isfinite(scores.kl_N).all():
            raise ExportError("the export's logits are not finite: the format cannot hold this model. Use another.")
        kl_sum += float(scores.kl_N.sum())
        kl_most = max(kl_most, float(scores.kl_N.max()))
        same += int(scores.agree_N.sum())
        meter.add(row.num_supervised)
    equal, ours, theirs = _write_in_turn(source, export, rows)
    return Parity(
        kl=kl_sum / total,
        kl_most=kl_most,
        agreement=same / total,
        greedy_equal=equal,
        bytes=sizes.export,
        source_bytes=sizes.source,
        tokens_per_second=theirs,
        source_tokens_per_second=ours,
        positions=total,
        text=text,
    )


def _refuse_strangers(source: LocalLM, export: LocalLM) -> None:
    if source.tokenizer_hash != export.tokenizer_hash or source.vocab != export.vocab:
        raise TeacherError(
            f"the export has other tokens than its source ({export.vocab} with hash {export.tokenizer_hash} against "
            f"{source.vocab} with {source.tokenizer_hash}); the two cannot be compared, and text would not mean the "
            "same to both. Export to safetensors."
        )


def _chosen(rows: Sequence[Row | Trace], context: int) -> Iterator[Row | Trace]:
    """Rows, cut to what both can read, until there are MOST_POSITIONS: the last one may exceed it."""
    have = 0
    for row in rows:
        if have >= MOST_POSITIONS:
            return
        length = min(context, LONGEST_ROW)
        spans = tuple((start, min(end, length)) for start, end in row.spans if start < length)
        cut = replace(row, ids=row.ids[:length], spans=spans)
        have += cut.num_supervised
        if cut.num_supervised:
            yield cut


def _write_in_turn(source: LocalLM, export: LocalLM, rows: Sequence[Row | Trace]) -> tuple[float, float, float]:
    """The share of prompts continued alike, and the tokens per second of source and export. A disturbance hits both."""
    room = min(source.max_context or 2**30, export.max_context or 2**30, LONGEST_PROMPT + NEW_TOKENS)
    prompts = choose_prompts(rows, source.tokenizer, PROMPTS, longest=room - 2, seed=0)
    if not prompts:
        raise DataError(f"no row begins with a prompt of at most {room - 2} tokens to be continued; give other rows.")
    equal = []
    rates: dict[str, list[float]] = {"source": [], "export": []}
    for prompt in prompts:
        num = min(NEW_TOKENS, room - len(prompt.ids))
        texts = {}
        for name, lm in (("source", source), ("export", export)):
            texts[name], rate = _write(lm, prompt.ids, num)
            rates[name].append(rate)
        equal.append(texts["source"] == texts["export"])
    return sum(equal) / len(equal), statistics.median(rates["source"]), statistics.median(rates["export"])


def _write(lm: LocalLM, prompt: np.ndarray, num: int) -> tuple[list[int], float]:
    """`num` greedy tokens, at least two, whether or not the reply ends before; and how many a second after the first,
    which waits for the prompt."""
    session = lm.session()
    try:
        tokens = [int(session.feed(prompt).argmax())]
        begun = time.perf_counter()
        while len(tokens) < num:
            tokens.append(int(session.feed(np.array(tokens[-1:], dtype=np.int32)).argmax()))
        return tokens, (num - 1) / max(time.perf_counter() - begun, 1e-9)
    finally:
        session.close()
