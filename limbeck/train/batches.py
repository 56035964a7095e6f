"""Where batches come from. Stored, live and plain are three ways to fetch the same micro-batch; the order is one.

The order is a pure function of (seed, epoch): a resumed run, or one on another number of processes, sees the same
micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.losses.chunked import cut_head
from limbeck.text.packing import pack, plan_batches
from limbeck.types import LiveTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limbeck.models.hf import HfLM
    from limbeck.store import TraceStore
    from limbeck.types import Batch, Row, Trace

    Fetch = Callable[[Sequence[int]], Batch]


@dataclass(frozen=True)
class Cursor:
    """The next micro-batch: its epoch, and its place in that epoch's plan."""

    epoch: int = 0
    index: int = 0


class BatchPlan:
    """Micro-batches of packed documents, shuffled anew in every epoch."""

    def __init__(self, items: Sequence[Row | Trace], batch_tokens: int, seed: int) -> None:
        self.lengths = [len(item.ids) for item in items]
        self.supervised = [item.num_supervised for item in items]
        self.batch_tokens, self.seed = batch_tokens, seed
        self._epoch, self._plan = -1, []

    def plan(self, epoch: int) -> list[list[int]]:
        """Lists of indices into the items, each of at most `batch_tokens` tokens."""
        if epoch != self._epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.lengths))
            self._epoch, self._plan = epoch, plan_batches(self.lengths, self.batch_tokens, order=order.tolist())
        return self._plan

    def take(self, cursor: Cursor, count: int) -> tuple[list[list[int]], Cursor]:
        """The next `count` micro-batches and where to go on; runs over epoch ends."""
        taken: list[list[int]] = []
        while len(taken) < count:
            plan = self.plan(cursor.epoch)
            part = plan[cursor.index : cursor.index + count - len(taken)]
            taken += part
            index = cursor.index + len(part)
            cursor = Cursor(cursor.epoch, index) if index < len(plan) else Cursor(cursor.epoch + 1, 0)
        return taken, cursor

    def tokens(self, batch: Sequence[int]) -> int:
        return sum(self.lengths[index] for index in batch)

    def positions(self, batch: Sequence[int]) -> int:
        return sum(self.supervised[index] for index in batch)


def weighted(fetch: Fetch, items: Sequence[Row | Trace], weigh: Callable[[Sequence[Row | Trace]], np.ndarray]) -> Fetch:
    """The same batches, with a weight for every supervised position; weights that are there already are multiplied."""

    def fetch_weighted(indices: Sequence[int]) -> Batch:
        batch = fetch(indices)
        weights_N = torch.from_numpy(weigh([items[index] for index in indices])).to(batch.ids_T.device)
        return replace(batch, weights_N=weights_N if batch.weights_N is None else weights_N * batch.weights_N)

    return fetch_weighted


def plain(items: Sequence[Row | Trace], device: torch.device) -> Fetch:
    """Ground truth only: the hard-label twin, or plain fine-tuning."""
    return lambda indices: pack([items[index] for index in indices], device=device)


def stored(traces: Sequence[Trace], store: TraceStore, device: torch.device) -> Fetch:
    """The teacher's distributions from a store."""

    def fetch(indices: Sequence[int]) -> Batch:
        chosen = [traces[index] for index in indices]
        return pack(chosen, store.dists(chosen).to(device), device)

    return fetch


def live(items: Sequence[Row | Trace], teacher: HfLM, vocab: int) -> Fetch:
    """The teacher runs beside the student; its full distribution is used."""

    def fetch(indices: Sequence[int]) -> Batch:
        batch = pack([items[index] for index in indices], device=teacher.device)
        return replace(batch, target=LiveTarget.of(teacher.hidden(batch), cut_head(teacher.head, vocab)))

    return fetch
