"""What a recipe may not ask of votes: shares of a prompt's replies, and nothing of what the teacher thought besides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.findings import Problem, problem
from limbeck.recipe import GenerateMode, Recipe, Votes

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
