"""The stages of a run, in order. A stage is a value: adding one is one entry in `STAGES`.

A fingerprint covers all that a stage depends on, the stages before it included. What is recorded in run folders must
not change: `tests/pipeline/test_stages.py` holds the fingerprints of earlier versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from limbeck.check.estimate import estimate_stages
from limbeck.curate.stage import candidates_of, run_curate
from limbeck.data.build import run_data
from limbeck.evaluate.stage import evaluation_shelf, put_scores, run_evaluate, scores_are_put, seal_scores
from limbeck.evaluate.task_stage import run_tasks, task_files
from limbeck.export.stage import run_exports
from limbeck.export.verified import ParityRows
from limbeck.label.judge import ask_judges
from limbeck.label.stage import LabelJob, has_targets, store_targets
from limbeck.label.strip_reasoning import strips_thinking
from limbeck.models.open import open_hf
from limbeck.pipeline.inputs import (
    curate_inputs,
    data_inputs,
    evaluate_inputs,
    label_inputs,
    student_inputs,
    train_inputs,
)
from limbeck.pipeline.summary import read_estimate, write_estimate, write_summary
from limbeck.recipe import OpenAITeacher, name_of_export
from limbeck.report.page import run_report
from limbeck.students.build import build_student
from limbeck.system.atomic import fingerprint, verify_dir
from limbeck.system.shelf import content_key, mark, marked_key
from limbeck.train.loop import TrainContext
from limbeck.train.run import Supervision, train_student, trusts_remote_code
from limbeck.train.stage import artifact_dtype, claim_training, save_trained, twin_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from limbeck.pipeline.context import RunContext
    from limbeck.types import Row


@dataclass(frozen=True)
class Stage:
    """One step of a run, done again when `key`, the fingerprint of all that it depends on, is another than before, or
    the content of `inputs`: what the recipe names, models above all, with a digest by name.

    `outputs` are the files and folders that it leaves; one that is gone makes the stage unfinished. So do those of
    `essence` (all outputs, where it is None) when they are not what the stage's record says, and `holds` when it finds
    that they are not those of this recipe. `needed`: whether this recipe has the stage. A `collective` stage is worked
    on by every rank, any other one by the first. `complete` says in outputs of an earlier version what they lack.
    One that `saves` looks whether a stop was asked for and keeps what it
    has; any other one is interrupted.
    """

    name: str
    key: Callable[[RunContext], str]
    outputs: Callable[[RunContext], tuple[Path, ...]]
    run: Callable[[RunContext], object]
    inputs: Callable[[RunContext], dict[str, str]] = lambda _: {}
    needed: Callable[[RunContext], bool] = lambda _: True
    holds: Callable[[RunContext], bool] = lambda _: True
    complete: Callable[[RunContext], None] = lambda _: None
    essence: Callable[[RunContext], tuple[Path, ...]] | None = None
    collective: bool = False
    saves: bool = False

    def compared(self, context: RunContext) -> tuple[Path, ...]:
        """What is compared with the record before the stage is skipped."""
        return (self.essence or self.outputs)(context)


def _in(*parts: str) -> Callable[[RunContext], tuple[Path, ...]]:
    """Files or folders of the run."""
    return lambda context: tuple(context.path / part for part in parts)


def data_fingerprint(context: RunContext) -> str:
    words = context.tokenizer_identity
    return fingerprint(context.data_identity, words, context.recipe.trace.mode.generates, context.recipe.seed)


def _data(context: RunContext) -> None:
    longest = getattr(context.reader_config, "max_position_embeddings", None)
    summary = run_data(
        context.recipe,
        context.run,
        context.tokenizer,
        max_context=longest,
        num_rows=context.vocab.embedding,
        on_progress=context.callbacks.on_progress,
    )
    for warning in summary.warnings:
        context.callbacks.on_message(f"warning: {warning}")


def estimate_costs(context: RunContext) -> None:
    """What the other stages will cost, once per recipe, before anything long is begun."""
    recipe = context.recipe
    if not recipe.teacher.is_local:
        return
    parts = recipe.train.twin, recipe.fingerprint("evaluate", "export")
    key = fingerprint(train_fingerprint(context, "student"), *parts)
    if read_estimate(context.run, key) is None:
        context.callbacks.on_message("estimating time, memory and disk of each stage")
        write_estimate(context.run, key, estimate_stages(recipe, context.teacher, context.rows))


def label_fingerprint(context: RunContext) -> str:
    recipe, teacher = context.recipe, context.recipe.teacher
    trace = recipe.trace.stored_form()
    trace["mode"] = recipe.trace.mode.identity
    parts = [trace, recipe.seed, teacher.stored_form()]
    if isinstance(teacher, OpenAITeacher):  # how fast it is asked changes nothing
        parts[-1] = teacher.identity
    return fingerprint(data_fingerprint(context), parts, recipe.objective.stored_temperature)


def _labelled(context: RunContext) -> list[Row]:
    """The rows of which the store says something."""
    return [row for row in context.rows if context.recipe.trace.mode.generates or row.split == "train"]


def _has_targets(context: RunContext) -> bool:
    return has_targets(context.recipe, context.path / "traces", _labelled(context), context.tokenizer)


def _label(context: RunContext) -> None:
    store_targets(
        context.recipe,
        LabelJob(context.path / "traces", _labelled(context), label_inputs(context)),
        teacher=context.local_teacher,
        tokenizer=context.tokenizer,
        callbacks=context.callbacks,
    )


def curate_fingerprint(context: RunContext) -> str:
    return fingerprint(label_fingerprint(context), context.recipe.fingerprint("curate"), context.rule_files)


def _curate(context: RunContext) -> None:
    items = [*context.uncurated("train"), *context.uncurated("heldout")]
    run_curate(
        context.recipe,
        context.path / "curate",
        candidates_of(items, context.rows, context.tokenizer),
        ask=ask_judges(context.callbacks.on_message),
        content_of=context.verifier_content,
        callbacks=context.callbacks,
    )


def student_fingerprint(context: RunContext) -> str:
    return fingerprint(data_fingerprint(context), context.recipe.fingerprint("student", "teacher", "seed"))


def _student(context: RunContext) -> None:
    build_student(context.recipe, context.run, context.local_teacher, context.rows)


def train_fingerprint(context: RunContext, role: str) -> str:
    recipe, twin = context.recipe, role == "twin"
    train = recipe.train.stored_form()
    for key in ("twin", "checkpoint_minutes", "keep_checkpoints", "tensorboard", "parallel"):
        train.pop(key)
    train.pop("trackers", None)
    if train["qad"] is None:  # runs from before there was such a key are what they were
        train.pop("qad")
    # The twin shares what needs no teacher.
    shared = ("objective.label_smoothing", "objective.position_weights.tokens", "objective.position_weights.place")
    objective = recipe.fingerprint(*(shared if twin else ("objective",)))
    curated = [curate_fingerprint(context)] if recipe.curate else []
    stripped = ["strip"] if strips_thinking(recipe) else []
    before = label_fingerprint(context), student_fingerprint(context)
    return fingerprint(*before, train, objective, twin, *curated, *stripped)


def _supervision(context: RunContext) -> Supervision:
    """What the student learns from beside its rows."""
    target = context.recipe.trace.target
    if target.is_live:
        return Supervision("live", context.columns, teacher=context.teacher)
    if target.is_stored:
        return Supervision("stored", context.columns, store=context.store)
    return Supervision("text", context.columns)


def _train(context: RunContext, role: str) -> None:
    recipe, twin, told = context.recipe, role == "twin", context.callbacks
    out, start, name = context.path / "train" / role, context.path / "student", "twin" if twin else "train"
    key, inputs = train_fingerprint(context, role), train_inputs(context)
    if claim_training(out, key, inputs, context.ranks, told.on_message):
        return
    trained = train_student(
        twin_recipe(recipe, out.with_name("student")) if twin else recipe,
        context.items("train"),
        start,
        Supervision("text", context.columns) if twin else _supervision(context),
        TrainContext(name, out, recipe.seed, context.ranks, *told),
    )
    if context.ranks.is_first:
        save_trained(out / "artifact", trained.model, context.tokenizer, recipe, role=role, start=start)


def _has_trained(context: RunContext, role: str) -> bool:
    out = context.path / "train" / role
    key = train_fingerprint(context, role)
    return marked_key(out) in (key, content_key(key, train_inputs(context)))


def _mark_training(context: RunContext, role: str) -> None:
    """Say of the training of an earlier version what it was made of, too: it is taken up again then."""
    mark(context.path / "train" / role, content_key(train_fingerprint(context, role), train_inputs(context)))


def evaluate_fingerprint(context: RunContext) -> str:
    recipe = context.recipe
    parts = [train_fingerprint(context, "student"), train_fingerprint(context, "twin") if recipe.train.twin else None]
    return fingerprint(parts, recipe.fingerprint("evaluate"), task_files(recipe))


def _artifacts(context: RunContext) -> dict[str, Path]:
    """The trained models that are evaluated, by role."""
    roles = ("student", "twin") if context.recipe.train.twin else ("student",)
    return {role: context.path / "train" / role / "artifact" for role in roles}


def _evaluate(context: RunContext) -> None:
    folder, artifacts = context.path / "evaluate", _artifacts(context)
    shelf, key = evaluation_shelf(folder), content_key(evaluate_fingerprint(context), evaluate_inputs(context))
    shelf.claim(key, context.callbacks.on_message)
    mark(folder, key)
    if verify_dir(folder) is not None:  # not sealed yet
        _score(context, artifacts, shelf.folders())
    put_scores(folder, artifacts)


def _score(context: RunContext, artifacts: dict[str, Path], folders: list[Path]) -> None:
    recipe, teacher, told = context.recipe, context.local_teacher, context.callbacks
    dtype = str(teacher.dtype if teacher else artifact_dtype(recipe)).removeprefix("torch.")
    trust = trusts_remote_code(recipe)
    students = {role: open_hf(folder, dtype=dtype, trust_remote_code=trust) for role, folder in artifacts.items()}
    items = context.items("heldout")
    result = run_evaluate(recipe, context.run, teacher, students, items, on_progress=told.on_progress)
    tasks = run_tasks(
        recipe,
        folders,
        {"teacher": teacher, **students} if teacher else students,
        [row for row in context.rows if row.split == "heldout"],
        on_progress=told.on_progress,
        stop_asked=told.stop_asked,
    )
    seal_scores(context.path / "evaluate", result, tasks)


def export_fingerprint(context: RunContext) -> str:
    return fingerprint(train_fingerprint(context, "student"), context.recipe.fingerprint("export"))


def _export(context: RunContext) -> None:
    artifact = context.path / "train" / "student" / "artifact"
    judged = ParityRows(context.items("heldout"), "held-out rows")
    folder = context.path / "export"
    run_exports(context.recipe.export, artifact, judged, folder=folder, callbacks=context.callbacks)


def _exported(context: RunContext) -> tuple[Path, ...]:
    folder = context.path / "export"
    return (folder / "parity.json", *(folder / name_of_export(each) for each in context.recipe.export))


def _report(context: RunContext) -> None:
    write_summary(context.recipe, context.run, finished(STAGES, context))
    run_report(context.path)


DATA = Stage("data", data_fingerprint, _in("data"), _data, inputs=data_inputs)

STAGES = (
    DATA,
    Stage(
        "label",
        label_fingerprint,
        _in("traces"),
        _label,
        inputs=label_inputs,
        needed=lambda context: context.has_labels,
        holds=_has_targets,
        saves=True,
    ),
    Stage(
        "curate",
        curate_fingerprint,
        _in("curate"),
        _curate,
        inputs=curate_inputs,
        needed=lambda context: bool(context.recipe.curate),
        essence=_in("curate/kept.json", "curate/rejected.parquet", "curate/pass_rates.json", "curate/summary.json"),
        saves=True,
    ),
    Stage("student", student_fingerprint, _in("student"), _student, inputs=student_inputs),
    Stage(
        "train",
        partial(train_fingerprint, role="student"),
        _in("train/student"),
        partial(_train, role="student"),
        inputs=train_inputs,
        holds=partial(_has_trained, role="student"),
        complete=partial(_mark_training, role="student"),
        essence=_in("train/student/artifact", "train/student/state.json"),
        collective=True,
        saves=True,
    ),
    Stage(
        "twin",
        partial(train_fingerprint, role="twin"),
        _in("train/twin"),
        partial(_train, role="twin"),
        inputs=train_inputs,
        needed=lambda context: context.recipe.train.twin,
        holds=partial(_has_trained, role="twin"),
        complete=partial(_mark_training, role="twin"),
        essence=_in("train/twin/artifact", "train/twin/state.json"),
        collective=True,
        saves=True,
    ),
    Stage(
        "evaluate",
        evaluate_fingerprint,
        _in("evaluate"),
        _evaluate,
        inputs=evaluate_inputs,
        holds=lambda context: scores_are_put(context.path / "evaluate", _artifacts(context)),
    ),
    Stage(
        "export",
        export_fingerprint,
        _exported,
        _export,
        inputs=train_inputs,
        needed=lambda context: bool(context.recipe.export),
    ),
    # Cheap, and its page shows what all the others left: written anew each time.
    Stage(
        "report",
        lambda _: fingerprint(),
        _in("report.html"),
        _report,
        holds=lambda _: False,
        essence=lambda _: (),  # `limbeck report` writes the page, too
    ),
)


def finished(stages: Sequence[Stage], context: RunContext) -> tuple[str, ...]:
    """Names of the stages that are finished for this recipe: a folder may hold results of others."""
    needed = [stage for stage in stages if stage.needed(context)]
    return tuple(stage.name for stage in needed if is_current(stage, context))


def is_current(stage: Stage, context: RunContext) -> bool:
    """Whether the stage finished with exactly this recipe and this content of what it names. Records of earlier
    versions say nothing of contents."""
    record = context.run.record(stage.name)
    if record is None or record.fingerprint != stage.key(context):
        return False
    return record.inputs is None or record.inputs == stage.inputs(context)


NAMES = tuple(stage.name for stage in STAGES)
