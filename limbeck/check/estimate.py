"""What each stage will cost, from a few seconds of doing a little of it on this machine."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from limbeck.evaluate.compare import evaluate_models
from limbeck.evaluate.parity import MOST_POSITIONS, NEW_TOKENS, PROMPTS
from limbeck.evaluate.speed import MOST_ROUNDS
from limbeck.evaluate.task_stage import choose_questions, task_settings_of
from limbeck.evaluate.tasks import batches_of
from limbeck.label.local import label_rows
from limbeck.label.plan import store_header
from limbeck.losses.chunked import Terms
from limbeck.models.hf import HfLM, head_layer
from limbeck.recipe import BITS, GenerateMode, PretrainedStudent, PruneStudent, Recipe, ScoreMode, ScratchStudent
from limbeck.students.build import load_pretrained
from limbeck.students.prune import prune_layers
from limbeck.students.scratch import build_scratch
from limbeck.system.atomic import sha256_file
from limbeck.system.cost import measure
from limbeck.system.device import pick_device, resolve_dtype
from limbeck.text.packing import labels_of, pack, plan_batches
from limbeck.train.distiller import Distiller
from limbeck.train.loop import Budget
from limbeck.train.objective import terms_at, twin_terms
from limbeck.train.optim import build_optimizer
from limbeck.train.qad import remove_fake_quant
from limbeck.train.run import recompute_activations
from limbeck.train.sources import EpochPlan, RowSource, live, plain
from limbeck.train.step import train_step
from limbeck.types import Batch, Cursor, Dist, Ranks, Row, Sampling, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from limbeck.recipe import Tasks

PROBE_REPLY = 8
PROBE_STEPS, PROBE_SECONDS = 3, 10.0
SPEED_SECONDS = 4.0  # what evaluate.speed takes for each model
DETAIL_BYTES, ROW_BYTES = 48 * 2.0**10, 160.0  # of an evaluation's files: what the report draws; per held-out row
GRAPH_SECONDS = 5e-7  # per parameter: tracing a model into an ONNX graph, once measured (two cores)
SAVE_RATIO = 12  # bytes of a checkpoint per parameter: weights and two moments in float32


def estimate_stages(recipe: Recipe, teacher: HfLM, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Seconds, peak memory and disk of every stage after `data`. `rows` are the rows of the data stage.

    Each figure comes from one measured piece of that stage's own work on real rows, scaled to all of it; a generated
    reply is taken to be as long as `max_tokens` allows, so with replies the estimate is an upper bound. Judging replies
    and the harness are not in it.
    """
    probe = _StepProbe(recipe, teacher, [row for row in rows if row.split == "train"], list(rows))
    out: dict[str, dict[str, float]] = {}
    if probe.labels:
        out["label"] = probe.label()
    out["student"], out["train"], *twin = probe.train()
    if twin:
        out["twin"] = twin[0]
    out["evaluate"] = probe.evaluate()
    if recipe.export:
        out["export"] = probe.exports()
    return out


def _costs(seconds: float, peak: float, disk: float) -> dict[str, float]:
    return {"seconds": seconds, "peak_bytes": peak, "disk_bytes": disk}


