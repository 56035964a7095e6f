"""A whole run: every stage in order, each skipped when nothing that it depends on changed."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from limbeck.check.estimate import estimate_stages
from limbeck.check.recipe import check_recipe
from limbeck.curate.stage import candidates_of, kept_ids, run_curate
from limbeck.data import read_rows
from limbeck.data.build import data_fingerprint, run_data
from limbeck.errors import Stopped
from limbeck.evaluate.stage import run_evaluate
from limbeck.evaluate.task_stage import run_tasks, task_files
from limbeck.export.verified import ParityRows
from limbeck.label.judge import ask_judges
from limbeck.label.local import run_label
from limbeck.label.plan import store_header
from limbeck.label.preflight import keep_record, prepare
from limbeck.label.remote import run_ask
from limbeck.label.strip_reasoning import strips_thinking, without_thinking
from limbeck.models.artifact import read_card, save_artifact, update_card
from limbeck.models.card import Card, make_card
from limbeck.models.gguf_import import model_licence, resolve_model
from limbeck.models.open import open_hf
from limbeck.pipeline.exports import run_exports
from limbeck.pipeline.stage import NAMES, Stages
from limbeck.pipeline.summary import read_estimate, write_estimate, write_summary
from limbeck.recipe import (
    DecontaminateRule,
    GenerateMode,
    HfTeacher,
    OpenAITeacher,
    Recipe,
    StepsBudget,
    VerdictRule,
    is_local,
    name_of,
    name_of_export,
)
from limbeck.recipe.io import dump_recipe
from limbeck.recipe.rules.check import raise_problems
from limbeck.report.write import run_report
from limbeck.store import TraceStore
from limbeck.store.writer import damaged_shards, read_header, read_manifest
from limbeck.students.build import build_student
from limbeck.system.atomic import atomic_write, fingerprint, sha256_file
from limbeck.system.cost import measure
from limbeck.system.device import pick_device, resolve_dtype
from limbeck.system.ranks import first_rank
from limbeck.system.rundir import RunDir, StageRecord
from limbeck.system.signals import stop_requests
from limbeck.text.tokenizer import load_tokenizer, template_hash, tokenizer_hash
from limbeck.train.loop import TrainContext
from limbeck.train.parallel import barrier, join_ranks
from limbeck.train.run import Supervision, needs_teacher, stores_targets, train_student, trusts_remote_code
from limbeck.types import Ranks, Vocab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limbeck.models.hf import HfLM
    from limbeck.types import OnProgress, Progress, Row, Trace


def run_recipe(
    recipe: Recipe,
    run_dir: Path | str,
    *,
    until: str = "report",
    estimate: bool = True,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run a recipe up to the stage `until` (one of `pipeline.stage.NAMES`).

    With `estimate`, a few seconds are spent first on what the run will cost. Returns the summary, as written to
    RUN/summary.json. Raises RecipeError before any work when `check` finds a problem; Stopped after a requested stop,
    with everything saved; and what the stages raise.
    """
    if until not in NAMES:
        raise ValueError(f"unknown stage {until!r}; allowed are {', '.join(NAMES)}")
    with _opened(Path(run_dir)) as run, stop_requests() as stop_asked, contextlib.ExitStack() as resources:
        stages = Stages(run, on_progress or _ignore, on_message or _ignore, stop_asked)
        return _Run(recipe, stages, estimate, resources).until(until)


def _ignore(_what: str | Progress) -> None:
    """Nobody is listening."""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[RunDir]:
    """The run folder, locked by the first rank only."""
    if not first_rank():
        yield RunDir(path)
        return
    with RunDir.open(path) as run:
        yield run


