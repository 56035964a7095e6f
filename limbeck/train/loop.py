"""The loop: take micro-batches, count their positions over all ranks, forward, backward, clip, step, log."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from limbeck.errors import BudgetError, NonFiniteError, Stopped
from limbeck.recipe import EpochsBudget, MinutesBudget, StepsBudget, TokensBudget, Train
from limbeck.system.atomic import fingerprint
from limbeck.train import checkpoint
from limbeck.train.checkpoint import FitState
from limbeck.train.log import MetricsWriter
from limbeck.train.objective import scheduled_values, terms_at
from limbeck.train.optim import build_optimizer, set_rate
from limbeck.train.parallel import Ranks, agree, full, gradient_sync, sum_over_ranks, wrap
from limbeck.types import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from limbeck.recipe import Objective
    from limbeck.train.batches import BatchPlan, Fetch
    from limbeck.train.distiller import Distiller
    from limbeck.types import OnProgress


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

    def __init__(self, settings: Train, order: BatchPlan) -> None:
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
            batches = sum(len(order.plan(epoch)) for epoch in range(whole))
            batches += math.ceil((budget.epochs - whole) * len(order.plan(whole))) if budget.epochs > whole else 0
            self.total = max(1, math.ceil(batches / settings.accumulate))

    def used(self, state: FitState) -> float:
        return {"steps": state.step, "tokens": state.tokens, "seconds": state.seconds}[self.unit]

    def share(self, state: FitState, *, ahead: float = 0.0) -> float:
        """The share used, looking `ahead` by some steps (of the mean size so far)."""
        step = 1.0 if self.unit == "steps" else self.used(state) / max(state.step, 1)
        return (self.used(state) + ahead * step) / self.total


def fit(
    distiller: Distiller,
    order: BatchPlan,
    fetch: Fetch,
    settings: Train,
    job: TrainContext,
    objective: Objective | None = None,
) -> FitState:
    """Train until the budget is used. Resumes from the newest sound checkpoint under `job.out`; the result is the same
    as without the interruption (bit-equal on one CPU process, minutes budgets excepted). With an `objective` the
    distiller's terms are those of each step; without, they stay what they are.

    Raises NonFiniteError before a step with a non-finite loss or gradient is taken, Stopped after a requested stop was
    saved, BudgetError when memory runs out.
    """
    module = wrap(distiller, job.ranks)
    optimizer = build_optimizer(module, settings.optimizer)
    folder = job.out / "checkpoints"
    state = first = checkpoint.load_newest(folder, distiller.student, optimizer, job.on_message)
    budget = Budget(settings, order)

    def save() -> float:
        checkpoint.save(folder, distiller.student, optimizer, state, job.ranks)
        checkpoint.keep_newest(folder, settings.keep_checkpoints)
        return time.monotonic()

    saved_at = begun = time.monotonic()
    with MetricsWriter(job.out, state.step, settings, write=job.ranks.is_first) as metrics:
        while budget.share(state) < 1.0:
            progress = budget.share(state, ahead=0.5)
            set_rate(optimizer, settings, progress)
            if objective is not None:
                distiller.terms = terms_at(objective, progress)
            if settings.qad is not None and progress >= settings.qad.start:
                distiller.quantize(settings.qad)
            torch.manual_seed(int(fingerprint(job.seed, state.step, job.ranks.rank)[:15], 16))
            state, values = _step(module, optimizer, order, fetch, state, settings, job)
            state = replace(state, seconds=first.seconds + time.monotonic() - begun)
            if objective is not None:
                values |= scheduled_values(objective, progress)
            told = _progress(job.stage, budget, state, first, values)
            metrics.write(state, values, rate=told.values["tokens_per_second"])
            job.on_progress(told)
            due = time.monotonic() - saved_at > 60.0 * settings.checkpoint_minutes
            stop, due = agree(job.stop_asked(), due, job.ranks)
            if (stop or due) and budget.share(state) < 1.0:
                saved_at = save()
            if stop and budget.share(state) < 1.0:
                raise Stopped(f"stopped at step {state.step} and saved; run the same command again to go on.")
    save()
    return state


def _step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    order: BatchPlan,
    fetch: Fetch,
    state: FitState,
    settings: Train,
    job: TrainContext,
) -> tuple[FitState, dict[str, float]]:
    batches, cursor = order.take(state.cursor, settings.accumulate)
    positions = sum(order.positions(batch) for batch in batches)
    mine = batches[job.ranks.rank :: job.ranks.world]
    sums = torch.zeros(3, dtype=torch.float64)
    optimizer.zero_grad(set_to_none=True)
    try:
        for number, indices in enumerate(mine):
            with gradient_sync(module, number == len(mine) - 1):
                out = module(fetch(indices))
                # Ranks average their gradients; the sum over ranks is wanted, divided once by all positions.
                (out.loss * (job.ranks.world / positions)).backward()
            kl = out.loss.new_zeros(()) if out.kl is None else out.kl
            sums += torch.stack([out.loss.detach(), out.ce, kl]).double().cpu()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise BudgetError(
            f"out of memory in step {state.step + 1}; lower train.batch_tokens (now {settings.batch_tokens}) and raise "
            "train.accumulate by the same factor, or set train.activation_checkpointing. The last checkpoint is kept."
        ) from error
    loss, ce, kl = (sum_over_ranks(sums, job.ranks) / positions).tolist()
    norm = float(full(torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip or math.inf)))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NonFiniteError(
            f"step {state.step + 1} has loss {loss} and gradient norm {norm}; the step was not taken and nothing was "
            f"saved after step {state.step}. Rows of the batch: {batches}. Lower train.optimizer.lr "
            f"(now {settings.optimizer.lr:g}) or set train.precision to float32, and run again."
        )
    optimizer.step()
    tokens = sum(order.tokens(batch) for batch in batches)
    state = replace(
        state,
        step=state.step + 1,
        tokens=state.tokens + tokens,
        positions=state.positions + positions,
        cursor=cursor,
    )
    values = {"loss": loss, "ce": ce, "grad_norm": norm, "lr": optimizer.param_groups[0]["lr"]}
    return state, values if out.kl is None else values | {"kl": kl}


def _progress(stage: str, budget: Budget, state: FitState, first: FitState, values: dict[str, float]) -> Progress:
    seconds = max(state.seconds - first.seconds, 1e-9)
    done, total = budget.used(state), budget.total
    rate = (done - budget.used(first)) / seconds
    eta = max(total - done, 0.0) / max(rate, 1e-9)
    shown = values | {"tokens_per_second": (state.tokens - first.tokens) / seconds}
    return Progress(stage, done, total, budget.unit, rate, eta, shown)
