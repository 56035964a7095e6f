"""Around training: whose folder it is, how long the twin trains, and the model folder that is left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from limbeck.models.artifact import read_card, save_artifact
from limbeck.models.card import make_card
from limbeck.models.gguf_import import model_licence
from limbeck.recipe import StepsBudget, name_of
from limbeck.system.atomic import atomic_write
from limbeck.system.device import pick_device, resolve_dtype
from limbeck.system.rundir import set_aside
from limbeck.train.parallel import barrier

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from limbeck.recipe import Recipe
    from limbeck.types import Ranks


def claim_folder(out: Path, fingerprint: str, ranks: Ranks, on_message: Callable[[str], None]) -> None:
    """Make `out` the folder of the training with this fingerprint: that of another one is set aside. All ranks call
    it, and none goes on before the folder is there."""
    if ranks.is_first:
        marker = out / "fingerprint"
        if marker.exists() and marker.read_text() != fingerprint:
            set_aside(out, marker.read_text(), on_message)
        atomic_write(marker, fingerprint)
    barrier(ranks)


def twin_recipe(recipe: Recipe, student: Path) -> Recipe:
    """The twin takes as many steps as the student in the folder `student` took, whatever the budget was."""
    steps = json.loads((student / "state.json").read_text())["step"]
    budget = StepsBudget(kind="steps", steps=steps)
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
