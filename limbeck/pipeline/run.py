"""A whole run: every stage in order, each skipped when nothing that it depends on changed."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.check.recipe import check_recipe
from limbeck.errors import Stopped, StoreError
from limbeck.pipeline.context import RunContext
from limbeck.pipeline.inputs import changed
from limbeck.pipeline.outputs import identity_of
from limbeck.pipeline.stages import DATA, STAGES, estimate_costs, finished, is_current
from limbeck.pipeline.summary import write_summary
from limbeck.recipe.recipe import dump_recipe
from limbeck.recipe.rules.check import raise_problems
from limbeck.system.atomic import atomic_write
from limbeck.system.cost import disk_bytes, measure
from limbeck.system.ranks import first_rank
from limbeck.system.refusals import machine_errors
from limbeck.system.rundir import RunDir, StageRecord
from limbeck.system.sealed import seal_yaml
from limbeck.system.signals import interruptible, stop_requests
from limbeck.train.parallel import refuse_launch
from limbeck.types import Callbacks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from limbeck.pipeline.stages import Stage
    from limbeck.recipe import Recipe
    from limbeck.types import OnProgress

logger = logging.getLogger(__name__)


def run_recipe(
    recipe: Recipe,
    run_dir: Path | str,
    *,
    until: str = "report",
    estimate: bool = True,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run a recipe up to the stage `until` (a name of `pipeline.stages.STAGES`).

    With `estimate`, a few seconds are spent first on what the run will cost. Returns the summary, as written to
    RUN/summary.json. Raises RecipeError before any work when `check` finds a problem; Stopped after a requested stop,
    with everything saved; and what the stages raise.
    """
    names = tuple(stage.name for stage in STAGES)
    if until not in names:
        raise ValueError(f"unknown stage {until!r}; allowed are {', '.join(names)}")
    quiet = lambda _: None  # noqa: E731
    on_progress = (on_progress if first_rank() else None) or quiet  # ranks that train together report as one
    with _opened(Path(run_dir)) as run, _stopping() as stop_asked, contextlib.ExitStack() as resources:
        context = RunContext(recipe, run, Callbacks(on_progress, on_message or quiet, stop_asked), resources)
        _check(context)
        stages = STAGES[: names.index(until) + 1]
        _refuse_launch(context, stages)
        for stage in stages:
            if stop_asked():
                raise Stopped(f"stopped before the stage {stage.name}; run the same command again to go on.")
            key = _due(stage, context)
            if key is not None:
                with _recorded(stage, key, context), interruptible(not stage.saves):
                    stage.run(context)
            if stage is DATA and estimate and first_rank():
                estimate_costs(context)
        return write_summary(recipe, run, finished(STAGES, context)) if first_rank() else {}


@contextlib.contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Stages that save when they are asked to stop look for it; all else is interrupted where it is."""
    with stop_requests() as asked:
        try:
            with interruptible():
                yield asked
        except KeyboardInterrupt:
            if not asked():
                raise
            raise Stopped("stopped; what was finished is kept. Run the same command again to go on.") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[RunDir]:
    """The run folder, locked by the first rank only. What the machine refuses meanwhile says what to do."""
    with machine_errors():
        if not first_rank():
            yield RunDir(path)
            return
        with RunDir.open(path) as run:
            yield run


def _check(context: RunContext) -> None:
    if not first_rank():
        return
    found = check_recipe(context.recipe, estimate=False)
    raise_problems(found.problems)
    for warning in found.warnings:
        context.callbacks.on_message(f"warning: {warning.message}")
    written, text = context.path / "recipe.yaml", seal_yaml(dump_recipe(context.recipe))
    if not written.exists() or written.read_bytes() != text.encode():
        context.run.unfinish()  # the summary is that of another recipe
        atomic_write(written, text)


def _refuse_launch(context: RunContext, stages: Sequence[Stage]) -> None:
    """Where ranks are still to train together, the processes that there are must suit them: told now, not after days of
    labelling."""
    together = [stage for stage in stages if stage.collective and stage.needed(context)]
    if any(not context.run.is_current(stage.name, stage.key(context)) for stage in together):
        refuse_launch(context.recipe.train.parallel, context.recipe.train.accumulate)


def _due(stage: Stage, context: RunContext) -> str | None:
    """The stage's key where this process has to work on it, else None. Its record is forgotten then, before anything
    that it speaks of is touched. Ranks beyond the first work on collective stages alone: they return when the first one
    has finished any other."""
    if not stage.needed(context):
        return None
    key, alone = stage.key(context), not (first_rank() or stage.collective)
    if is_current(stage, context) and (alone or _is_true(stage, context)):
        context.callbacks.on_message(f"{stage.name}: nothing changed, skipped")
        return None
    _tell_changes(stage, context)
    if first_rank():
        context.run.forget(stage.name)
    if not alone:
        return key
    _await(stage, context)
    return None


def _tell_changes(stage: Stage, context: RunContext) -> None:
    """Name what has another content under the same name: the recipe shows no difference."""
    record = context.run.record(stage.name)
    if record is None or record.fingerprint != stage.key(context) or record.inputs is None:
        return
    if names := changed(record.inputs, stage.inputs(context)):
        context.callbacks.on_message(f"{stage.name}: {names} changed since; it is done again")


def _is_true(stage: Stage, context: RunContext) -> bool:
    """Whether the outputs are those that the stage's record speaks of, byte by byte; damage is told. A record of an
    earlier version that says nothing of outputs or inputs is completed."""
    record = context.run.record(stage.name)
    if record is None or not all(output.exists() for output in stage.outputs(context)):
        return False
    try:
        identity, holds = identity_of(stage.compared(context)), stage.holds(context)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StoreError) as error:
        context.callbacks.on_message(f"{stage.name}: {_sentence(error)}; it is made again")
        return False
    if record.identity not in ("", identity):
        context.callbacks.on_message(f"{stage.name}: its files are not those that it left; it is made again")
        return False
    if not holds:
        return False
    if first_rank() and (not record.identity or record.inputs is None):
        stage.complete(context)
        context.run.finish(replace(record, identity=identity, inputs=stage.inputs(context)))
    return True


def _sentence(error: Exception) -> str:
    """What is wrong, without the advice: it is followed at once."""
    return str(error).partition(". ")[0].rstrip(".")


@contextlib.contextmanager
def _recorded(stage: Stage, key: str, context: RunContext) -> Iterator[None]:
    """Measure the work on a stage; the record that it is finished comes last."""
    logger.info("stage %s begins", stage.name)
    with measure() as cost:
        yield
    logger.info("stage %s took %.1f s", stage.name, cost.seconds)
    if first_rank():
        disk, identity = disk_bytes(*stage.outputs(context)), identity_of(stage.compared(context))
        cost_of = cost.seconds, cost.peak_bytes, disk
        context.run.finish(StageRecord(stage.name, key, *cost_of, identity, stage.inputs(context)))
    else:
        _await(stage, context)


def _await(stage: Stage, context: RunContext) -> None:
    while not is_current(stage, context):
        time.sleep(0.2)
