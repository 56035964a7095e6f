"""The train stage, for the student and for its hard-label twin: wiring only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from limbeck.errors import DataError, RecipeError, StoreError
from limbeck.models.hf import head_layer
from limbeck.models.loading import load_model
from limbeck.recipe import PretrainedStudent, Recipe
from limbeck.store import TraceStore
from limbeck.system.device import pick_device, prepare_cpu, resolve_dtype
from limbeck.system.sealed import write_json
from limbeck.text.tokenizer import load_tokenizer
from limbeck.train import sources
from limbeck.train.checkpoint import FitState, model_tensors
from limbeck.train.distiller import Distiller
from limbeck.train.loop import TrainContext, fit
from limbeck.train.objective import terms_at, twin_terms
from limbeck.train.position_weights import trace_weigher, weigher
from limbeck.train.qad import bake, stored_weights
from limbeck.train.sources import RowSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from limbeck.types import Backbone, Row, Trace, Vocab


class Trained(NamedTuple):
    """The final state and the trained model, whole. On ranks beyond the first the model may still be sharded."""

    state: FitState
    model: PreTrainedModel


@dataclass(frozen=True)
class Supervision:
    """What a student learns from beside its rows: stored targets, a live teacher, or the text alone ("text": what has
    no teacher's distribution, and the twin)."""

    kind: Literal["stored", "live", "text"]
    vocab: Vocab
    store: TraceStore | None = None
    teacher: Backbone | None = None


def train_student(
    recipe: Recipe, items: Sequence[Row | Trace], student_path: Path, by: Supervision, context: TrainContext
) -> Trained:
    """Train the student at `student_path` on `items`. From text alone the objective is cross-entropy, with label
    smoothing and weights by token and place. Raises as `fit` does, and RecipeError where the student does not fit."""
    train = recipe.train
    if not items:
        raise DataError("there are no training rows; look at the data section and at RUN/data/summary.json.")
    prepare_cpu()
    device = pick_device()
    student = open_student(recipe, student_path, device)
    own = head_layer(student).weight.shape[0]
    if own < by.vocab.size:
        raise RecipeError(
            f"the student's head has {own} tokens but the teacher's tokenizer has {by.vocab.size}; they must share one "
            "tokenizer. Choose a student of the same family."
        )
    source = _source(recipe, items, by, student_path, device)
    if train.qad is not None:
        stored_weights(student, train.qad.quant)  # told before the first step, whenever it begins
    taught = by.kind != "text"
    terms = terms_at(recipe.objective, 0.0) if taught else twin_terms(recipe.objective)
    distiller = Distiller(student, terms, precision=resolve_dtype(train.precision, device), vocab=by.vocab)
    distiller.follow(recipe.objective if taught else None, train.qad)
    if train.activation_checkpointing:
        recompute_activations(student)
    if train.compile:
        student.get_decoder().compile(dynamic=True)
    state = fit(distiller, source, train, context)
    if context.ranks.is_first:
        write_json(context.out / "state.json", state.as_json())
    if context.ranks.kind == "fsdp2":
        weights = model_tensors(student)  # a collective: every rank takes part
        if context.ranks.is_first:
            student = open_student(recipe, student_path, torch.device("cpu"))
            student.load_state_dict(weights, strict=False)  # tied weights are there once
    if train.qad is not None and (context.ranks.is_first or context.ranks.kind != "fsdp2"):
        bake(student, train.qad)
    return Trained(state, student)


def _source(
    recipe: Recipe, items: Sequence[Row | Trace], by: Supervision, student_path: Path, device: torch.device
) -> RowSource:
    if by.kind == "stored":
        assert by.store is not None
        check_store(by.store, recipe)
        pack = sources.stored(by.store, device)
    elif by.kind == "live":
        assert by.teacher is not None
        pack = sources.live(by.teacher, by.vocab)
    else:
        pack = sources.plain(device)
    by_place = weigher(recipe.objective.position_weights, lambda: load_tokenizer(str(student_path)))
    for weigh in (by_place, trace_weigher(items)):
        if weigh is not None:
            pack = sources.weighted(pack, weigh)
    plan = sources.EpochPlan(items, recipe.train.batch_tokens, recipe.seed)
    # Decoding beside a GPU is hidden behind its work; on a CPU it takes a thousandth of a step.
    return RowSource(items, plan, pack, ahead=by.kind == "stored" and device.type == "cuda")


def open_student(recipe: Recipe, path: Path, device: torch.device) -> PreTrainedModel:
    """The untrained student in float32."""
    trust = trusts_remote_code(recipe)
    student = load_model(str(path), name=str(path), dtype=torch.float32, trust_remote_code=trust, who="student").model
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


def trusts_remote_code(recipe: Recipe) -> bool:
    """Whether the student's own code may run: it is the teacher's, or that of the model it starts from."""
    student = recipe.student
    return student.trust_remote_code if isinstance(student, PretrainedStudent) else recipe.reader[1]


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep block inputs only and recompute the rest in the backward pass."""
    # transformers 5 renames this function; both names take the same settings.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
