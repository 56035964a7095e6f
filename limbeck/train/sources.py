"""Sources: where the loop's steps come from. They differ in what a batch is made of, which the loop does not know.

    plain    ground truth only: the hard-label twin, or plain fine-tuning
    stored   the teacher's distributions from a store
    live     the teacher runs beside the student

`MixedSource` draws from several in one run. A source of rows that nobody knows beforehand is one more class with `draw`
and `epoch_batches` (`types.Source`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.errors import TeacherError
from limbeck.losses.chunked import cut_head
from limbeck.models.finite import advice
from limbeck.text.packing import pack, plan_batches
from limbeck.types import Cursor, LiveTarget, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from limbeck.store import TraceStore
    from limbeck.types import Backbone, Batch, Ranks, Row, Source, Trace, Vocab

    Items = Sequence[Row | Trace]
    Pack = Callable[[Items], Batch]
    Weigh = Callable[[Items], np.ndarray]


class EpochPlan:
    """Micro-batches of packed documents, shuffled anew in every epoch."""

    def __init__(self, items: Items, batch_tokens: int, seed: int) -> None:
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


@dataclass(frozen=True)
class RowSource:
    """Known rows, shuffled anew in every epoch. `pack` makes a batch of some of them: `plain`, `stored`, `live`. With
    `ahead`, a thread makes the next micro-batch while the present one is learnt from."""

    items: Items
    plan: EpochPlan
    pack: Pack
    ahead: bool = False

    def draw(self, cursor: Cursor, count: int, ranks: Ranks) -> Step:
        taken, after = self.plan.take(cursor, count)
        own = taken[ranks.rank :: ranks.world]
        return Step(
            self._batches(own),
            len(own),
            sum(self.plan.positions(indices) for indices in taken),
            sum(self.plan.tokens(indices) for indices in taken),
            after,
        )

    def epoch_batches(self, epoch: int) -> int:
        return len(self.plan.plan(epoch))

    def _batches(self, taken: list[list[int]]) -> Iterator[Batch]:
        made = (self.pack([self.items[index] for index in indices]) for indices in taken)
        return one_ahead(made) if self.ahead and len(taken) > 1 else made


def one_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, of which a thread makes the next one meanwhile. What it raises is raised where it was due."""
    with ThreadPoolExecutor(1, "batches") as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


# ---- what a batch is made of -----------------------------------------------------------------------------------------


def plain(device: torch.device) -> Pack:
    """Ground truth only."""
    return lambda items: pack(items, device=device)


def stored(store: TraceStore, device: torch.device) -> Pack:
    """The teacher's distributions from a store. They are decoded on the CPU."""
    return lambda items: pack(items, store.dists(items).to(device), device)  # type: ignore[arg-type]


def live(teacher: Backbone, vocab: Vocab) -> Pack:
    """The teacher runs beside the student; its full distribution is used. A batch for which the teacher has no finite
    numbers raises TeacherError."""

    def packed(items: Items) -> Batch:
        batch = pack(items, device=teacher.device)
        hidden_ND = teacher.hidden(batch)
        if not bool(hidden_ND.isfinite().all()):
            raise TeacherError(
                "the teacher's hidden states are not finite numbers on a batch of the rows "
                f"{', '.join(batch.trace_ids)}. {advice(hidden_ND.dtype)}"
            )
        return replace(batch, target=LiveTarget.of(hidden_ND, cut_head(teacher.head, vocab)))

    return packed


def weighted(unweighted: Pack, weigh: Weigh) -> Pack:
    """The same batches, with a weight for every supervised position; weights that are there already are multiplied."""

    def packed(items: Items) -> Batch:
        batch = unweighted(items)
        weights_N = torch.from_numpy(weigh(items)).to(batch.ids_T.device)
        return replace(batch, weights_N=weights_N if batch.weights_N is None else weights_N * batch.weights_N)

    return packed


# ---- several sources -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MixedSource:
    """Several sources in one run: of each step's micro-batches, as many of each as a draw by `shares` says.

    An epoch has no end here. Raises ValueError where shares are not one positive number for each source.
    """

    sources: tuple[Source, ...]
    shares: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.shares) or not self.sources or min(self.shares) <= 0:
            raise ValueError(f"{len(self.sources)} sources have the shares {self.shares}; give one above 0 for each")

    def draw(self, cursor: Cursor, count: int, ranks: Ranks) -> Step:
        places = cursor.parts or tuple(Cursor() for _ in self.sources)
        chance = np.array(self.shares) / sum(self.shares)
        counts = np.random.default_rng((self.seed, cursor.epoch, cursor.index)).multinomial(count, chance).tolist()
        steps, before = [], 0
        for source, place, own in zip(self.sources, places, counts, strict=True):
            # Ranks go on where the source before left off, so that none has more micro-batches than it should.
            turned = replace(ranks, rank=(ranks.rank - before) % ranks.world)
            steps.append(source.draw(place, own, turned) if own else Step((), 0, 0, 0, place))
            before += own
        return Step(
            (batch for step in steps for batch in step.batches),
            sum(step.num_batches for step in steps),
            sum(step.num_supervised for step in steps),
            sum(step.num_tokens for step in steps),
            Cursor(cursor.epoch, cursor.index + count, tuple(step.cursor for step in steps)),
        )

    def epoch_batches(self, _epoch: int) -> None:
        return None
