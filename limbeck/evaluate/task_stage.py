"""Tasks of the evaluate stage: problems that all models answer, and those of lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.curate.answers import find_answer
from limbeck.curate.numbers import to_number
from limbeck.curate.verifiers import verify_all
from limbeck.data.readers import read_examples, source_files
from limbeck.data.split import Sample, row_id
from limbeck.evaluate.compare import TEACHER
from limbeck.evaluate.harness import run_harness
from limbeck.evaluate.results import to_json
from limbeck.evaluate.tasks import TaskSettings, answer_questions, questions_of
from limbeck.metrics.pass_at_k import compare_attempts, final_answer
from limbeck.recipe import Exact, JsonSchema, Numeric, Regex, temperature_and_top_p
from limbeck.system.atomic import atomic_write, fingerprint, sha256_file
from limbeck.text.chat_template import TemplateSettings
from limbeck.text.encode import Encoder
from limbeck.types import Row, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from limbeck.evaluate.tasks import Judge, Question
    from limbeck.models.hf import HfLM
    from limbeck.recipe import Recipe, Tasks, Verifier
    from limbeck.types import LocalLM, OnProgress, Trace


def run_tasks(
    recipe: Recipe,
    folders: Sequence[Path],
    models: Mapping[str, HfLM],
    rows: Sequence[Row | Trace],
    *,
    on_progress: OnProgress,
    stop_asked: Callable[[], bool],
) -> dict[str, Any]:
    """What `evaluate.tasks` and `evaluate.harness` ask for, of all models: FOLDER/tasks.json, and every judged reply in
    FOLDER/tasks/MODEL.jsonl, FOLDER being the first of `folders`. `rows` are the held-out ones, asked where the recipe
    names no source of problems.

    Returns {} when nothing is asked for. Models that answered the same problems before, as one of the folders says, are
    not asked again. Raises
    DataError without problems, Stopped, MissingExtra, and what verifiers raise."""
    found: dict[str, Any] = {}
    tasks, harness = recipe.evaluate.tasks, recipe.evaluate.harness
    if tasks is not None:
        questions = choose_questions(recipe, tasks, next(iter(models.values())), rows)
        exam = task_settings_of(tasks, recipe.seed, stop_asked)
        attempts = answer_questions(
            models,
            questions,
            exam,
            [folder / "tasks" for folder in folders],
            on_progress=on_progress,
            stop_asked=stop_asked,
        )
        found = compare_attempts(
            attempts,
            ks=tasks.ks,
            teacher=TEACHER,
            pair=("student", "twin"),
            resamples=recipe.evaluate.bootstrap,
            seed=recipe.seed,
        )
        found["decoding"] = {"temperature": exam.sampling.temperature, "top_p": exam.sampling.top_p}
        found["verifier"] = tasks.verifier.kind
    if harness is not None:
        found["harness"] = run_harness(models, harness, seed=recipe.seed, chat=recipe.data.chat_template)
    if found:
        atomic_write(folders[0] / "tasks.json", to_json({"version": 1, **found}))
    return found


def task_files(recipe: Recipe) -> list[list[str]]:
    """Name and content hash of every file that the tasks' own source is made of: they are part of what the evaluation
    depends on. Raises DataError for missing files."""
    tasks = recipe.evaluate.tasks
    files = source_files(tasks.source) if tasks is not None and tasks.source is not None else []
    return [[str(file), sha256_file(file)] for file in files]


def choose_questions(recipe: Recipe, tasks: Tasks, lm: HfLM, rows: Sequence[Row | Trace]) -> list[Question]:
    """At most `tasks.limit` problems, a seeded sample: of the tasks' own source, or of the held-out rows."""
    return questions_of(choose_rows(recipe, tasks, lm, rows), lm.tokenizer)


def choose_rows(recipe: Recipe, tasks: Tasks, lm: LocalLM, rows: Sequence[Row | Trace]) -> list[Row]:
    """The rows of those problems. Raises what reading the source raises."""
    sample = Sample(tasks.limit, recipe.seed)
    seen: set[str] = set()
    for row in rows if tasks.source is None else _read(recipe, tasks, lm):
        if isinstance(row, Row) and row.reference and row.id not in seen:
            seen.add(row.id)
            sample.add(row)
    return sample.rows()


def _read(recipe: Recipe, tasks: Tasks, lm: LocalLM) -> list[Row]:
    """The prompts of a source, through the same door as those of training."""
    assert tasks.source is not None
    data = recipe.data
    length = (lm.max_context or 2**30) - tasks.max_tokens
    settings = TemplateSettings(data.template_values, data.template_day)
    chat = data.chat_template
    encoder = Encoder(
        lm.tokenizer, max_length=length, long_rows="stop", chat_template=chat, need_reply=False, settings=settings
    )
    rows = []
    for example in read_examples(tasks.source, bad_rows="stop", on_bad=lambda _: None):
        encoded = encoder.encode(example)
        id, reference = row_id(encoded.text), example.truth
        row = Row(id, "heldout", example.topic, encoded.text, encoded.ids, encoded.spans, example.source)
        rows.append(replace(row, reference=reference, messages=encoder.asked(example)))
    return rows


def task_settings_of(tasks: Tasks, seed: int, stop_asked: Callable[[], bool] = lambda: False) -> TaskSettings:
    """The recipe's section as what models are asked."""
    temperature, top_p = temperature_and_top_p(tasks.decoding)
    sampling = Sampling(temperature, top_p, tasks.n, tasks.max_tokens, seed=seed)
    schema = tasks.verifier.path if isinstance(tasks.verifier, JsonSchema) else None
    content = [sha256_file(Path(schema))] if schema is not None and Path(schema).is_file() else []
    key = fingerprint(tasks.verifier.stored_form(), *content)
    return TaskSettings(
        sampling, judge_of(tasks.verifier, stop_asked), key, extractor(tasks.verifier), tasks.batch_tokens
    )


def judge_of(verifier: Verifier, stop_asked: Callable[[], bool] = lambda: False) -> Judge:
    """Verdicts of one verifier on many replies."""
    return lambda pairs: [verdict.ok for verdict in verify_all(verifier, list(pairs), stop_asked=stop_asked)]


def extractor(verifier: Verifier) -> Callable[[str], str | None]:
    """What the verifier takes for the answer of a reply, in a form in which equal answers are equal text."""
    if isinstance(verifier, Exact | Regex):
        return lambda reply: find_answer(reply, verifier.answer, verifier.marker) or None
    if isinstance(verifier, Numeric):
        return lambda reply: _number(find_answer(reply, verifier.answer, verifier.marker))
    return final_answer


def _number(text: str | None) -> str | None:
    value = to_number(text)
    return None if value is None else str(value)
