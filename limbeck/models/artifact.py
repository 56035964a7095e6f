"""A model folder with a card: written whole, verified when it is opened."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from limbeck.errors import StoreError
from limbeck.models.card import Card, is_number, render
from limbeck.models.generation import joined_ids, tokenizer_ends
from limbeck.models.weights import CARD_FILE, checked_format, pickle_only
from limbeck.system.atomic import atomic_dir
from limbeck.system.sealed import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

VERSION = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
REST = torch.bfloat16
"""What an int8 export keeps embeddings, norms and biases in."""


@dataclass(frozen=True)
class Artifact:
    """A folder that is a model, with a card. `limbeck.open_lm(path)` opens it."""

    path: Path
    format: str  # "safetensors", "gguf" or "onnx"
    lineage: tuple[str, ...]
    recipe_fingerprint: str
    scores: dict[str, float]
    scope: str


def save_artifact(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: Card,
    *,
    dtype: torch.dtype | None = None,
    files: Mapping[str, str] | None = None,
) -> Artifact:
    """Write the folder `path`: config, safetensors, tokenizer with chat template, generation config, card, manifest.

    Weights are written in `dtype` (None: as they are); the model itself is not changed. Among the tokens that end a
    reply are those that the tokenizer and its chat template end with. `files` are further text files.
    The folder appears whole or not at all; an older one under this name is replaced. Opening it gives bit-equal logits.
    Raises BudgetError when the disk is full.
    """
    with atomic_dir(path) as tmp:
        _save_model(tmp, model, dtype)
        tokenizer.save_pretrained(tmp)
        _write_ends(tmp / "generation_config.json", tokenizer_ends(tokenizer))
        write_card(tmp, card)
        for name, text in (files or {}).items():
            (tmp / name).write_text(text, encoding="utf-8")
        for file in tmp.iterdir():  # safetensors writes with mode 0600
            file.chmod(0o755 if file.is_dir() else 0o644)
    return artifact_of(path, card)


def read_artifact(path: str | Path) -> Artifact:
    """The artifact in a folder, after checking every file against its manifest.

    Raises StoreError when the folder is missing, damaged, not an artifact, or holds pickled weights.
    """
    return artifact_of(Path(path), read_card(path))


def read_card(path: str | Path) -> Card:
    """The card of an artifact, after checking every file against its manifest. Raises StoreError as `read_artifact`."""
    path = Path(path)
    if problem := pickle_only(path):
        raise StoreError(problem)
    if checked_format(path) is None:
        raise StoreError(
            f"{path} is not an artifact: it has no {CARD_FILE}. Allowed are folders that `limbeck train`, `limbeck "
            "run` or `limbeck export` wrote; any other model opens with limbeck.open_lm."
        )
    try:
        values = read_json(path / CARD_FILE, "Write the artifact again.")
        version = values.pop("version")
        card = Card(**{**values, "lineage": tuple(values["lineage"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{path / CARD_FILE} is not readable ({error}). Write the artifact again.") from error
    if version != VERSION:
        raise StoreError(f"{path} has format version {version}; this Limbeck reads version {VERSION}. Update Limbeck.")
    return card


def is_artifact(path: Path) -> bool:
    """Whether a folder has a card of ours. Nothing is checked."""
    return (path / CARD_FILE).is_file()


def update_card(path: Path, card: Card) -> Artifact:
    """Replace the card of an artifact, as one step: at any moment the folder is the old one or the new one, whole.

    The folder is checked first, so that damage is never written into a new manifest. Weights are linked, not copied.
    Raises StoreError for a damaged folder, BudgetError when the disk is full.
    """
    read_card(path)
    with atomic_dir(path) as tmp:
        shutil.copytree(path, tmp, copy_function=_link, dirs_exist_ok=True)
        for name in ("MANIFEST.json", "README.md", CARD_FILE):
            (tmp / name).unlink()  # else the old folder's file would be written through its link
        write_card(tmp, card)
    return artifact_of(path, card)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError as error:  # a file system without links
        logger.debug("%s cannot be linked (%s); copied", source, error)
        shutil.copy2(source, destination)


def artifact_of(path: Path, card: Card) -> Artifact:
    """A folder and its card."""
    return Artifact(path, card.format, card.lineage, card.recipe_fingerprint, card.own_scores, card.scope)


def write_card(folder: Path, card: Card) -> None:
    """The card for machines and for people. Both are replaced where they stand."""
    values: dict[str, Any] = {"version": VERSION, **asdict(card)}
    values["scores"] = {
        who: {key: value if is_number(value) else None for key, value in row.items()}
        for who, row in card.scores.items()
    }
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(render(card), encoding="utf-8")


def _save_model(folder: Path, model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """transformers' own format, but the generation config as it is: strict checks of it would refuse published ones."""
    generation = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(folder, state_dict=None if dtype is None else _cast(model.state_dict(), dtype))
    finally:
        model.generation_config = generation
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        generation.to_json_file(folder / "generation_config.json")
    if dtype is not None:
        _set_dtype(folder / "config.json", dtype)


def _write_ends(path: Path, ends: list[int]) -> None:
    """Rows teach the end that their tokenizer and template have: whatever opens the folder must know it."""
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = joined_ids(settings.get("eos_token_id"))
    wanted = joined_ids(known, ends)
    if wanted != known:
        settings["eos_token_id"] = wanted if len(wanted) > 1 else wanted[0]
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floating tensors in `dtype`; tensors that share memory share it afterwards."""
    done: dict[tuple[Any, ...], Tensor] = {}
    new = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in done:
            done[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        new[name] = done[key]
    return new


def _set_dtype(config_path: Path, dtype: torch.dtype) -> None:
    config = json.loads(config_path.read_text(encoding="utf-8"))
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        if section is config or section.get("dtype"):
            section["dtype"] = str(dtype).removeprefix("torch.")
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
