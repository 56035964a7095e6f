"""The train stage, for the student and for its hard-label twin: wiring only."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from limbeck.errors import DataError, RecipeError, StoreError
from limbeck.models.hf import HfLM, head_layer
from limbeck.recipe import PretrainedStudent, Recipe
from limbeck.store import TraceStore
from limbeck.system.atomic import atomic_write
from limbeck.system.device import pick_device, prepare_cpu, resolve_dtype
from limbeck.text.tokenizer import load_tokenizer
from limbeck.train import batches
from limbeck.train.checkpoint import FitState, model_tensors
from limbeck.train.distiller import Distiller
from limbeck.train.loop import TrainContext, fit
from limbeck.train.objective import terms_at, twin_terms
from limbeck.train.position_weights import trace_weigher, weigher
from limbeck.train.qad import bake, stored_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.types import Row, Trace


class Trained(NamedTuple):
    """The final state and the trained model, whole. On ranks beyond the first the model may still be sharded."""

    state: FitState
    model: PreTrainedModel


def run_train(
    recipe: Recipe,
    items: Sequence[Row | Trace],
    student_path: Path,
    job: TrainContext,
    *,
    vocab: int,
    teacher: HfLM | None = None,
    store: TraceStore | None = None,
) -> Trained:
    """Train the student at `student_path` on `items`. With neither teacher nor store: CE only, with label smoothing and
    weights by token and place: the twin, and whatever learns from text alone. `vocab` is the number of real tokens.
    """
    train = recipe.train
    if train.accumulate % job.ranks.world:
        raise RecipeError(
            f"train.accumulate is {train.accumulate} but there are {job.ranks.world} processes; it counts "
            f"micro-batches over all of them, so it must be a multiple of {job.ranks.world}."
        )
    if not items:
        raise DataError("there are no training rows; look at the data section and at RUN/data/summary.json.")
    prepare_cpu()
    device = pick_device()
    student = open_student(recipe, student_path, device)
    own = head_layer(student).weight.shape[0]
    if own < vocab:
        raise RecipeError(
            f"the student's head has {own} tokens but the teacher's tokenizer has {vocab}; they must share one "
            "tokenizer. Choose a student of the same family."
        )
    twin = store is None and teacher is None
    terms = twin_terms(recipe.objective) if twin else terms_at(recipe.objective, 0.0)
    if store is not None:
        check_store(store, recipe)
        fetch = batches.stored(items, store, device)  # type: ignore[arg-type]
    elif teacher is not None:
        fetch = batches.live(items, teacher, vocab)
    else:
        fetch = batches.plain(items, device)
    by_place = weigher(recipe.objective.position_weights, lambda: load_tokenizer(str(student_path)))
    for weigh in (by_place, trace_weigher(items)):
        if weigh is not None:
            fetch = batches.weighted(fetch, items, weigh)
    if train.qad is not None:
        stored_weights(student, train.qad.quant)  # told before the first step, whenever it begins
    precision = resolve_dtype(train.precision, device)
    distiller = Distiller(student, terms, precision=precision, vocab=vocab)
    if train.activation_checkpointing:
        recompute_activations(student)
    if train.compile:
        student.get_decoder().compile(dynamic=True)
    order = batches.BatchPlan(items, train.batch_tokens, recipe.seed)
    state = fit(distiller, order, fetch, train, job, None if twin else recipe.objective)
    if job.ranks.is_first:
        atomic_write(job.out / "state.json", json.dumps(asdict(state)))
    if job.ranks.kind == "fsdp2":
        weights = model_tensors(student)  # a collective: every rank takes part
        if job.ranks.is_first:
            student = open_student(recipe, student_path, torch.device("cpu"))
            student.load_state_dict(weights, strict=False)  # tied weights are there once
    if train.qad is not None and (job.ranks.is_first or job.ranks.kind != "fsdp2"):
        bake(student, train.qad)
    return Trained(state, student)


def open_student(recipe: Recipe, path: Path, device: torch.device) -> PreTrainedModel:
    """The untrained student in float32."""
    student = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, trust_remote_code=trusts_remote_code(recipe)
    )
    student.to(device)  # type: ignore[arg-type]
    return student


def check_store(store: TraceStore, recipe: Recipe) -> None:
    """Raise StoreError when the stored temperature is not the objective's: a stored tail cannot be re-tempered."""
    wanted = recipe.objective.stored_temperature
    if store.header.temperature != wanted:
        raise StoreError(
            f"{store.path} was labelled at temperature {store.header.temperature}, the objective uses {wanted}; "
            "a stored tail cannot be re-tempered. Label again at this temperature."
        )


def needs_teacher(recipe: Recipe) -> bool:
    """Whether training runs the teacher beside the student."""
    return recipe.trace.target.is_live


def stores_targets(recipe: Recipe) -> bool:
    """Whether the teacher's distributions come from a store."""
    return recipe.trace.target.is_stored


def trusts_remote_code(recipe: Recipe) -> bool:
    """Whether the student's own code may run: it is the teacher's, or that of the model it starts from."""
    student = recipe.student
    return student.trust_remote_code if isinstance(student, PretrainedStudent) else recipe.reader[1]


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep block inputs only and recompute the rest in the backward pass."""
    # transformers 5 renames this function; both names take the same settings.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
