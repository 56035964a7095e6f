"""One training step: forward and backward over a step's batches, one division by all positions, clip, update.

The loop, the estimate and the self-test take the same one.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import torch

from limbeck.errors import BudgetError, NonFiniteError
from limbeck.system.refusals import out_of_memory
from limbeck.train.parallel import full, gradient_sync, sum_over_ranks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from limbeck.recipe import Train
    from limbeck.types import LossOut, Ranks, Step

ALWAYS = ("loss", "ce", "kl")
"""Sums that every rank reports, whether it met them or not: ranks of a mixed source may meet other terms."""


def train_step(
    module: nn.Module, optimizer: torch.optim.Optimizer, step: Step, settings: Train, ranks: Ranks, *, number: int = 1
) -> dict[str, float]:
    """Take one step and return its means over all supervised positions: "loss", each of the loss's terms by name,
    "grad_norm" and "lr". `module` is the wrapped distiller; `number` counts steps, for messages.

    Raises NonFiniteError before a step with a non-finite loss or gradient is taken, BudgetError when memory runs out.
    """
    optimizer.zero_grad(set_to_none=True)
    sums, rows = _Sums(), []
    with _memory(number, settings):
        for index, batch in enumerate(step.batches):
            rows += batch.trace_ids
            with gradient_sync(module, index == step.num_batches - 1):
                out = module(batch)
                # Ranks average their gradients; the sum over ranks is wanted, divided once by all positions.
                (out.loss * (ranks.world / step.num_supervised)).backward()
            sums.add(out)
    means = sums.means(step.num_supervised, ranks)
    norm = float(full(torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip or math.inf)))
    if not (math.isfinite(means["loss"]) and math.isfinite(norm)):
        raise NonFiniteError(
            f"step {number} has loss {means['loss']} and gradient norm {norm}; the step was not taken and nothing was "
            f"saved after step {number - 1}. Rows of the batch: {', '.join(rows)}. Lower train.optimizer.lr "
            f"(now {settings.optimizer.lr:g}) or set train.precision to float32, and run again."
        )
    with _memory(number, settings):
        optimizer.step()  # the first one makes the moments
    first = {name: means.pop(name) for name in ("loss", "ce") if name in means}
    return first | {"grad_norm": norm, "lr": optimizer.param_groups[0]["lr"]} | means


class _Sums:
    """The loss and its terms by name, summed in double precision where they are."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, out: LossOut) -> None:
        for name, value in (("loss", out.loss.detach()), *out.terms.items()):
            before = self._sums.get(name)
            self._sums[name] = value.double() if before is None else before + value.double()

    def means(self, num: int, ranks: Ranks) -> dict[str, float]:
        """Over `num` positions of all ranks; a term that no rank met is left out. Read from the device in one go."""
        names = [*ALWAYS, *sorted(set(self._sums) - set(ALWAYS))]
        zero = torch.zeros((), dtype=torch.float64)
        device = next((value.device for value in self._sums.values()), zero.device)
        local = torch.stack([self._sums.get(name, zero).to(device) for name in names]).cpu()
        met = torch.tensor([float(name in self._sums) for name in names], dtype=torch.float64)
        totals, times = sum_over_ranks(torch.stack([local, met]), ranks)
        return {name: float(total) / num for name, total, each in zip(names, totals, times, strict=True) if each}


@contextlib.contextmanager
def _memory(number: int, settings: Train) -> Iterator[None]:
    """A step that memory does not hold ends with what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise BudgetError(
            f"out of memory in step {number}; lower train.batch_tokens (now {settings.batch_tokens}) and raise "
            "train.accumulate by the same factor, or set train.activation_checkpointing. The last checkpoint is kept."
        ) from error
