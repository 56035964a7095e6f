"""`limbeck check`: everything that can be known before any work is done.

First the recipe alone (`rules`), then what its models offer against what its parts need: capabilities, tokenizer
identity, chat template, context length, layers; then a look at the first rows; at last an estimate of each stage.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from limbeck.check.curate import curate_problems
from limbeck.check.estimate import estimate_stages
from limbeck.check.export import export_needs
from limbeck.check.teacher import warn_of_teacher
from limbeck.config.problems import Problem, problem
from limbeck.data import read_examples, read_rows
from limbeck.data.build import run_data
from limbeck.errors import DataError, LimbeckError, LongRow, RecipeError, TeacherError
from limbeck.label.preflight import missing, needs_probe, run_probe, sentences
from limbeck.label.recorders import reader_for
from limbeck.models.gguf_import import resolve_model
from limbeck.models.open import open_hf
from limbeck.recipe import GenerateMode, HfTeacher, PretrainedStudent, PruneStudent, Recipe, ScratchStudent, is_local
from limbeck.recipe.rules.check import check_static, warn_static
from limbeck.system.cost import disk_bytes, measure
from limbeck.system.device import total_memory
from limbeck.system.rundir import RunDir
from limbeck.text.chat_template import ChatTemplate, compare_templates
from limbeck.text.encode import Encoder
from limbeck.text.tokenizer import compare_tokenizers, load_tokenizer, template_hash
from limbeck.train.qad import stored_weights
from limbeck.train.run import trusts_remote_code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from limbeck.text.encode import Example
    from limbeck.types import OnProgress, Progress

PEEK_ROWS = 3


class StageEstimate(TypedDict):
    """What one stage is expected to cost."""

    seconds: float
    peak_bytes: float
    disk_bytes: float


@dataclass(frozen=True)
class CheckResult:
    """`problems` stop a run; `warnings` are about what is allowed and yet doubtful, with the key that they are about;
    `facts` are worth knowing; `estimate` is by stage, {} when there are problems or none was
    asked for."""

    problems: list[Problem] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    estimate: dict[str, StageEstimate] = field(default_factory=dict)


@dataclass(frozen=True)
class _Model:
    """A model's tokenizer and config: what can be known of it without its weights."""

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig

    @property
    def text(self) -> Any:
        return self.config.get_text_config()

    @property
    def layers(self) -> int | None:
        return getattr(self.text, "num_hidden_layers", None)

    @property
    def context(self) -> int | None:
        return getattr(self.text, "max_position_embeddings", None)

    @property
    def head_rows(self) -> int | None:
        return getattr(self.text, "vocab_size", None)


def check_recipe(recipe: Recipe, *, estimate: bool = True, on_progress: OnProgress | None = None) -> CheckResult:
    """Every problem that can be found before the run. Raises nothing for a bad recipe: what is wrong is in the result.

    `estimate` also reads all rows and does a little of each stage's work, which takes some seconds longer.
    """
    found = CheckResult(check_static(recipe), warnings=warn_static(recipe))
    if recipe.evaluate.harness is not None and find_spec("lm_eval") is None:
        message = "needs the package 'lm_eval'; install it with: pip install 'limbeck[eval]', or remove the section."
        found.problems.append(problem("evaluate.harness", message))
    (path, trust), local = recipe.reader, is_local(recipe.teacher)
    where = (
        "teacher.path" if local else "student.like" if isinstance(recipe.student, ScratchStudent) else "student.path"
    )
    if not path:  # a problem that is told already
        return found
    reader = _open(path, trust, where, found)
    if reader is None:
        return found
    _check_context(recipe, reader, "teacher" if local else "student", found)
    if local:
        _check_student(recipe, reader, found)
    if not local or not isinstance(recipe.student, PretrainedStudent):
        _check_qad(recipe, reader, found)
    _check_rows(recipe, reader, found)
    if recipe.export and not found.problems:
        found.problems.extend(export_needs(recipe))
    if estimate and needs_probe(recipe) and not found.problems:
        _probe(recipe, reader, found)
    if estimate and local and not found.problems:
        _estimate(recipe, reader, found, on_progress or _ignore)
    return found


def _probe(recipe: Recipe, student: _Model, found: CheckResult) -> None:
    """Ask the endpoint what the recipe needs of it."""
    try:
        nowhere = Path(os.devnull) / "record"
        record = run_probe(recipe, nowhere, reader_for(recipe, student.tokenizer), found.facts.append)
    except LimbeckError as error:
        found.problems.append(Problem("teacher", str(error)))
        return
    found.facts.extend(sentences(record))
    found.problems.extend(missing(recipe, record))


def _ignore(_progress: Progress) -> None:
    """Nobody is watching."""


