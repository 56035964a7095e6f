"""The evaluate stage: scores, speed and answers of teacher, student and twin, and the verdict."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from limbeck.evaluate.compare import TEACHER, Evaluation, evaluate_models
from limbeck.evaluate.results import (
    answers_json,
    details,
    intervals_json,
    perplexity,
    to_json,
    write_first_choices,
    write_scores,
)
from limbeck.evaluate.samples import choose_prompts, write_answers
from limbeck.evaluate.speed import measure_speed
from limbeck.metrics.calibration import ece
from limbeck.metrics.intervals import Bootstrap, paired_bootstrap
from limbeck.metrics.verdict import Axes, judge, judge_words
from limbeck.models.artifact import read_card, update_card
from limbeck.models.weights import CARD_FILE
from limbeck.system.atomic import atomic_write, seal_dir, verify_dir
from limbeck.system.sealed import REMADE, read_json
from limbeck.system.shelf import Shelf, marked_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from limbeck.evaluate.speed import Speed
    from limbeck.models.hf import HfLM
    from limbeck.recipe import Recipe
    from limbeck.system.rundir import RunDir
    from limbeck.types import OnProgress, Row, Trace

TOO_SURE = 0.999
FEW_ROWS = 50
SPEED_SECONDS = 4.0  # per model


def run_evaluate(
    recipe: Recipe,
    run: RunDir,
    teacher: HfLM | None,
    students: dict[str, HfLM],
    rows: Sequence[Row | Trace],
    *,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Evaluate `students` ("student" and, where trained, "twin") against the teacher on held-out rows; without a
    teacher in this process, against its words.

    Writes RUN/evaluate/scores.parquet (sums per row and model), first_choices.parquet (the teacher's), details.json
    (what the report draws) and answers.json.
    Returns the models' part of the summary, its verdict and its warnings. Raises what `evaluate_models` raises.
    """
    settings, folder = recipe.evaluate, run.path / "evaluate"
    found = evaluate_models(teacher, students, rows, settings=settings, on_progress=on_progress)
    models = students if teacher is None else {TEACHER: teacher, **students}
    speeds = measure_speed(models, rows, batch_tokens=settings.batch_tokens, seconds=SPEED_SECONDS)
    context = min((lm.max_context or 2**30 for lm in models.values()), default=2**30) - settings.answer_tokens
    prompts = choose_prompts(rows, students["student"].tokenizer, settings.answers, longest=context, seed=recipe.seed)
    answers = write_answers(teacher, students, prompts, num_tokens=settings.answer_tokens)
    axes = Axes(*(_bootstrap(found, metric, settings.bootstrap, recipe.seed) for metric in Axes._fields))
    warnings = [*found.notes, *_warnings(found)]
    write_scores(folder / "scores.parquet", found)
    write_first_choices(folder / "first_choices.parquet", found)
    summed_up = details(found, speeds, answers, warnings, resamples=settings.bootstrap, seed=recipe.seed)
    atomic_write(folder / "details.json", to_json(summed_up))
    atomic_write(folder / "answers.json", to_json(answers_json(answers)))
    num_rows = len(found.ids)
    if teacher is None:
        verdict = judge_words(axes, num_rows=num_rows)
    else:
        weight, text = recipe.objective.max_ce_weight, found.mean(TEACHER, "ce")
        verdict = judge(axes, num_rows=num_rows, ce_weight=weight, teacher_ce=text)
    return {
        **{name: _summary(found, name, speeds[name]) for name in found.models},
        "verdict": asdict(verdict) | {name: intervals_json(each) for name, each in axes._asdict().items()},
        "warnings": warnings,
    }


def evaluation_shelf(folder: Path) -> Shelf:
    """The evaluation of a run, and those of other settings beside it."""
    return Shelf(folder, _evaluated_key, lambda path: (int(verify_dir(path) is None),))


def _evaluated_key(folder: Path) -> str | None:
    """Earlier versions did not mark their evaluations."""
    return marked_key(folder) or ("earlier" if (folder / "scores.json").exists() else None)


def seal_scores(folder: Path, result: dict[str, Any], tasks: dict[str, Any]) -> None:
    """Write FOLDER/scores.json, and FOLDER/MANIFEST.json last: the evaluation is whole when it has that."""
    result = {**result, "tasks": tasks} if tasks else result
    atomic_write(folder / "scores.json", json.dumps(result, indent=1))
    seal_dir(folder)


def put_scores(folder: Path, artifacts: Mapping[str, Path]) -> None:
    """Write the scores of the teacher and of each role in `artifacts`, as in FOLDER/scores.json, into the cards."""
    scores = _scores(folder, artifacts)
    for artifact in artifacts.values():
        card = read_card(artifact)
        if card.scores != scores:
            update_card(artifact, replace(card, scores=scores))


def scores_are_put(folder: Path, artifacts: Mapping[str, Path]) -> bool:
    """Whether every artifact's card has the scores in FOLDER/scores.json. Raises StoreError for damage."""
    scores = _scores(folder, artifacts)
    cards = [read_json(artifact / CARD_FILE, REMADE) for artifact in artifacts.values()]
    return all(card["scores"] == scores for card in cards)


def _scores(folder: Path, artifacts: Mapping[str, Path]) -> dict[str, Any]:
    result = read_json(folder / "scores.json", REMADE)
    return {who: result[who] for who in (TEACHER, *artifacts) if who in result}


def _bootstrap(found: Evaluation, metric: str, resamples: int, seed: int) -> Bootstrap:
    sums = {name: found.sums[name][metric] for name in found.models if name != TEACHER}
    pair = ("student", "twin") if {"student", "twin"} <= set(sums) else None
    return paired_bootstrap(sums, found.positions_R, clusters=found.clusters, pair=pair, resamples=resamples, seed=seed)


def _summary(found: Evaluation, name: str, speed: Speed) -> dict[str, float]:
    return {
        "kl": found.mean(name, "kl"),
        "agreement": found.mean(name, "agreement"),
        "perplexity": perplexity(found.mean(name, "ce")),
        "ece": ece(found.reliability[name]),
        "parameters": speed.parameters,
        "bytes": speed.bytes,
        "tokens_per_second": speed.tokens_per_second,
    }


def _warnings(found: Evaluation) -> list[str]:
    out = []
    sure = found.mean(TEACHER, "confidence") if TEACHER in found.models else 0.0
    if sure > TOO_SURE:
        out.append(
            f"The teacher's mean probability of its first choice is {sure:.5f}: at temperature 1 its distributions say "
            "hardly more than labels do. Train at a higher objective.temperature, or on text that it is less sure of."
        )
    if len(set(found.clusters)) < FEW_ROWS:
        out.append(
            f"Only {len(set(found.clusters))} held-out rows were scored, so intervals are wide; raise data.holdout or "
            "data.limit_heldout."
        )
    return out
