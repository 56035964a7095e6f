"""What a recipe may not ask of several replies to a prompt: of votes, and of rejection sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config.problems import Problem, problem
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.teacher import OpenAITeacher
from limbeck.recipe.trace import GenerateMode, Votes
from limbeck.recipe.verifier import Judge

if TYPE_CHECKING:
    from collections.abc import Iterator


def vote_rules(recipe: Recipe) -> Iterator[Problem]:
    """Every contradiction between a target of votes and the other sections; nothing for other targets."""
    mode, objective = recipe.trace.mode, recipe.objective
    if not isinstance(recipe.trace.target, Votes):
        return
    if not isinstance(mode, GenerateMode):
        message = f"is votes, which replies cast, but trace.mode.kind is {mode.kind}. Set it to generate."
        yield problem("trace.target.kind", message)
    elif mode.n < 2:
        message = f"is {mode.n}, but votes need replies to count: at least 2, better 5 to 10. Or set target.kind=text."
        yield problem("trace.mode.n", message)
    if not objective.only_ce and objective.temperature != 1:
        message = "changes distributions, and votes are counts of replies: set it to 1 (trace.mode.temperature is "
        yield problem("objective.temperature", message + "the one that replies are drawn at).")
    if objective.position_weights.teacher is not None:
        message = "weighs by how sure the teacher is, of which one or two replies at a position say nothing; remove it."
        yield problem("objective.position_weights.teacher", message)


def rejection_rules(recipe: Recipe) -> Iterator[Problem]:
    """Every contradiction between `trace.mode.rejection` and the other sections; nothing without it."""
    mode, where = recipe.trace.mode, "trace.mode.rejection"
    if not isinstance(mode, GenerateMode) or mode.rejection is None:
        return
    wanted = mode.rejection.num_correct
    if wanted >= mode.n:
        message = f"is {wanted}, and a prompt gets at most trace.mode.n={mode.n} replies: nothing is ever spared. "
        yield problem(f"{where}.num_correct", message + "Raise trace.mode.n, or remove trace.mode.rejection.")
    if isinstance(recipe.trace.target, Votes):
        yield problem(where, "stops at right replies, and votes are shares of all; remove it, or set target.kind=text.")
    if isinstance(mode.rejection.verifier, Judge):
        message = "is judge, which is asked many replies at once, not one after the other. Take another verifier, or "
        yield problem(f"{where}.verifier.kind", message + "the rule `verify` of curate.")
    if isinstance(recipe.teacher, OpenAITeacher) and recipe.teacher.mode == "batch":
        message = "asks one reply after the other, and a batch takes a day. Set teacher.mode to live, or remove it."
        yield problem(where, message)