def _estimate(recipe: Recipe, teacher: _Model, found: CheckResult, on_progress: OnProgress) -> None:
    """Make the rows in a folder that is thrown away, open the teacher, and do a little of everything."""
    try:
        with tempfile.TemporaryDirectory(prefix="limbeck-check-") as folder, RunDir.open(Path(folder) / "run") as run:
            with measure() as cost:
                run_data(recipe, run, teacher.tokenizer, max_context=teacher.context, on_progress=on_progress)
            written = float(disk_bytes(run.path / "data"))
            found.estimate["data"] = StageEstimate(seconds=cost.seconds, peak_bytes=cost.peak_bytes, disk_bytes=written)
            rows = read_rows(run.path / "data" / "rows.parquet")
        settings = recipe.teacher
        assert isinstance(settings, HfTeacher)
        lm = open_hf(settings.path, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code)
        found.warnings.extend(warn_of_teacher(recipe, lm, rows))  # type: ignore[arg-type]
        found.estimate.update(estimate_stages(recipe, lm, rows))  # type: ignore[arg-type]
        _check_room(found)
    except DataError as error:
        found.problems.append(Problem("data.source", str(error)))
    except TeacherError as error:
        found.problems.append(Problem("teacher.path", str(error)))


def _check_room(found: CheckResult) -> None:
    """The estimated files fit on the disk, and the estimated peak into this machine's memory."""
    disk = sum(cost["disk_bytes"] for cost in found.estimate.values())
    free = shutil.disk_usage(Path.cwd()).free
    if disk > free:
        message = (
            f"the run writes about {disk / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free in this folder. "
        )
        found.problems.append(Problem("trace.target", message + "Free some space, or choose a smaller trace.target."))
    peak = max((cost["peak_bytes"] for cost in found.estimate.values()), default=0)
    memory = total_memory()
    if memory is not None and peak > memory:
        where = "the GPU" if torch.cuda.is_available() else "this machine"
        found.facts.append(
            f"the run needs about {peak / 2**30:.1f} GiB of memory and {where} has {memory / 2**30:.1f} GiB; "
            "lower train.batch_tokens or data.max_length, or set train.activation_checkpointing=true."
        )


def _open(path: str, trust: bool, where: str, found: CheckResult) -> _Model | None:
    """The model's tokenizer and config, or a problem."""
    try:
        folder = resolve_model(path)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust)
        try:
            return _Model(tokenizer, AutoConfig.from_pretrained(folder, trust_remote_code=trust))
        except (OSError, ValueError, KeyError) as error:
            raise TeacherError(f"the config of {path!r} cannot be read: {error}") from error
    except LimbeckError as error:
        found.problems.append(Problem(where, str(error)))
        return None


def _check_context(recipe: Recipe, model: _Model, who: str, found: CheckResult) -> None:
    """The longest row, with the longest reply, fits into the context."""
    mode = recipe.trace.mode
    reply = mode.max_tokens if isinstance(mode, GenerateMode) else 0
    if model.context is None:
        return
    longest = recipe.data.max_length + reply
    if longest <= model.context:
        found.facts.append(f"{who}: context of {model.context} tokens; rows have at most {longest}.")
        return
    with_reply = f" and replies up to {reply} (trace.mode.max_tokens)" if reply else ""
    room = model.context - reply
    advice = f"Set data.max_length to at most {room}." if room >= 2 else "Lower trace.mode.max_tokens."
    found.problems.append(
        problem(
            "data.max_length",
            f"allows rows up to {recipe.data.max_length} tokens{with_reply}, but the {who} reads at most "
            f"{model.context}. {advice}",
        )
    )


def _check_student(recipe: Recipe, teacher: _Model, found: CheckResult) -> None:
    student = recipe.student
    if isinstance(student, PruneStudent):
        found.problems.extend(_check_layers(student, teacher))
    elif isinstance(student, PretrainedStudent):
        model = _open(student.path, student.trust_remote_code, "student.path", found)
        if model is not None:
            _check_context(recipe, model, "student", found)
            _check_tokenizers(teacher, model, found)
            _check_qad(recipe, model, found)


def _check_qad(recipe: Recipe, model: _Model, found: CheckResult) -> None:
    """The export that the student is trained for knows its architecture. `model` is of that architecture."""
    qad = recipe.train.qad
    if qad is None:
        return
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(model.config, trust_remote_code=trusts_remote_code(recipe))
        stored = stored_weights(skeleton, qad.quant)
    except RecipeError as error:
        found.problems.append(Problem("train.qad", str(error)))
        return
    ends = {each.grid for each in stored if not isinstance(each.module, torch.nn.Linear)}
    found.facts.append(
        f"student: trains with the weights of its {qad.quant} export: {len(stored)} matrices, embeddings and head in "
        f"{' and '.join(sorted(ends))}; it is saved in float32."
    )
    wide = [each.name for each in stored if each.grid == "f16"]
    if wide and not isinstance(recipe.student, ScratchStudent):  # whose sizes are not chosen yet
        message = (
            f"is {qad.quant}, which stores rows in blocks of 32, but the rows of {', '.join(wide[:3])} are no whole "
            f"blocks ({len(wide)} of {len(stored)} matrices): they stay 16-bit floats, here and in the export."
        )
        found.warnings.append(problem("train.qad.quant", message))


