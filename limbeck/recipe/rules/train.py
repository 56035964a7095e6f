"""What the settings of training may not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config.problems import Problem, problem
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.train import WSD, StepsBudget

if TYPE_CHECKING:
    from collections.abc import Iterator


def train_rules(recipe: Recipe) -> Iterator[Problem]:
    train = recipe.train
    if not all(0 <= beta < 1 for beta in train.optimizer.betas):
        found = list(train.optimizer.betas)
        yield problem("train.optimizer.betas", f"is {found}; both must be at least 0 and below 1, such as [0.9, 0.95].")
    schedule = train.schedule
    if isinstance(schedule, WSD) and schedule.warmup + schedule.decay > 1:
        yield problem(
            "train.schedule",
            f"warms up over {schedule.warmup:g} and decays over {schedule.decay:g} of the budget, together more than "
            "all of it; their sum may be at most 1.",
        )
    if (
        train.qad is not None
        and isinstance(train.budget, StepsBudget)
        and train.qad.start > 1 - 0.5 / train.budget.steps
    ):
        yield problem(
            "train.qad.start",
            f"is {train.qad.start:g}, after the last of {train.budget.steps} steps; lower it, or remove train.qad.",
        )
    if train.twin and recipe.objective.only_ce and recipe.objective.position_weights.teacher is None:
        yield problem(
            "train.twin",
            "has no effect when objective.ce_weight is 1: the student is the hard-label twin already. Lower ce_weight, "
            "or set train.twin=false.",
        )
