"""docs/reference/recipe.md: the recipe's reference, generated from its types. Each field is described once, there."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from limbeck.config.schema import (
    default_kind,
    default_section,
    describe,
    item_kinds_of,
    items_of,
    kinds_of,
    sections_of,
)
from limbeck.config.yaml import dump_yaml
from limbeck.recipe.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

HEAD = """\
# Recipe reference

Generated from the room `limbeck/recipe/` by `limbeck schema --markdown`; edit the descriptions
there. `limbeck schema` prints the JSON schema for editors, `limbeck init` writes a commented recipe.

A recipe is a YAML file. A choice among methods is a section with a `kind`, and each kind has its own keys. Unknown keys
are refused, and so is a setting that has no effect. Any key can be set on the command line:

    limbeck run recipe.yaml train.budget.steps=200 trace.target.kind=top_k trace.target.k=16

The value is read as YAML. Overrides of a `kind` are applied first, and another kind starts with that kind's defaults.
Paths are relative to the folder that the command runs in.
"""


def recipe_markdown() -> str:
    """The reference as Markdown, sections in the order of the recipe; a kind that stands in two places is described in
    the first."""
    return "\n".join([HEAD, *_section(Recipe, "recipe", "## The recipe", set())]).rstrip() + "\n"


def _section(model: type[BaseModel], path: str, heading: str, seen: set[type[BaseModel]]) -> Iterator[str]:
    seen.add(model)
    yield f"{heading}\n"
    if model.__doc__:
        yield f"{inspect.cleandoc(model.__doc__)}\n"
    fields = {name: info for name, info in model.model_fields.items() if name != "kind"}
    if fields:
        yield "| key | allowed | default | what it does |\n|---|---|---|---|"
        yield from (_row(name, info, path) for name, info in fields.items())
        yield ""
    for name, info in fields.items():
        where = name if path == "recipe" else f"{path}.{name}"
        kinds, item_kinds = kinds_of(info), item_kinds_of(info)
        for kind, section in (kinds | item_kinds).items():
            if section not in seen:
                yield from _section(section, where, f"### {where}: `kind: {kind}`", seen)
        for section in [] if item_kinds else items_of(info):
            yield from _section(section, f"{where}[]", f"### {where}: each of the list", seen)
        for section in [] if kinds else sections_of(info):
            yield from _section(section, where, f"{'##' if path == 'recipe' else '###'} {where}", seen)


def _row(name: str, info: FieldInfo, path: str) -> str:
    kinds, standing = kinds_of(info), default_section(info)
    if standing is None and not info.is_required():
        allowed, default = describe(info), f"`{dump_yaml(info.default, flow=True).strip()}`"
    elif kinds:
        allowed = "kind: " + ", ".join(f"`{kind}`" for kind in kinds)
        usual = default_kind(info)
        default = f"`kind: {usual}`" if standing else f"required (`{usual}`)" if usual else "required"
    elif sections_of(info):
        allowed, default = "section", "its defaults" if standing else "required"
    else:
        allowed, default = describe(info), "required"
    cells = (f"`{name}`", allowed, default, info.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
