"""What a recipe may not say although every key is valid: parts that contradict each other, and settings without effect.

Pure logic on the recipe alone. What needs a model or data is in `check.recipe`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config.problems import Problem, no_effect, problem
from limbeck.errors import RecipeError
from limbeck.recipe.curate import curate_rules
from limbeck.recipe.data import (
    CapturedSource,
    DatasetSource,
    FileSource,
    ProblemsSource,
    StdlibSource,
    captured_rules,
    date_rules,
    template_rules,
)
from limbeck.recipe.evaluate import task_problems
from limbeck.recipe.export import export_problems
from limbeck.recipe.objective import needs_of
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.rules.objective import _all_divergences, objective_rules
from limbeck.recipe.rules.teacher import teacher_rules
from limbeck.recipe.student import student_rules
from limbeck.recipe.trace import GenerateMode, Live, Sampled, TextTarget, TopK, rejection_rules, vote_rules
from limbeck.recipe.train import train_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def check_static(recipe: Recipe) -> list[Problem]:
    """Every contradiction and every setting without effect; [] when the recipe is sound."""
    data = (_source, captured_rules, template_rules, date_rules, _rows, _mode, _target, vote_rules, rejection_rules)
    rules = (*data, student_rules, teacher_rules, curate_rules, objective_rules, train_rules, _evaluate, _export)
    return [found for rule in rules for found in rule(recipe)]


def raise_problems(problems: list[Problem], origin: Callable[[str], str] | None = None) -> None:
    """Raise one RecipeError that lists them, unless there are none. `origin` turns a path into file and line."""
    if problems:
        raise RecipeError("\n".join(f"{origin(p.where)}: {p.message}" if origin else p.message for p in problems))


def _source(recipe: Recipe) -> Iterator[Problem]:
    source = recipe.data.source
    if isinstance(source, StdlibSource | ProblemsSource | CapturedSource):
        return
    columns = [name for name in ("text", "prompt", "messages") if getattr(source, name) is not None]
    if len(columns) > 1:
        yield problem(
            "data.source",
            f"names the columns {' and '.join(columns)}; allowed is one of text, prompt (with completion), messages, "
            "or none of them (then the columns are recognised by their names).",
        )
    if source.completion is not None and source.prompt is None:
        yield problem("data.source.completion", "needs `prompt` beside it: the column of the prompts.")
    if columns == ["prompt"] and source.completion is None and not recipe.trace.mode.generates:
        yield problem(
            "data.source.prompt",
            "stands without `completion`, and a teacher that scores needs a text to score. Name the completion column, "
            "or let the teacher write: trace.mode.kind=generate.",
        )


def _rows(recipe: Recipe) -> Iterator[Problem]:
    source = recipe.data.source
    if recipe.data.chat_template:
        return
    why = "chat_template: false only changes prompt/completion pairs"
    if isinstance(source, StdlibSource):
        yield problem("data.chat_template", f"has no effect on plain text ({why}); remove it.")
    elif isinstance(source, (FileSource, DatasetSource)) and (source.text or source.messages):
        rows = "plain text" if source.text else "chat messages, which are always rendered by the template"
        yield problem("data.chat_template", f"has no effect on {rows} ({why}); remove it.")


def _mode(recipe: Recipe) -> Iterator[Problem]:
    mode = recipe.trace.mode
    if not isinstance(mode, GenerateMode):
        return
    if mode.temperature == 0:
        yield from no_effect(mode, "trace.mode", ("top_p",), "at temperature 0 (greedy)")
        if mode.n > 1:
            yield problem(
                "trace.mode.n", f"asks for {mode.n} replies, but at temperature 0 they are all the same; use 1."
            )
    if mode.think == "strip" and not isinstance(recipe.trace.target, TextTarget):
        yield problem(
            "trace.mode.think",
            f"is strip, but trace.target.kind is {recipe.trace.target.kind}: what was stored behind the reasoning does "
            "not fit a text without it. Set trace.target.kind=text, or keep the reasoning.",
        )
    if any(not text for text in mode.stop):
        yield problem("trace.mode.stop", "has an empty string, which would end every reply at once; remove it.")


def _target(recipe: Recipe) -> Iterator[Problem]:
    trace = recipe.trace
    if isinstance(trace.target, (Live, TextTarget)) and not trace.mode.generates:
        names, kind = ("batch_tokens", "shard_tokens"), trace.target.kind
        yield from no_effect(
            trace, "trace", names, f"when trace.target.kind is {kind} and the text is given: nothing is stored"
        )


SMALL_K = 32


def warn_static(recipe: Recipe) -> list[Problem]:
    """What is allowed and yet doubtful; [] when nothing is. Beside a problem it says nothing new."""
    target, objective = recipe.trace.target, recipe.objective
    if objective.only_ce:
        return []
    if isinstance(target, Sampled) and target.value == "probability":
        message = (
            "is probability: renormalised over the drawn tokens, targets are biased. counts is unbiased, and smaller."
        )
        return [problem("trace.target.value", message)]
    if not isinstance(target, TopK):
        return []
    found = []
    if target.tail != "cell":
        message = (
            f"is {target.tail}: targets are biased, and more than with a tail cell (tail=cell). sampled is unbiased."
        )
        return [problem("trace.target.tail", message)]
    for where, divergence in _all_divergences(objective):
        if needs_of(divergence) == "cells":
            message = (
                f"is {divergence.kind} on a stored top_k target: all tokens outside the {target.k} kept are one cell, "
                "so the student hears how much mass they have together, not which of them the teacher would never say. "
                "Its value is a lower bound. trace.target.kind=full has no such gap."
            )
            found.append(problem(where, message))
    if target.k < SMALL_K:
        message = (
            f"is {target.k}: gradients of a small top_k are biased, since the tail is one cell. sampled is unbiased "
            f"at the same size; or raise k to {SMALL_K} or more."
        )
        found.append(problem("trace.target.k", message))
    return found


def _evaluate(recipe: Recipe) -> Iterator[Problem]:
    if recipe.evaluate.answers == 0:
        yield from no_effect(recipe.evaluate, "evaluate", ("answer_tokens",), "when evaluate.answers is 0")
    if recipe.evaluate.tasks is not None:
        yield from task_problems(recipe.evaluate.tasks)


def _export(recipe: Recipe) -> Iterator[Problem]:
    yield from export_problems(recipe.export)
