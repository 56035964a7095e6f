"""Around training: whose folder it is, how long the twin trains, and the model folder that is left."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from limbeck.models.artifact import read_card, save_artifact
from limbeck.models.card import make_card
from limbeck.models.gguf_import import model_licence
from limbeck.recipe import StepsBudget, name_of
from limbeck.system.atomic import verify_dir
from limbeck.system.device import pick_device, resolve_dtype
from limbeck.system.sealed import REMADE, read_json, read_json_or
from limbeck.system.shelf import Shelf, content_key, mark, marked_key
from limbeck.train.checkpoint import FitState
from limbeck.train.parallel import agree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from limbeck.recipe import Recipe
    from limbeck.types import Ranks

STEP = re.compile(r"step-(\d+)")


def training_shelf(out: Path) -> Shelf:
    """The folder of a training, and those of other settings beside it."""
    return Shelf(out, marked_key, _training_progress)


def _training_progress(out: Path) -> tuple[int, ...]:
    steps = [int(match[1]) for path in out.glob("checkpoints/step-*") if (match := STEP.fullmatch(path.name))]
    return int((out / "artifact").exists()), max(steps, default=-1)


def claim_training(
    out: Path, key: str, inputs: dict[str, str], ranks: Ranks, on_message: Callable[[str], None]
) -> bool:
    """Make `out` the folder of the training with this key and this content of `inputs`: that of another one is set
    aside, what was there of this one is taken up. Returns whether it is finished, with a sound artifact. All ranks call
    it, and none goes on before the folder is there."""
    finished = False
    if ranks.is_first:
        earlier = key if marked_key(out) == key else None  # what lies beside may be of another content
        training_shelf(out).claim(content_key(key, inputs), on_message, earlier=earlier)
        mark(out, content_key(key, inputs))
        finished = bool(read_json_or(out / "state.json", dict[str, Any]())) and verify_dir(out / "artifact") is None
    return agree(finished, False, ranks)[0]


def twin_recipe(recipe: Recipe, student: Path) -> Recipe:
    """The twin takes as many steps as the student in the folder `student` took, whatever the budget was."""
    state = FitState.from_json(read_json(student / "state.json", REMADE))
    budget = StepsBudget(kind="steps", steps=state.step)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"budget": budget})})


def save_trained(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, *, role: str, start: Path
) -> None:
    """Write the artifact of a student or a twin (`role`) that began as the one in the folder `start`."""
    teacher = name_of(recipe.teacher)
    how = (
        "the same rows and steps, cross-entropy on ground truth only" if role == "twin" else f"distilled from {teacher}"
    )
    licence = model_licence(teacher) if recipe.teacher.is_local else None
    card = make_card(recipe, lineage=[*read_card(start).lineage, how], role=role, licence=licence)
    save_artifact(path, model, tokenizer, card, dtype=artifact_dtype(recipe))


def artifact_dtype(recipe: Recipe) -> torch.dtype:
    """The type of a trained student's weights on disk."""
    if recipe.train.qad is not None:  # grid points have more bits than 16
        return torch.float32
    return resolve_dtype(recipe.train.precision, pick_device())