@dataclass
class _StepProbe:
    recipe: Recipe
    teacher: HfLM
    train_rows: list[Row]
    all_rows: list[Row]

    def __post_init__(self) -> None:
        self.batch_rows = self._some_rows(self.recipe.train.batch_tokens)
        self.write_rate = _write_rate()
        self.student: PreTrainedModel | None = None

    def _some_rows(self, batch_tokens: int) -> list[Row]:
        """One batch of training rows, drawn as the loop draws them; prompts are taken to be replies throughout."""
        order = np.random.default_rng(self.recipe.seed).permutation(len(self.train_rows)).tolist()
        plan = plan_batches([len(row.ids) for row in self.train_rows], batch_tokens, order=order)
        rows = [self.train_rows[index] for index in plan[0]]
        return [replace(row, spans=((1, len(row.ids)),)) for row in rows] if self.generates else rows

    @property
    def labels(self) -> bool:
        return self.generates or self.recipe.trace.target.is_stored

    @property
    def generates(self) -> bool:
        return isinstance(self.recipe.trace.mode, GenerateMode)

    def label(self) -> dict[str, float]:
        """One batch through the teacher, target selection and encoding; replies by timing a few tokens of them."""
        todo = self.all_rows if self.generates else self.train_rows
        rows = self._some_rows(self.recipe.trace.batch_tokens)
        reply_seconds = 0.0
        mode = self.recipe.trace.mode
        if isinstance(mode, GenerateMode):
            reply_seconds = self._reply_seconds(mode, len(todo))
        scoring = self.recipe.model_copy(update={"trace": self.recipe.trace.model_copy(update={"mode": ScoreMode()})})
        if not self.recipe.trace.target.is_stored:
            return _costs(reply_seconds, float(_resident()), 0.0)
        header = store_header(self.recipe, self.teacher)
        self.records = label_rows(scoring, header, self.teacher, self.batch_rows, 0)[1]
        with measure() as cost:
            traces, records = label_rows(scoring, header, self.teacher, rows, 0)
        positions = sum(trace.num_supervised for trace in traces)
        tokens = self._label_tokens(todo)
        seconds = cost.seconds * tokens / sum(len(trace.ids) for trace in traces)
        total_positions = tokens if self.generates else sum(row.num_supervised for row in todo)
        bytes_per_position = sum(map(len, records)) / max(positions, 1)
        disk = total_positions * bytes_per_position + sum(len(row.text) for row in todo) / 2
        return _costs(reply_seconds + seconds, cost.peak_bytes, disk)

    def _label_tokens(self, rows: Sequence[Row]) -> int:
        mode = self.recipe.trace.mode
        extra, times = (mode.max_tokens, mode.n) if isinstance(mode, GenerateMode) else (0, 1)
        return sum((len(row.ids) + extra) * times for row in rows)

    def _reply_seconds(self, mode: GenerateMode, num: int) -> float:
        per_batch = max(1, self.recipe.trace.batch_tokens // ((len(self.batch_rows[0].ids) + mode.max_tokens) * mode.n))
        prompts = [row.ids for row in self.batch_rows[:per_batch]]
        sampling = Sampling(mode.temperature, mode.top_p, mode.n, mode.max_tokens)
        return _writing_seconds(self.teacher, prompts, sampling) * num / len(prompts)

    def train(self) -> list[dict[str, float]]:
        """Student, train and, where asked for, twin: one micro-batch with its optimizer step each."""
        settings = self.recipe.train
        self.student = self._build_student()
        self.student.to(pick_device())  # type: ignore[arg-type]
        self.attention = str(self.student.config._attn_implementation)
        parameters = sum(param.numel() for param in self.student.parameters())
        rows = self.batch_rows
        batch = pack(rows, self._stored_target(), pick_device())
        drawn = rows if self.generates else self.train_rows
        plan = EpochPlan(drawn, settings.batch_tokens, self.recipe.seed)
        budget = Budget(settings, RowSource(drawn, plan, plain(pick_device())))
        per_epoch = [plan.tokens(indices) for indices in plan.plan(0)]
        micro_tokens = sum(per_epoch) / len(per_epoch)
        micro_batches = budget.total * settings.accumulate
        if budget.unit == "tokens":
            micro_batches = budget.total / micro_tokens
        objective = self.recipe.objective
        stages, seconds = [], []
        kinds = [terms_at(objective, 0.5), *([twin_terms(objective)] if settings.twin else [])]
        for number, each in enumerate(kinds):
            step, peak = self._time_step(batch, each, is_live=self.recipe.trace.target.is_live and number == 0)
            work = step * (micro_tokens / len(batch.ids_T)) * micro_batches
            if budget.unit == "seconds" and number == 0:
                work, micro_batches = budget.total, budget.total / step
            seconds.append(work)
            saves = 1 + int(work / (60 * settings.checkpoint_minutes))
            bits = 32 if settings.qad else torch.finfo(resolve_dtype(settings.precision, pick_device())).bits
            weights = parameters * bits / 8
            written = saves * SAVE_RATIO * parameters + weights
            disk = min(saves, settings.keep_checkpoints) * SAVE_RATIO * parameters + weights
            stages.append(_costs(work + written / self.write_rate, peak, disk))
        return [self._student_costs(parameters), *stages]

    def evaluate(self) -> dict[str, float]:
        """A few rows scored by all models, a few tokens of the answers, and the fixed time that speed takes."""
        assert self.student is not None
        settings = self.recipe.evaluate
        self.student.set_attn_implementation(self.attention)
        self.student.to(self.teacher.dtype)  # type: ignore[arg-type]
        student = HfLM.wrap(self.student, self.teacher.tokenizer, name="probe")
        roles = {"student": student, "twin": student} if self.recipe.train.twin else {"student": student}
        rows = self.batch_rows
        held_out = [row for row in self.all_rows if row.split == "heldout"]
        with measure() as cost:
            evaluate_models(self.teacher, roles, rows, settings=settings, on_progress=lambda _: None)
        seconds = cost.seconds * self._label_tokens(held_out) / sum(len(row.ids) for row in rows)
        forward = cost.seconds / (1 + len(roles))
        seconds += min(SPEED_SECONDS, MOST_ROUNDS * min(forward, 1.0)) * (1 + len(roles))
        models = [self.teacher, *roles.values()]
        if settings.answers:
            prompts = [row.ids[:64] for row in self.batch_rows[: settings.answers]]
            greedy = Sampling(temperature=0, max_tokens=settings.answer_tokens)
            seconds += sum(_writing_seconds(lm, prompts, greedy) for lm in models)
        if settings.tasks is not None:
            seconds += self._task_seconds(settings.tasks, models, held_out)
        return _costs(seconds, cost.peak_bytes, DETAIL_BYTES + ROW_BYTES * len(held_out))

    def exports(self) -> dict[str, float]:
        """Each is written, then reads some text beside the student and writes a little, token by token."""
        assert self.student is not None
        lm = HfLM.wrap(self.student.float(), self.teacher.tokenizer, name="probe")
        row, session = self.batch_rows[0], lm.session()
        lm.logits(row.ids)
        begun = time.monotonic()
        lm.logits(row.ids)
        read = (time.monotonic() - begun) / len(row.ids)
        session.feed(row.ids[:8])
        begun = time.monotonic()
        session.feed(row.ids[:1])
        write = time.monotonic() - begun
        parameters = sum(parameter.numel() for parameter in self.student.parameters())
        positions = min(MOST_POSITIONS, sum(len(row.ids) for row in self.all_rows if row.split == "heldout"))
        judging = 2 * (positions * read + PROMPTS * NEW_TOKENS * write)
        disk = sum(parameters * BITS[export.quant] / 8 for export in self.recipe.export)
        graphs = sum(export.kind == "onnx" for export in self.recipe.export) * parameters * GRAPH_SECONDS
        seconds = judging * len(self.recipe.export) + disk / self.write_rate + graphs
        return _costs(seconds, _resident() + 8.0 * parameters, disk)

    def _task_seconds(self, tasks: Tasks, models: Sequence[HfLM], held_out: Sequence[Row]) -> float:
        """All models' replies to the problems, from a batch of middling length."""
        exam = task_settings_of(tasks, self.recipe.seed)
        questions = choose_questions(self.recipe, tasks, self.teacher, held_out)
        batches = batches_of(questions, exam)
        prompts = [questions[index].ids for index in batches[len(batches) // 2]]
        seconds = sum(_writing_seconds(lm, prompts, exam.sampling) for lm in models)
        return seconds * len(questions) / len(prompts)

    def _student_costs(self, parameters: int) -> dict[str, float]:
        """Block influence is measured by forwards of the teacher's body; then the weights are written."""
        student, seconds = self.recipe.student, 4.0 * parameters / self.write_rate
        if isinstance(student, PruneStudent) and student.layers is not None:
            tokens = student.probe_rows * sum(len(row.ids) for row in self.train_rows) / len(self.train_rows)
            batch = pack(self.batch_rows, device=self.teacher.device)
            begun = time.monotonic()
            self.teacher.hidden(batch)
            seconds += (time.monotonic() - begun) * tokens / len(batch.ids_T)
        return _costs(seconds, float(_resident()), 4.0 * parameters)

    def _build_student(self) -> PreTrainedModel:
        """A student of the right shape; which layers it has does not change what it costs."""
        student = self.recipe.student
        if isinstance(student, PruneStudent):
            return prune_layers(self.teacher.model, student.keep or tuple(range(student.layers or 1))).float()
        if isinstance(student, ScratchStudent):
            vocab = head_layer(self.teacher.model).weight.shape[0]
            return build_scratch(self.teacher.model, student, seed=0, vocab=vocab)
        assert isinstance(student, PretrainedStudent)
        return load_pretrained(student.path, trust_remote_code=student.trust_remote_code)

    def _stored_target(self) -> Dist | None:
        if not self.recipe.trace.target.is_stored:
            return None
        header = store_header(self.recipe, self.teacher)
        buffers = [np.frombuffer(record, np.uint8) for record in self.records]
        labels = [labels_of(row) for row in self.batch_rows]
        return header.codec.decode(list(zip(buffers, labels, strict=True))).to(pick_device())

    def _time_step(self, batch: Batch, terms: Terms, *, is_live: bool) -> tuple[float, int]:
        """Seconds of one micro-batch with an optimizer step, and the peak memory meanwhile."""
        assert self.student is not None
        settings = self.recipe.train
        precision = resolve_dtype(settings.precision, pick_device())
        distiller = Distiller(self.student.requires_grad_(True), terms, vocab=self.teacher.columns, precision=precision)
        if settings.activation_checkpointing:
            recompute_activations(self.student)
        if settings.qad is not None:
            distiller.quantize(settings.qad)  # from when it begins; before, steps are a little shorter
        optimizer = build_optimizer(distiller, settings.optimizer)
        taught = live(self.teacher, self.teacher.columns)

        def step(now: Batch) -> None:
            now = taught(self.batch_rows) if is_live else now
            drawn = Step((now,), 1, max(now.num_supervised, 1), len(now.ids_T), Cursor())
            train_step(distiller, optimizer, drawn, settings, Ranks())

        seconds = []
        with measure() as cost:
            step(batch)  # kernels are made, the heap grows
            while len(seconds) < PROBE_STEPS and sum(seconds) < PROBE_SECONDS:
                begun = time.monotonic()
                step(batch)
                seconds.append(time.monotonic() - begun)
        optimizer.zero_grad()
        remove_fake_quant(self.student)
        return statistics.median(seconds), cost.peak_bytes


def _writing_seconds(lm: HfLM, prompts: list[np.ndarray], sampling: Sampling) -> float:
    """Seconds of one batch of replies as long as they may get: reading the prompts, and the pace of a few tokens."""

    def timed(tokens: int) -> float:
        begun = time.monotonic()
        lm.generate(prompts, replace(sampling, max_tokens=tokens))
        return time.monotonic() - begun

    timed(1)  # kernels are made
    few = min(1 + PROBE_REPLY, sampling.max_tokens)
    read = timed(1)
    pace = max(timed(few) - read, 0.0) / (few - 1) if few > 1 else 0.0
    return read + pace * (sampling.max_tokens - 1)


def _resident() -> int:
    with measure() as cost:
        pass
    return cost.peak_bytes


def _write_rate(size: int = 32 * 2**20) -> float:
    """Bytes per second of writing, syncing and hashing a file, as checkpoints do."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe"
        data = os.urandom(size)
        begun = time.monotonic()
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sha256_file(path)
        return size / max(time.monotonic() - begun, 1e-6)
