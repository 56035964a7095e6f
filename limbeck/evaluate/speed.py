"""How large and how fast the models are, measured side by side on this machine."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from limbeck.losses.chunked import iter_logits
from limbeck.models.gguf_import import resolve_model
from limbeck.system.cost import measure
from limbeck.text.packing import pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.models.hf import HfLM
    from limbeck.types import Batch, Row, Trace

ROUNDS = 3
MOST_ROUNDS = 15
FORWARD_SECONDS = 1.0  # what one timed forward of the slowest model may take


@dataclass(frozen=True)
class Speed:
    """One model: `tokens_per_second` of scoring given text (the median of `rounds`), `parameters` with tied ones
    counted once, `bytes` of its weights on disk, `memory_bytes`: weights in memory plus the growth during a forward."""

    tokens_per_second: float
    rounds: int
    parameters: int
    bytes: int
    memory_bytes: int


def measure_speed(
    models: dict[str, HfLM], rows: Sequence[Row | Trace], *, batch_tokens: int = 2048, seconds: float
) -> dict[str, Speed]:
    """Tokens per second of scoring `rows`, the models taking turns so that a disturbance hits all alike.

    Scoring is what labelling does: hidden rows, then logits at every supervised position. At least ROUNDS rounds, then
    more until each model has had `seconds`. The batch is as large as a forward of about FORWARD_SECONDS allows for the
    slowest model, at most `batch_tokens`. `rows` must not be empty.
    """
    rate = min(_rate(lm, rows[0]) for lm in models.values())
    items = _first(rows, min(batch_tokens, int(rate * FORWARD_SECONDS)))
    batches = {name: pack(items, device=lm.device) for name, lm in models.items()}
    memory = {name: _memory(lm, batches[name]) for name, lm in models.items()}  # also the warm-up
    taken: dict[str, list[float]] = {name: [] for name in models}
    end = time.monotonic() + seconds * len(models)
    rounds = 0
    while rounds < ROUNDS or (rounds < MOST_ROUNDS and time.monotonic() < end):
        rounds += 1
        for name, lm in models.items():
            start = time.perf_counter()
            _score(lm, batches[name])
            taken[name].append(time.perf_counter() - start)
    tokens = sum(len(item.ids) for item in items)
    return {
        name: Speed(
            tokens_per_second=tokens / statistics.median(taken[name]),
            rounds=len(taken[name]),
            parameters=sum(parameter.numel() for parameter in lm.model.parameters()),
            bytes=stored_bytes(lm),
            memory_bytes=memory[name],
        )
        for name, lm in models.items()
    }


def _score(lm: HfLM, batch: Batch) -> float:
    """One scoring pass. Returns a number that depends on all of it, so that a device has finished when it is there."""
    total = 0.0
    for _, logits_nV in iter_logits(lm.hidden(batch), lm.head):
        total += float(logits_nV[-1, -1])
    return total


def _rate(lm: HfLM, row: Row | Trace) -> float:
    """Tokens per second of one row, roughly; the first pass is not counted."""
    batch = pack([row], device=lm.device)
    _score(lm, batch)
    start = time.perf_counter()
    _score(lm, batch)
    return len(row.ids) / max(time.perf_counter() - start, 1e-9)


def _first(rows: Sequence[Row | Trace], tokens: int) -> list[Row | Trace]:
    """As many rows from the front as have at most `tokens` tokens, but one at least."""
    chosen, room = list(rows[:1]), tokens - len(rows[0].ids)
    for row in rows[1:]:
        room -= len(row.ids)
        if room < 0:
            break
        chosen.append(row)
    return chosen


def _memory(lm: HfLM, batch: Batch) -> int:
    with measure() as before:
        pass
    with measure() as during:
        _score(lm, batch)
    tensors = {tensor.data_ptr(): tensor for tensor in lm.model.state_dict().values()}
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return weights + max(during.peak_bytes - before.peak_bytes, 0)


def stored_bytes(lm: HfLM) -> int:
    """Bytes of the model's safetensors files, where they are on this disk; else of its weights in memory."""
    folder = Path(resolve_model(lm.name))
    if not folder.is_dir():
        folder = _cached(lm.name) or folder
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return files or sum(parameter.numel() * parameter.element_size() for parameter in lm.model.parameters())


def _cached(name: str) -> Path | None:
    """The folder in which the hub's cache keeps a model."""
    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None
