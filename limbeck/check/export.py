"""What a recipe's exports will need: packages, and a family that the format can hold."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from limbeck.config.problems import problem
from limbeck.errors import TeacherError
from limbeck.models.gguf_import import resolve_model
from limbeck.recipe import PretrainedStudent, packages_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.config.problems import Problem
    from limbeck.recipe import Export, Recipe

FAMILIES = {"gguf": ("limbeck.export.gguf_families", "family_of")}
"""What raises TeacherError for a model that a format cannot hold, from its config alone."""


def export_needs(recipe: Recipe) -> Iterator[Problem]:
    """Packages that are not installed, and formats that do not hold the student's family."""
    student: Any = None
    for number, export in enumerate(recipe.export):
        where = f"export[{number}]"
        lacking = [(name, extra) for name, extra in packages_of(export) if find_spec(name) is None]
        for name, extra in lacking:
            message = f"needs the package {name!r}; install it with: pip install 'limbeck[{extra}]', or remove it."
            yield problem(where, message)
        if not lacking and (export.kind in FAMILIES or export.quant == "int8"):
            student = _outline(recipe) if student is None else student
            if why := _unfit(export, student):
                yield problem(where, f"does not fit the student: {why}")


def _outline(recipe: Recipe) -> Any:
    """The student's family without any weights. Fewer layers or another size change nothing here."""
    path, trust = recipe.reader
    if isinstance(recipe.student, PretrainedStudent):
        path, trust = recipe.student.path, recipe.student.trust_remote_code
    config = AutoConfig.from_pretrained(resolve_model(path), trust_remote_code=trust)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)


def _unfit(export: Export, student: Any) -> str | None:
    if export.kind == "safetensors":
        head = student.get_output_embeddings()
        if any(isinstance(module, nn.Linear) and module is not head for module in student.modules()):
            return None
        return f"the family {student.config.model_type!r} has no linear layer that torchao quantizes. Use bfloat16."
    if export.kind not in FAMILIES:
        return None
    module, name = FAMILIES[export.kind]
    try:
        getattr(importlib.import_module(module), name)(student)
    except TeacherError as error:
        return str(error)
    return None
