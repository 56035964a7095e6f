"""What an objective may not say: divergences, temperatures and weights against the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config.problems import Problem, no_effect, problem
from limbeck.recipe.objective import (
    AlphaBeta,
    ByTeacher,
    Decoupled,
    FirstTokens,
    PlaceRamp,
    Ranking,
    Schedule,
    ends_of,
    needs_of,
)
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.trace import Sampled, TextTarget, TopK, Votes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.recipe.objective import DivergenceSettings, Objective, PositionWeights, TeacherWeights
    from limbeck.recipe.trace import TargetSettings


def objective_rules(recipe: Recipe) -> Iterator[Problem]:
    objective, target = recipe.objective, recipe.trace.target
    by_teacher = objective.position_weights.teacher
    if objective.only_ce:
        names = ("divergence", "temperature", "extra_terms")
        yield from no_effect(objective, "objective", names, "when ce_weight is 1 (plain training)")
        if target.is_stored and by_teacher is None:
            names = ("target",)
            yield from no_effect(recipe.trace, "trace", names, "when objective.ce_weight is 1: no distribution is used")
    elif isinstance(target, TextTarget):
        message = f"is text, which has no distribution, but objective.ce_weight is {objective.ce_weight}: set it to 1."
        yield problem("trace.target.kind", message)
    else:
        yield from _divergences(recipe)
        yield from _temperature(recipe)
    yield from _ce(objective)
    if isinstance(target, TextTarget) and by_teacher is not None:
        yield problem("objective.position_weights.teacher", "weighs by what a text target does not hold; remove it.")
    yield from _weights(objective.position_weights, target)


def _all_divergences(objective: Objective) -> list[tuple[str, DivergenceSettings]]:
    """Every divergence with its place in the recipe."""
    extra = enumerate(term.divergence for term in objective.extra_terms)
    places = [(f"objective.extra_terms[{n}].divergence", divergence) for n, divergence in extra]
    return [("objective.divergence", objective.divergence), *places]


def knows_entropy(target: TargetSettings) -> bool:
    """Whether the teacher's own entropy is stored: a sample's is another."""
    return not isinstance(target, (TopK, Votes)) and not (isinstance(target, Sampled) and target.value == "probability")


def _divergences(recipe: Recipe) -> Iterator[Problem]:
    target = recipe.trace.target
    for where, divergence in _all_divergences(recipe.objective):
        needs, has = needs_of(divergence), target.offers
        if needs == "full" and has != "full":
            yield problem(
                where,
                f"is {divergence.kind}, which compares the logits of every token; a stored {target.kind} target has "
                "only some. Set trace.target.kind=full (the teacher runs beside the student).",
            )
        elif needs == "cells" and has == "sample":
            yield problem(
                where,
                f"is {divergence.kind}, which weighs tokens by the student's probability, so it needs the teacher's "
                f"probability of every token; a stored {target.kind} target has only some. Set trace.target.kind=full "
                "(the teacher runs beside the student), or use forward_kl.",
            )
        for name, value in divergence.inert.items():
            if getattr(divergence, name) == value:
                yield problem(f"{where}.{name}", f"is {value:g}, at which the loss is always 0; lower it.")
        if isinstance(divergence, (AlphaBeta, Decoupled)) and divergence.alpha == 0 == divergence.beta:
            yield problem(where, "has alpha 0 and beta 0; at least one must be above 0.")
        if isinstance(divergence, Ranking) and isinstance(target, TopK) and divergence.k > target.k:
            yield problem(f"{where}.k", f"is {divergence.k}, but trace.target keeps {target.k} tokens; lower it.")


def _temperature(recipe: Recipe) -> Iterator[Problem]:
    objective, stored = recipe.objective, not recipe.trace.target.is_live
    by = objective.temperature
    heeded = objective.divergence.tempered or any(
        term.divergence.tempered and term.temperature is None for term in objective.extra_terms
    )
    if not heeded:
        why = "on these divergences: the temperature changes nothing in them, or they have their own"
        yield from no_effect(objective, "objective", ("temperature",), why)
    if not isinstance(by, (int, float)):
        if stored:
            yield problem(
                "objective.temperature",
                f"is {by.kind}, but a stored {recipe.trace.target.kind} target has one temperature: its tail cannot be "
                "re-tempered. Give a number, or set trace.target.kind=full (the teacher runs beside the student).",
            )
        ends = ends_of(by)
        yield from _moves("objective.temperature", by.kind, ends)
        if min(ends) == 0:
            yield problem("objective.temperature", "reaches 0; it must be above 0 everywhere.")
        if isinstance(by, ByTeacher):
            yield from _doubt("objective.temperature", by)
    for number, term in enumerate(objective.extra_terms):
        where = f"objective.extra_terms[{number}].temperature"
        if term.temperature is None:
            continue
        if not term.divergence.tempered:
            yield problem(where, f"has no effect on {term.divergence.kind}; remove it.")
        elif stored and term.temperature != by:
            yield problem(
                where,
                f"is {term.temperature:g}, but a stored target has one temperature, and objective.temperature is its "
                "own. Remove it, or set trace.target.kind=full.",
            )


def _moves(where: str, kind: str, ends: tuple[float, float]) -> Iterator[Problem]:
    if ends[0] == ends[1]:
        yield problem(where, f"is {kind} from {ends[0]:g} to {ends[1]:g}: it does not change. Write the number.")


def _doubt(where: str, by: ByTeacher | TeacherWeights) -> Iterator[Problem]:
    if by.by == "confidence" and by.unsure_from > 1:
        yield problem(f"{where}.unsure_from", f"is {by.unsure_from:g}, but 1 - a probability is at most 1; lower it.")


def _ce(objective: Objective) -> Iterator[Problem]:
    by = objective.ce_weight
    if isinstance(by, Schedule):
        yield from _moves("objective.ce_weight", by.kind, (by.start, by.end))
        if objective.max_ce_weight > 1:
            yield problem("objective.ce_weight", f"reaches {objective.max_ce_weight:g}; a share is at most 1.")
    if objective.max_ce_weight == 0:
        yield from no_effect(
            objective, "objective", ("label_smoothing",), "without cross-entropy (objective.ce_weight)"
        )


def _weights(weights: PositionWeights, target: TargetSettings) -> Iterator[Problem]:
    where = "objective.position_weights"
    teacher, tokens, place = weights.teacher, weights.tokens, weights.place
    if teacher is not None:
        yield from _doubt(f"{where}.teacher", teacher)
        if teacher.certain == teacher.unsure:
            yield problem(f"{where}.teacher", "gives every position one weight; remove it.")
        if teacher.by == "entropy" and not knows_entropy(target):
            yield problem(
                f"{where}.teacher.by",
                f"is entropy, which this {target.kind} target does not store. Use confidence, or another trace.target.",
            )
        if teacher.by == "confidence" and isinstance(target, Sampled) and target.draws < FEW_DRAWS:
            yield problem(
                f"{where}.teacher.by",
                f"is confidence, of which {target.draws} draws are a poor witness. Use entropy, which is stored with "
                f"them, or at least {FEW_DRAWS} draws.",
            )
    if tokens is not None and len(set(tokens.model_dump().values())) == 1:
        yield problem(f"{where}.tokens", "gives every class one weight; remove it.")
    if isinstance(place, FirstTokens) and place.weight == 1:
        yield problem(f"{where}.place", "gives the first tokens the weight 1, which all have; remove it.")
    if isinstance(place, PlaceRamp):
        yield from _moves(f"{where}.place", place.kind, (place.start, place.end))


FEW_DRAWS = 16  # systematic draws tell a probability to within one draw
