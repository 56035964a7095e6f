"""What a run will cost: each stage here, the requests to an endpoint, and whether this machine is large enough."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from limbeck.check.findings import Doubt, Fact, Finding, StageCost
from limbeck.config.problems import Problem, problem
from limbeck.label.request_cost import estimate_requests
from limbeck.recipe import GenerateMode, OpenAITeacher
from limbeck.system.device import total_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.check.opened import Opened
    from limbeck.recipe import Recipe


def endpoint_requests(recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    """Requests, tokens and money of labelling, where the teacher is behind an endpoint."""
    settings = recipe.teacher
    if not isinstance(settings, OpenAITeacher):
        return
    generates = isinstance(recipe.trace.mode, GenerateMode)
    cost = estimate_requests(recipe, [row for row in opened.all_rows.rows if generates or row.split == "train"])
    yield cost
    if settings.max_cost is not None and cost.cost_likely is not None and cost.cost_likely > settings.max_cost:
        message = (
            f"is {settings.max_cost:g} {cost.currency}, but labelling likely takes {cost.cost_likely:.2f}: the job "
            "will end before all is asked. Raise it, or lower data.limit or trace.mode.max_tokens."
        )
        yield Doubt(problem("teacher.max_cost", message))


def stage_costs(_recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    yield from (StageCost(stage, estimate) for stage, estimate in opened.costs.items())


def disk_is_enough(_recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    disk = sum(cost["disk_bytes"] for cost in opened.costs.values())
    free = shutil.disk_usage(Path.cwd()).free
    if disk > free:
        message = (
            f"the run writes about {disk / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free in this folder. "
        )
        yield Problem("trace.target", message + "Free some space, or choose a smaller trace.target.")


def memory_is_enough(_recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    """A fact, no problem: the estimated peak may be above what a machine with swap can do."""
    peak = max(cost["peak_bytes"] for cost in opened.costs.values())
    memory = total_memory()
    if peak > memory:
        where = "the GPU" if torch.cuda.is_available() else "this machine"
        yield Fact(
            f"the run needs about {peak / 2**30:.1f} GiB of memory and {where} has {memory / 2**30:.1f} GiB; "
            "lower train.batch_tokens or data.max_length, or set train.activation_checkpointing=true."
        )
