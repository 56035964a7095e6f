"""The loop: draw a step, take it, log it, save what is due. Where steps come from is the source's affair."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from limbeck.errors import RecipeError, Stopped
from limbeck.recipe import EpochsBudget, MinutesBudget, StepsBudget, TokensBudget, Train
from limbeck.system.atomic import fingerprint
from limbeck.train import checkpoint
from limbeck.train.checkpoint import FitState
from limbeck.train.log import MetricsWriter
from limbeck.train.optim import build_optimizer, set_rate
from limbeck.train.parallel import agree, wrap
from limbeck.train.step import train_step
from limbeck.types import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from limbeck.train.distiller import Distiller
    from limbeck.types import OnProgress, Ranks, Source


@dataclass(frozen=True)
class TrainContext:
    """One training job: where it writes, what it is called in progress reports, and how it hears of stops."""

    stage: str
    out: Path
    seed: int
    ranks: Ranks
    on_progress: OnProgress
    on_message: Callable[[str], None]
    stop_asked: Callable[[], bool]


class Budget:
    """How much training there is; `share` is the part of it that a state has used (1 or more: done)."""

    def __init__(self, settings: Train, source: Source) -> None:
        self.settings = settings
        budget = settings.budget
        self.unit, self.total = "steps", 0.0
        if isinstance(budget, StepsBudget):
            self.total = budget.steps
        elif isinstance(budget, TokensBudget):
            self.unit, self.total = "tokens", budget.tokens
        elif isinstance(budget, MinutesBudget):
            self.unit, self.total = "seconds", 60.0 * budget.minutes
        elif isinstance(budget, EpochsBudget):
            whole = int(budget.epochs)
            batches = sum(_epoch_batches(source, epoch) for epoch in range(whole))
            part = budget.epochs - whole
            batches += math.ceil(part * _epoch_batches(source, whole)) if part > 0 else 0
            self.total = max(1, math.ceil(batches / settings.accumulate))

    def used(self, state: FitState) -> float:
        return {"steps": state.step, "tokens": state.tokens, "seconds": state.seconds}[self.unit]

    def share(self, state: FitState, *, ahead: float = 0.0) -> float:
        """The share used, looking `ahead` by some steps (of the mean size so far)."""
        step = 1.0 if self.unit == "steps" else self.used(state) / max(state.step, 1)
        return (self.used(state) + ahead * step) / self.total


def _epoch_batches(source: Source, epoch: int) -> int:
    found = source.epoch_batches(epoch)
    if found is None:
        raise RecipeError(
            "train.budget.kind is epochs, but what is trained on has no end; count steps, tokens or minutes instead."
        )
    return found


def fit(distiller: Distiller, source: Source, settings: Train, context: TrainContext) -> FitState:
    """Train until the budget is used. Resumes from the newest sound checkpoint under `context.out`; the result is the
    same as without the interruption (bit-equal on one CPU process, minutes budgets excepted). What a step minimises is
    the distiller's affair (`Distiller.follow`).

    Raises NonFiniteError before a step with a non-finite loss or gradient is taken, Stopped after a requested stop was
    saved, BudgetError when memory runs out, RecipeError for a budget of epochs on a source without an end.
    """
    module = wrap(distiller, context.ranks)
    optimizer = build_optimizer(module, settings.optimizer)
    folder = context.out / "checkpoints"
    state = first = checkpoint.load_newest(folder, distiller, optimizer, context.on_message)
    budget = Budget(settings, source)

    def save() -> float:
        checkpoint.save(folder, distiller, optimizer, state, context.ranks)
        checkpoint.keep_newest(folder, settings.keep_checkpoints)
        return time.monotonic()

    saved_at = begun = time.monotonic()
    with MetricsWriter(context.out, state.step, settings, write=context.ranks.is_first) as metrics:
        while budget.share(state) < 1.0:
            # The middle of the step: of two steps, the first is at a quarter.
            progress = budget.share(state, ahead=0.5)
            set_rate(optimizer, settings, progress)
            scheduled = distiller.advance(progress)
            # A step's randomness is its own: a resumed run draws what an uninterrupted one would.
            torch.manual_seed(int(fingerprint(context.seed, state.step, context.ranks.rank)[:15], 16))
            step = source.draw(state.cursor, settings.accumulate, context.ranks)
            values = train_step(module, optimizer, step, settings, context.ranks, number=state.step + 1)
            state = replace(
                state,
                step=state.step + 1,
                tokens=state.tokens + step.num_tokens,
                positions=state.positions + step.num_supervised,
                cursor=step.cursor,
                seconds=first.seconds + time.monotonic() - begun,
            )
            shown = _progress(context.stage, budget, state, first, values | scheduled)
            metrics.write(state, values | scheduled, rate=shown.values["tokens_per_second"])
            context.on_progress(shown)
            due = time.monotonic() - saved_at > 60.0 * settings.checkpoint_minutes
            stop, due = agree(context.stop_asked(), due, context.ranks)
            if (stop or due) and budget.share(state) < 1.0:
                saved_at = save()
            if stop and budget.share(state) < 1.0:
                raise Stopped(f"stopped at step {state.step} and saved; run the same command again to go on.")
    save()
    return state


def _progress(stage: str, budget: Budget, state: FitState, first: FitState, values: dict[str, float]) -> Progress:
    seconds = max(state.seconds - first.seconds, 1e-9)
    done, total = budget.used(state), budget.total
    rate = (done - budget.used(first)) / seconds
    eta = max(total - done, 0.0) / max(rate, 1e-9)
    shown = values | {"tokens_per_second": (state.tokens - first.tokens) / seconds}
    return Progress(stage, done, total, budget.unit, rate, eta, shown)
