"""`limbeck check`: everything that can be known before any work is done.

A check is a function of the recipe and of what it opens; it yields what it finds. Another check is another entry of a
list below.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from limbeck.check.compatibility import (
    first_rows_encode,
    layers_exist,
    rows_fit_context,
    student_can_be_quantized,
    template_exists,
    template_is_plain,
    tokenizers_agree,
    tokens_have_rows,
)
from limbeck.check.costs import disk_is_enough, endpoint_requests, memory_is_enough, stage_costs
from limbeck.check.findings import CheckResult, Doubt, Finding
from limbeck.check.needs import curation_needs, export_needs
from limbeck.check.opened import CannotOpen, Opened
from limbeck.check.teacher import endpoint_offers, teacher_doubts
from limbeck.config.problems import Problem, problem
from limbeck.recipe.rules.check import check_static, warn_static

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from limbeck.recipe import Recipe
    from limbeck.types import OnProgress

    Check = Callable[[Recipe, Opened], Iterable[Finding]]


def contradictions(recipe: Recipe, _opened: Opened) -> Iterator[Finding]:
    """What the recipe alone says."""
    yield from check_static(recipe)
    yield from map(Doubt, warn_static(recipe))


def harness_is_installed(recipe: Recipe, _opened: Opened) -> Iterator[Finding]:
    if recipe.evaluate.harness is not None and find_spec("lm_eval") is None:
        message = "needs the package 'lm_eval'; install it with: pip install 'limbeck[eval]', or remove the section."
        yield problem("evaluate.harness", message)


def trackers_are_installed(recipe: Recipe, _opened: Opened) -> Iterator[Finding]:
    """Training comes after labelling: too late to find out."""
    for name in recipe.train.all_trackers:
        if find_spec(name) is None:
            where = "train.tensorboard" if name == "tensorboard" else "train.trackers"
            yield problem(where, f"needs the package {name!r}; install it with: pip install 'limbeck[{name}]'.")


CHECKS: list[Check] = [
    contradictions,
    harness_is_installed,
    trackers_are_installed,
    rows_fit_context,
    layers_exist,
    tokenizers_agree,
    tokens_have_rows,
    student_can_be_quantized,
    template_exists,
    template_is_plain,
    first_rows_encode,
    curation_needs,
    export_needs,
]
"""All of them are made, whatever the others find."""

MEASUREMENTS: list[Check] = [
    endpoint_offers,
    endpoint_requests,
    teacher_doubts,
    stage_costs,
    memory_is_enough,
    disk_is_enough,
]
"""These read all rows, send requests and do a little of each stage's work: only as long as nothing is wrong."""


def check_recipe(recipe: Recipe, *, estimate: bool = True, on_progress: OnProgress | None = None) -> CheckResult:
    """Every problem that can be found before the run. Raises nothing for a bad recipe: what is wrong is in the result.

    `estimate` also measures, which takes some seconds longer and, behind an endpoint, a few requests.
    """
    opened = Opened(recipe, on_progress or (lambda _: None))
    findings: list[Finding] = []
    for check in CHECKS:
        findings += _new(check, opened, findings)
    for check in MEASUREMENTS if estimate else ():
        if any(isinstance(found, Problem) for found in findings):
            break
        findings += _new(check, opened, findings)
    return CheckResult.of(findings)


def _new(check: Check, opened: Opened, known: list[Finding]) -> list[Finding]:
    """What a check finds. A model that several checks cannot open is one problem."""
    found: list[Finding] = []
    try:
        for finding in check(opened.recipe, opened):  # what was found before a model could not be opened counts
            found.append(finding)
    except CannotOpen as error:
        found += [error.problem] if error.problem is not None and error.problem not in known else []
    return found