class _Run:
    """One run: the fingerprint of each stage covers all that it depends on, the stages before it included."""

    def __init__(self, recipe: Recipe, stages: Stages, estimate: bool, resources: contextlib.ExitStack) -> None:
        self.recipe, self.stages, self.path, self.estimate = recipe, stages, stages.run.path, estimate
        self.resources = resources

    def until(self, last: str) -> dict[str, Any]:
        if self.stages.is_first:
            found = check_recipe(self.recipe, estimate=False)
            raise_problems(found.problems)
            for warning in found.warnings:
                self.stages.on_message(f"warning: {warning.message}")
            atomic_write(self.path / "recipe.yaml", dump_recipe(self.recipe))
        for name in NAMES[: NAMES.index(last) + 1]:
            if self.stages.stop_asked():
                raise Stopped(f"stopped before the stage {name}; run the same command again to go on.")
            getattr(self, f"_{name}")()
        return write_summary(self.recipe, self.stages.run) if self.stages.is_first else {}

    # ---- what stages share ----

    @cached_property
    def ranks(self) -> Ranks:
        """Joined once, by the first stage that all ranks work on: a second process group in one process finds the
        first one's addresses in torchrun's store, and waits for ever."""
        return self.resources.enter_context(join_ranks(self.recipe.train.parallel))

    @cached_property
    def teacher(self) -> HfLM:
        settings = self.recipe.teacher
        assert isinstance(settings, HfTeacher)
        self.stages.on_message(f"opening the teacher {settings.path}")
        return open_hf(settings.path, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code)

    @property
    def local_teacher(self) -> HfLM | None:
        """The teacher where it runs in this process."""
        return self.teacher if is_local(self.recipe.teacher) else None

    @cached_property
    def tokenizer(self) -> Any:
        path, trust = self.recipe.reader
        return load_tokenizer(resolve_model(path), trust_remote_code=trust)

    @cached_property
    def rows(self) -> list[Row]:
        return read_rows(self.path / "data" / "rows.parquet")

    @property
    def labels(self) -> bool:
        """Whether there is anything to label: a live teacher on given text, or that text alone, leaves nothing to
        store."""
        return isinstance(self.recipe.trace.mode, GenerateMode) or stores_targets(self.recipe)

    @cached_property
    def store(self) -> TraceStore:
        return TraceStore.open(self.path / "traces")

    def items(self, split: str) -> list[Row] | list[Trace]:
        """What is trained or evaluated on: the teacher's traces, or the rows where nothing was labelled for them."""
        found = self._uncurated(split)
        if self.recipe.curate and split == "train":
            kept = kept_ids(self.path / "curate")
            found = [item for item in found if item.id in kept]
        if not strips_thinking(self.recipe):
            return found  # type: ignore[return-value]
        return without_thinking(self.recipe, self.tokenizer, found, self.rows, self.stages.on_message)  # type: ignore[arg-type]

    def _uncurated(self, split: str) -> list[Row] | list[Trace]:
        generated = isinstance(self.recipe.trace.mode, GenerateMode)
        if self.labels and (generated or split == "train"):
            wanted = {row.id for row in self.rows}
            return [trace for trace in self.store.traces(split) if trace.row_id in wanted]
        return [row for row in self.rows if row.split == split]

    # ---- fingerprints ----

    @cached_property
    def data_print(self) -> str:
        generated = isinstance(self.recipe.trace.mode, GenerateMode)
        words = [tokenizer_hash(self.tokenizer), template_hash(self.tokenizer)]
        return fingerprint(data_fingerprint(self.recipe), words, generated, self.recipe.seed)

    @cached_property
    def label_print(self) -> str:
        teacher = self.recipe.teacher
        trace = self.recipe.trace.stored_form()
        trace["mode"] = self.recipe.trace.mode.identity
        parts = [trace, self.recipe.seed, teacher.stored_form()]
        if isinstance(teacher, OpenAITeacher):  # how fast it is asked changes nothing
            parts[-1] = teacher.identity
        return fingerprint(self.data_print, parts, self.recipe.objective.stored_temperature)

    @cached_property
    def student_print(self) -> str:
        return fingerprint(self.data_print, self.recipe.fingerprint("student", "teacher", "seed"))

    def train_print(self, twin: bool) -> str:
        train = self.recipe.train.stored_form()
        for key in ("twin", "checkpoint_minutes", "keep_checkpoints", "tensorboard", "parallel"):
            train.pop(key)
        train.pop("trackers", None)
        if train["qad"] is None:  # runs from before there was such a key are what they were
            train.pop("qad")
        # The twin shares what needs no teacher.
        shared = ("objective.label_smoothing", "objective.position_weights.tokens", "objective.position_weights.place")
        objective = self.recipe.fingerprint(*(shared if twin else ("objective",)))
        curated = [self.curate_print] if self.recipe.curate else []
        stripped = ["strip"] if strips_thinking(self.recipe) else []
        return fingerprint(self.label_print, self.student_print, train, objective, twin, *curated, *stripped)

    @cached_property
    def curate_print(self) -> str:
        files = [rule.path for rule in self.recipe.curate if isinstance(rule, VerdictRule)]
        files += [path for rule in self.recipe.curate if isinstance(rule, DecontaminateRule) for path in rule.paths]
        hashes = [sha256_file(Path(file)) if Path(file).is_file() else "" for file in files]
        return fingerprint(self.label_print, self.recipe.fingerprint("curate"), hashes)

    # ---- stages ----

    def _data(self) -> None:
        folder = self.path / "data"

        def work() -> None:
            context = getattr(self.reader_config, "max_position_embeddings", None)
            run_data(
                self.recipe, self.stages.run, self.tokenizer, max_context=context, on_progress=self.stages.on_progress
            )

        self.stages.do("data", self.data_print, work, folder)
        if self.stages.is_first and self.estimate and is_local(self.recipe.teacher):
            self._estimate()

    @cached_property
    def reader_config(self) -> Any:
        path, trust = self.recipe.reader
        return AutoConfig.from_pretrained(resolve_model(path), trust_remote_code=trust).get_text_config()

    def _estimate(self) -> None:
        """Once per recipe, before anything long is begun."""
        key = fingerprint(
            self.train_print(False), self.recipe.train.twin, self.recipe.fingerprint("evaluate", "export")
        )
        if read_estimate(self.stages.run, key) is None:
            self.stages.on_message("estimating time, memory and disk of each stage")
            write_estimate(self.stages.run, key, estimate_stages(self.recipe, self.teacher, self.rows))

    def _label(self) -> None:
        if not self.labels:
            return
        folder = self.path / "traces"
        generated = isinstance(self.recipe.trace.mode, GenerateMode)
        rows = [row for row in self.rows if generated or row.split == "train"]

        def work() -> None:
            if is_local(self.recipe.teacher):
                header, record = store_header(self.recipe, self.teacher), None
                label = partial(run_label, self.recipe, folder, self.teacher)
            else:
                keeping, record = prepare(self.recipe, folder, self.tokenizer, self.stages.on_message)
                header, label = keeping.header, partial(run_ask, self.recipe, folder, keeping)
            if (folder / "store.json").exists() and read_header(folder).fingerprint != header.fingerprint:
                self._set_aside(folder, read_header(folder).fingerprint)
            if record is not None:
                keep_record(self.recipe, folder, record)
            label(
                rows,
                on_progress=self.stages.on_progress,
                on_message=self.stages.on_message,
                stop_asked=self.stages.stop_asked,
            )

        self._verify_store(folder)
        self.stages.do("label", self.label_print, work, folder)

    def _verify_store(self, folder: Path) -> None:
        """A finished label stage whose files were damaged since is not finished."""
        if self.stages.is_first and self.stages.run.is_current("label", self.label_print):
            wrong = damaged_shards(folder, read_manifest(folder))
            if wrong:
                self.stages.run.forget("label")

    def _set_aside(self, folder: Path, name: str) -> None:
        """Results of other settings are expensive: they are renamed, never deleted."""
        aside = folder.with_name(f"{folder.name}-{name}")
        self.stages.on_message(f"{folder} was made with other settings; it is kept as {aside.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)

    def _curate(self) -> None:
        if not self.recipe.curate:
            return
        folder = self.path / "curate"

        def work() -> None:
            items = [*self._uncurated("train"), *self._uncurated("heldout")]
            run_curate(
                self.recipe,
                folder,
                candidates_of(items, self.rows, self.tokenizer),
                ask=ask_judges(self.stages.on_message),
                on_progress=self.stages.on_progress,
                stop_asked=self.stages.stop_asked,
            )

        self.stages.do("curate", self.curate_print, work, folder)

    def _student(self) -> None:
        folder = self.path / "student"
        work = lambda: build_student(self.recipe, self.stages.run, self.local_teacher, self.rows)  # noqa: E731
        self.stages.do("student", self.student_print, work, folder)

    def _train(self) -> None:
        self._fit("train", "student")

    def _twin(self) -> None:
        if self.recipe.train.twin:
            self._fit("twin", "twin")

    def _fit(self, stage: str, role: str) -> None:
        """Train the student or its twin and save the artifact."""
        out, key = self.path / "train" / role, self.train_print(role == "twin")
        if self.stages.run.is_current(stage, key) and (out / "artifact").exists():
            self.stages.do(stage, key, lambda: None, out)
            return
        self.stages.do(stage, key, lambda: self._fit_on(stage, role, out, key), out, collective=True)

    def _fit_on(self, stage: str, role: str, out: Path, key: str) -> None:
        ranks = self.ranks
        if ranks.is_first:
            marker = out / "fingerprint"
            if marker.exists() and marker.read_text() != key:
                self._set_aside(out, marker.read_text())
            atomic_write(marker, key)
        barrier(ranks)
        twin = role == "twin"
        job = TrainContext(
            stage, out, self.recipe.seed, ranks, self._first_only, self.stages.on_message, self.stages.stop_asked
        )
        recipe = self._twin_recipe() if twin else self.recipe
        trained = train_student(recipe, self.items("train"), self.path / "student", self._supervision(twin), job)
        if ranks.is_first:
            save_artifact(
                out / "artifact", trained.model, self.tokenizer, self._card(role), dtype=self._artifact_dtype()
            )

    def _supervision(self, twin: bool) -> Supervision:
        vocab = Vocab(self.vocab, tokenizer_hash(self.tokenizer))
        if needs_teacher(self.recipe) and not twin:
            return Supervision("live", vocab, teacher=self.teacher)
        if stores_targets(self.recipe) and not twin:
            return Supervision("stored", vocab, store=self.store)
        return Supervision("text", vocab)

    def _first_only(self, progress: Progress) -> None:
        if self.stages.is_first:
            self.stages.on_progress(progress)

    def _twin_recipe(self) -> Recipe:
        """The twin takes as many steps as the student took, whatever the budget was."""
        steps = json.loads((self.path / "train" / "student" / "state.json").read_text())["step"]
        budget = StepsBudget(kind="steps", steps=steps)
        return self.recipe.model_copy(update={"train": self.recipe.train.model_copy(update={"budget": budget})})

    @property
    def vocab(self) -> int:
        """The real tokens: heads may be padded."""
        return min(self.reader_config.vocab_size, len(self.tokenizer))

    def _artifact_dtype(self) -> torch.dtype:
        if self.recipe.train.qad is not None:  # grid points have more bits than 16
            return torch.float32
        return resolve_dtype(self.recipe.train.precision, pick_device())

    def _card(self, role: str) -> Card:
        before = read_card(self.path / "student").lineage
        teacher = name_of(self.recipe.teacher)
        how = (
            "the same rows and steps, cross-entropy on ground truth only"
            if role == "twin"
            else f"distilled from {teacher}"
        )
        licence = model_licence(teacher) if is_local(self.recipe.teacher) else None
        return make_card(self.recipe, lineage=[*before, how], role=role, licence=licence)

    def _evaluate(self) -> None:
        roles = ["student", *(["twin"] if self.recipe.train.twin else [])]
        folders = {role: self.path / "train" / role / "artifact" for role in roles}
        parts = [self.train_print(False), self.train_print(True) if self.recipe.train.twin else None]
        key = fingerprint(parts, self.recipe.fingerprint("evaluate"), task_files(self.recipe))

        def work() -> None:
            teacher = self.local_teacher
            dtype = str(teacher.dtype if teacher else self._artifact_dtype()).removeprefix("torch.")
            trust = trusts_remote_code(self.recipe)
            students = {r: open_hf(folder, dtype=dtype, trust_remote_code=trust) for r, folder in folders.items()}
            result = run_evaluate(
                self.recipe,
                self.stages.run,
                teacher,
                students,
                self.items("heldout"),
                on_progress=self.stages.on_progress,
            )
            tasks = run_tasks(
                self.recipe,
                self.path / "evaluate",
                {**({"teacher": teacher} if teacher else {}), **students},
                [row for row in self.rows if row.split == "heldout"],
                on_progress=self.stages.on_progress,
                stop_asked=self.stages.stop_asked,
            )
            result |= {"tasks": tasks} if tasks else {}
            atomic_write(self.path / "evaluate" / "scores.json", json.dumps(result, indent=1))
            for folder in folders.values():
                scores = {who: result[who] for who in ("teacher", *roles) if who in result}
                update_card(folder, replace(read_card(folder), scores=scores))

        self.stages.do("evaluate", key, work, self.path / "evaluate")

    def _export(self) -> None:
        exports, folder = self.recipe.export, self.path / "export"
        if not exports:
            return
        key = fingerprint(self.train_print(False), self.recipe.fingerprint("export"))
        artifact = self.path / "train" / "student" / "artifact"

        def work() -> None:
            judged = ParityRows(self.items("heldout"), "held-out rows")
            run_exports(exports, artifact, judged, self.stages, folder=folder)

        outputs = [folder / name_of_export(each) for each in exports]
        self.stages.do("export", key, work, folder / "parity.json", *outputs)

    def _report(self) -> None:
        if not self.stages.is_first:
            return
        write_summary(self.recipe, self.stages.run)
        with measure() as cost:
            report = run_report(self.path)
        self.stages.run.finish(
            StageRecord("report", fingerprint(), cost.seconds, cost.peak_bytes, report.stat().st_size)
        )
