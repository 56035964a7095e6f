"""The student stage: build the untrained student that the recipe names, and write it as an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from limbeck.errors import DataError, RecipeError
from limbeck.models.artifact import save_artifact
from limbeck.models.card import make_card
from limbeck.models.generation import joined_ids
from limbeck.models.gguf_import import resolve_model
from limbeck.models.loading import brief, load_config, load_model
from limbeck.models.vocabulary import num_ids
from limbeck.recipe import OpenAITeacher, PretrainedStudent, PruneStudent, ScratchStudent, name_of
from limbeck.students.blocks import BUILD_ERRORS, find_blocks
from limbeck.students.prune import block_influence, check_keep, choose_layers, prune_layers
from limbeck.students.scratch import build_scratch, count_parameters, embedding_parameters
from limbeck.text.tokenizer import compare_tokenizers, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from limbeck.models.hf import HfLM
    from limbeck.recipe import Recipe
    from limbeck.system.rundir import RunDir
    from limbeck.types import Row


def build_student(recipe: Recipe, run: RunDir, teacher: HfLM | None, rows: list[Row]) -> Path:
    """Write RUN/student: the untrained student in float32 with the tokenizer that made the rows, and student.json with
    what was measured and chosen. Without a teacher in this process it is a model of its own architecture. The same
    recipe, rows and machine give a byte-equal model.safetensors. Returns the folder.

    Raises RecipeError, TeacherError or DataError when the student cannot be built, BudgetError when the disk is full.
    """
    student = recipe.student
    if teacher is None:
        tokenizer = load_tokenizer(resolve_model(recipe.reader[0]), trust_remote_code=recipe.reader[1])
    else:
        tokenizer = teacher.tokenizer
    if isinstance(student, PruneStudent):
        assert teacher is not None  # a rule of `rules_teacher`
        model, facts = _pruned(student, teacher, rows)
    elif isinstance(student, ScratchStudent):
        like = blueprint(student) if teacher is None else teacher.model
        # As many rows as there are tokens: no target says of padding that it is never said, so it would be said.
        model = build_scratch(like, student, seed=recipe.seed, vocab=num_ids(tokenizer))
        facts = {"kind": "scratch", "seed": recipe.seed, "teacher_embeddings": student.teacher_embeddings}
    else:
        model, facts = _pretrained(student, tokenizer)
    facts |= _sizes(model)
    if teacher is not None:
        ends_like(model, teacher.end_ids)
        sizes = _sizes(teacher.model)
        facts |= {f"teacher_{name}": sizes[name] for name in ("parameters", "layers")}
    path = run.path / "student"
    card = make_card(recipe, lineage=lineage_of(recipe, teacher, facts))
    save_artifact(
        path, model, tokenizer, card, dtype=torch.float32, files={"student.json": json.dumps(facts, indent=1)}
    )
    return path


def ends_like(model: PreTrainedModel, ends: list[int]) -> None:
    """Let a student's replies end where its teacher's do, and where its own did before."""
    config = model.generation_config or GenerationConfig()
    config.eos_token_id = joined_ids(ends, config.eos_token_id) or None
    model.generation_config = config


def blueprint(student: ScratchStudent) -> PreTrainedModel:
    """A model of the architecture that `student.like` names, without weights (on the meta device)."""
    assert student.like is not None
    folder = resolve_model(student.like)
    config = load_config(folder, name=student.like)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except BUILD_ERRORS as error:
        raise RecipeError(
            f"student.like is {student.like}, from which no causal language model can be made: {brief(error)}. Allowed "
            "is a hub id or a folder with config.json and tokenizer.json."
        ) from error


def lineage_of(recipe: Recipe, teacher: HfLM | None, facts: dict[str, Any]) -> list[str]:
    """What an untrained student was made from, in sentences, oldest first. `facts` are those of student.json."""
    first = f"teacher {name_of(recipe.teacher)}" + (f" (weights {teacher.fingerprint})" if teacher else "")
    if isinstance(recipe.teacher, OpenAITeacher) and recipe.teacher.terms_accepted:
        first += f"; why its terms allow this: {recipe.teacher.terms_accepted}"
    student = recipe.student
    if isinstance(student, PruneStudent):
        return [first, f"pruned to layers {', '.join(map(str, facts['kept']))} of {facts['teacher_layers']}"]
    if isinstance(student, ScratchStudent):
        source = "the teacher's embeddings, all else" if student.teacher_embeddings else "all weights"
        return [first, f"new model of {facts['parameters']:,} parameters: {source} random from seed {recipe.seed}"]
    return [first, f"student {student.path}"]


def _pruned(student: PruneStudent, teacher: HfLM, rows: list[Row]) -> tuple[PreTrainedModel, dict[str, Any]]:
    num_layers = len(find_blocks(teacher.model))
    if (student.layers is None) == (student.keep is None):
        raise RecipeError(
            "a `prune` student needs either `layers` (how many to keep) or `keep` (which); "
            f"{'neither' if student.layers is None else 'both'} given."
        )
    if student.keep is not None:
        kept, measured = check_keep(student.keep, num_layers), {"influence": None, "probe_rows": 0, "probe_tokens": 0}
    else:
        probe = probe_rows(rows, student.probe_rows)
        influence = block_influence(teacher.model, [row.ids for row in probe])
        kept = choose_layers(influence, student.layers or 0)
        tokens = sum(len(row.ids) for row in probe)
        measured = {"influence": influence, "probe_rows": len(probe), "probe_tokens": tokens}
    model = prune_layers(teacher.model, kept)
    removed = [layer for layer in range(num_layers) if layer not in kept]
    return model, {"kind": "prune", **measured, "kept": list(kept), "removed": removed}


def _pretrained(student: PretrainedStudent, reader: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, dict[str, Any]]:
    folder = resolve_model(student.path)
    tokenizer = load_tokenizer(folder, trust_remote_code=student.trust_remote_code)
    differences = compare_tokenizers(reader, tokenizer)
    if differences:
        raise RecipeError(
            f"the student {student.path} has another tokenizer than the teacher: {'; '.join(differences)}. "
            "Allowed is a student with the teacher's tokenizer: choose one of its family, or a `prune` or `scratch` "
            "student."
        )
    model = load_pretrained(folder, trust_remote_code=student.trust_remote_code)
    return model, {"kind": "pretrained", "path": student.path, "trust_remote_code": student.trust_remote_code}


def probe_rows(rows: list[Row], num: int) -> list[Row]:
    """`num` training rows, evenly spaced over all of them (files are often sorted). Raises DataError without any."""
    train = [row for row in rows if row.split == "train" and len(row.ids)]
    if not train:
        raise DataError("there are no training rows to measure block influence on; look at the data section.")
    picks = np.linspace(0, len(train) - 1, min(num, len(train))).round().astype(int)
    return [train[index] for index in picks]


def _sizes(model: PreTrainedModel) -> dict[str, Any]:
    config: Any = model.config.get_text_config()
    parameters = count_parameters(model)
    return {
        "family": model.config.model_type,
        "parameters": parameters,
        "embedding_parameters": embedding_parameters(model),
        "embedding_share": embedding_parameters(model) / parameters,
        "hidden_size": getattr(config, "hidden_size", None),
        "layers": getattr(config, "num_hidden_layers", None),
        "heads": getattr(config, "num_attention_heads", None),
    }


def load_pretrained(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model at a hub id or in a folder, as float32 on the CPU, in eval mode.

    Raises TeacherError when there is no such model, when its weights are stored as pickle only, or when it ships code
    that `trust_remote_code` does not allow.
    """
    return load_model(
        str(path), name=str(path), dtype=torch.float32, trust_remote_code=trust_remote_code, who="student"
    ).model