def _check_layers(student: PruneStudent, teacher: _Model) -> Iterator[Problem]:
    """The layers to keep exist, and something is removed."""
    layers = teacher.layers
    if layers is None:
        return
    if student.layers is not None and student.layers >= layers:
        message = (
            f"is {student.layers}, but the teacher has {layers}: nothing would be removed; give at most {layers - 1}."
        )
        yield problem("student.layers", message)
    beyond = [layer for layer in student.keep or () if layer >= layers]
    if beyond:
        yield problem("student.keep", f"names the layers {beyond}, but the teacher's are 0 to {layers - 1}.")
    elif student.keep and len(student.keep) == layers:
        yield problem("student.keep", f"keeps all {layers} layers of the teacher: nothing would be removed.")


def _check_tokenizers(teacher: _Model, student: _Model, found: CheckResult) -> None:
    """Same tokens in the same order; heads padded to other sizes are cut, other tokenizers are refused."""
    differences = compare_tokenizers(teacher.tokenizer, student.tokenizer)
    if differences:
        found.problems.append(
            problem(
                "student.path",
                f"has another tokenizer than the teacher: {'; '.join(differences)}. Token distributions only fit the "
                "tokens they were made for; choose a student of the teacher's family, or build one: "
                "student.kind=prune or scratch.",
            )
        )
        return
    real = len(teacher.tokenizer)
    found.facts.append(f"teacher and student share one tokenizer of {real} tokens.")
    if student.head_rows is not None and student.head_rows < min(real, teacher.head_rows or real):
        message = (
            f"has a head of {student.head_rows} rows for {real} tokens; it cannot speak the teacher's last tokens."
        )
        found.problems.append(problem("student.path", message))
    elif student.head_rows != teacher.head_rows:
        found.facts.append(
            f"their heads are padded to {teacher.head_rows} and {student.head_rows} rows; both are cut to the {real} "
            "real tokens."
        )
    if template_hash(teacher.tokenizer) != template_hash(student.tokenizer):
        parting = compare_templates(ChatTemplate(teacher.tokenizer), ChatTemplate(student.tokenizer))
        how = f"differ: {parting} in the student's" if parting else "are written differently, and say the same"
        found.facts.append(f"their chat templates {how}; the teacher's is used for both, and saved with the student.")


def _check_rows(recipe: Recipe, teacher: _Model, found: CheckResult) -> None:
    """Read and encode the first rows, on the same road as the run."""
    complaints: list[str] = []
    try:
        source = recipe.data.source
        examples = list(
            islice(read_examples(source, bad_rows=recipe.data.bad_rows, on_bad=complaints.append), PEEK_ROWS)
        )
    except LimbeckError as error:
        found.problems.append(Problem("data.source", str(error)))
        return
    if not examples:
        found.problems.append(problem("data.source", "has no usable row at all."))
        return
    if _needs_template(recipe, examples) and teacher.tokenizer.chat_template is None:
        found.problems.append(
            problem(
                "data.source",
                f"has chat rows, but the tokenizer of {recipe.reader[0]} has no chat template (a base model?). "
                "Choose an instruct model, or join prompt and completion as plain text: data.chat_template=false.",
            )
        )
        return
    found.problems.extend(curate_problems(recipe, examples))
    _encode(recipe, teacher, examples, found)


def _needs_template(recipe: Recipe, examples: list[Example]) -> bool:
    return any(
        example.messages is not None or (example.prompt is not None and recipe.data.chat_template)
        for example in examples
    )


def _encode(recipe: Recipe, teacher: _Model, examples: list[Example], found: CheckResult) -> None:
    generates = isinstance(recipe.trace.mode, GenerateMode)
    encoder = Encoder(
        teacher.tokenizer,
        max_length=recipe.data.max_length,
        long_rows=recipe.data.long_rows,
        chat_template=recipe.data.chat_template,
        need_reply=not generates,
    )
    for example in examples:
        try:
            row = encoder.encode(example)
        except DataError as error:
            rule = recipe.data.long_rows if isinstance(error, LongRow) else recipe.data.bad_rows
            if rule == "stop":
                found.problems.append(Problem("data.source", str(error)))
            continue
        supervised = sum(end - start for start, end in row.spans)
        what = " of prompt" if generates else f", {supervised} of them supervised"
        cut = " (cut to data.max_length)" if row.truncated else ""
        found.facts.append(f"{example.source}: {len(row.ids)} tokens{what}{cut}.")
