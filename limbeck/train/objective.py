"""The recipe's objective as the terms of a step: the one place where schedules become numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from limbeck.losses.terms import Adaptive, Term, Terms
from limbeck.recipe import ByTeacher, HalfCosine, Schedule

if TYPE_CHECKING:
    from limbeck.recipe import DivergenceSettings, ExtraTerm, Objective, TeacherWeights


def scheduled(by: Schedule, progress: float) -> float:
    """The value at `progress`, the share of the budget used (0 to 1)."""
    share = min(progress / by.over, 1.0)
    if isinstance(by, HalfCosine):
        share = 0.5 * (1.0 - math.cos(math.pi * share))
    return by.start + (by.end - by.start) * share


def terms_at(objective: Objective, progress: float) -> Terms:
    """What the step at `progress` (share of the budget used, taken at the step's middle) minimises: a pure function, so
    that a resumed run minimises what an uninterrupted one does."""
    temperature, ce_weight = objective.temperature, objective.ce_weight
    if isinstance(temperature, Schedule):
        temperature = scheduled(temperature, progress)
    elif isinstance(temperature, ByTeacher):
        temperature = _adaptive(temperature)
    if isinstance(ce_weight, Schedule):
        ce_weight = scheduled(ce_weight, progress)
    by_teacher = objective.position_weights.teacher
    divergence = objective.divergence
    return Terms(
        divergence.kind,
        temperature if divergence.tempered else 1.0,
        ce_weight,
        _params(divergence),
        objective.label_smoothing if ce_weight else 0.0,  # a schedule may begin or end without cross-entropy
        tuple(_term(term, temperature) for term in objective.extra_terms),
        _adaptive(by_teacher) if by_teacher else None,
    )


def twin_terms(objective: Objective) -> Terms:
    """The hard-label twin: cross-entropy on ground truth alone, smoothed as the student's is."""
    return Terms(ce_weight=1.0, label_smoothing=objective.label_smoothing)


def scheduled_values(objective: Objective, progress: float) -> dict[str, float]:
    """The numbers that change with the step, for the metrics."""
    numbers = {"temperature": objective.temperature, "ce_weight": objective.ce_weight}
    return {name: scheduled(by, progress) for name, by in numbers.items() if isinstance(by, Schedule)}


def _term(also: ExtraTerm, temperature: float | Adaptive) -> Term:
    own = also.temperature or temperature
    return Term(also.divergence.kind, own if also.divergence.tempered else 1.0, also.weight, _params(also.divergence))


def _params(divergence: DivergenceSettings) -> dict[str, float]:
    return divergence.model_dump(exclude={"kind"})


def _adaptive(by: ByTeacher | TeacherWeights) -> Adaptive:
    return Adaptive(by.by, by.certain, by.unsure, by.unsure_from)
