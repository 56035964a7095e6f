"""What a recipe's exports will need: packages, and a family that the format can hold."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import nn

from limbeck.config.problems import problem
from limbeck.errors import TeacherError
from limbeck.recipe import packages_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.check.opened import Opened
    from limbeck.config.problems import Problem
    from limbeck.recipe import Export, Recipe

FAMILIES = {"gguf": ("limbeck.export.gguf_families", "family_of")}
"""What raises TeacherError for a model that a format cannot hold, from its config alone."""


def export_needs(recipe: Recipe, opened: Opened) -> Iterator[Problem]:
    """Packages that are not installed, and formats that do not hold the student's family."""
    for number, export in enumerate(recipe.export):
        where = f"export[{number}]"
        lacking = [(name, extra) for name, extra in packages_of(export) if find_spec(name) is None]
        for name, extra in lacking:
            message = f"needs the package {name!r}; install it with: pip install 'limbeck[{extra}]', or remove it."
            yield problem(where, message)
        looks = not lacking and (export.kind in FAMILIES or export.quant == "int8")
        if looks and (why := _unfit(export, opened.skeleton)):
            yield problem(where, f"does not fit the student: {why}")


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
