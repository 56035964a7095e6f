"""A typed tree from YAML: read, overridden, validated.

Every refusal says where it was written, what was found, what is allowed and, for a misspelt word, what was meant.
Nothing here knows the recipe itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from limbeck.config.overrides import apply_overrides
from limbeck.config.renamed import new_words, translate
from limbeck.config.schema import (
    SectionPath,
    brief,
    called_now,
    closest,
    default_kind,
    describe,
    did_you_mean,
    item_kinds_of,
    items_of,
    kinds_of,
    options_of,
    parts_of,
    sections_of,
    unknown_key,
    wrong_kind,
)
from limbeck.config.yaml import Node, node_of, read_yaml
from limbeck.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

Tree = TypeVar("Tree", bound=BaseModel)


def load_tree(model: type[Tree], path: str | Path, overrides: Sequence[str] = ()) -> Tree:
    """The YAML file at `path` with `a.b.c=value` overrides, as `model`. Raises RecipeError naming file and line."""
    return validate(model, read_tree(model, path, overrides))


def read_tree(model: type[BaseModel], path: str | Path, overrides: Sequence[str] = ()) -> Node:
    """What was written, after overrides, before it is validated."""
    return apply_overrides(model, read_yaml(Path(path)), overrides)


def load_written_tree(model: type[Tree], path: str | Path) -> Tree:
    """A YAML file that Limbeck wrote itself, by this version or an earlier one: old names are read as today's."""
    return validate(model, translate(model, read_yaml(Path(path))))


def override_tree(tree: Tree, overrides: Sequence[str]) -> Tree:
    """A copy of a validated tree with overrides. Raises RecipeError."""
    root = node_of(tree.model_dump(mode="json"), "before the overrides")
    return validate(type(tree), apply_overrides(type(tree), root, overrides))


def origin_of(root: Node, where: str) -> str:
    """Where the value at a dotted path was written; when it was left to a default, the section around it."""
    node = root
    for key in where.split("."):
        if not isinstance(node.value, dict) or key not in node.value:
            break
        node = node.value[key]
    return node.origin


def validate(model: type[Tree], root: Node) -> Tree:
    """Raises one RecipeError that names everything that is wrong, each with its origin."""
    if not isinstance(root.value, dict):
        raise RecipeError(f"{root.origin}: a recipe is a map of sections, found {brief(root.value)}. See: limbeck init")
    root = _fill_kinds(model, root)
    try:
        return model.model_validate(root.plain(), strict=True)
    except ValidationError as error:
        lines = _explain_all(model, root, error.errors(include_url=False))
        raise RecipeError("\n".join(lines)) from error


def _fill_kinds(model: type[BaseModel], section: Node) -> Node:
    """Write the default kind into sections that leave it out."""
    if not isinstance(section.value, dict):
        return section
    filled = dict(section.value)
    for key, child in section.value.items():
        info = model.model_fields.get(key)
        if info and items_of(info) and isinstance(child.value, list):
            filled[key] = Node([_fill_item(info, node) for node in child.value], child.origin)
        if info is None or not isinstance(child.value, dict) or not sections_of(info):
            continue
        kinds = kinds_of(info)
        if kinds and "kind" not in child.value and default_kind(info):
            child = Node({"kind": Node(default_kind(info), child.origin), **child.value}, child.origin)
        inner = kinds.get(str(child.plain().get("kind"))) if kinds else sections_of(info)[0]
        filled[key] = _fill_kinds(inner, child) if inner else child
    return Node(filled, section.origin)


def _fill_item(info: FieldInfo, node: Node) -> Node:
    kinds = item_kinds_of(info)
    kind = str(node.value["kind"].plain()) if isinstance(node.value, dict) and "kind" in node.value else ""
    model = kinds.get(kind) if kinds else items_of(info)[0]
    return _fill_kinds(model, node) if model else node


@dataclass(frozen=True)
class _KeyPlace:
    """Where an error is: the section, the key in it (with its field, unless the key is unknown), what was written;
    `item` where it is one of a list whose kind is missing or wrong."""

    site: SectionPath
    key: str
    node: Node
    item: int | None = None

    @property
    def info(self) -> FieldInfo | None:
        return self.site.model.model_fields.get(self.key)

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.site.keys, self.key)


def _place(model: type[BaseModel], root: Node, loc: tuple[int | str, ...]) -> _KeyPlace:
    """Follow pydantic's location down the types and the nodes. After the key of a union it has the kind."""
    site, key, node = SectionPath(model, model), str(loc[0]), _child(root, str(loc[0]))
    parts = list(loc[1:])
    while parts:
        part, info = parts.pop(0), site.model.model_fields[key]
        if isinstance(part, int):
            kinds = item_kinds_of(info)
            if kinds and (not parts or parts[0] not in kinds):
                return _KeyPlace(site, key, _item(node, part), part)
            if not items_of(info) or not parts:  # an item that is a value: the list is shown whole
                break
            kind = str(parts.pop(0)) if kinds else None
            site, node = site.into_item(key, part, kind), _item(node, part)
            if not parts:
                break
            key = str(parts.pop(0))
            node = _child(node, key)
            continue
        union = bool(kinds_of(info))
        if not sections_of(info):  # an entry of a map: the map is shown whole
            break
        if union and (not parts or part not in kinds_of(info)):
            break
        site = site.into(key, part if union else None)
        key = str(parts.pop(0)) if union else part
        node = _child(node, key)
    return _KeyPlace(site, key, node)


def _child(node: Node, key: str) -> Node:
    return node.value.get(key, node) if isinstance(node.value, dict) else node


def _item(node: Node, index: int) -> Node:
    return node.value[index] if isinstance(node.value, list) and index < len(node.value) else node


def _explain_all(model: type[BaseModel], root: Node, errors: list[ErrorDetails]) -> list[str]:
    """One line per problem, in the order of the file. A key that is missing because it is misspelt is told once."""
    places = [_place(model, root, error["loc"]) for error in errors]
    misspelt = {
        (*place.site.keys, closest(place.key, place.site.model.model_fields))
        for place, error in zip(places, errors, strict=True)
        if error["type"] == "extra_forbidden"
    }
    lines = [
        f"{place.node.origin}: {_explain(place, error)}"
        for place, error in zip(places, errors, strict=True)
        if not (error["type"] == "missing" and place.keys in misspelt)
    ]
    return sorted(dict.fromkeys(lines), key=_line_number)


def _line_number(text: str) -> int:
    digits = text.split(": ")[0].rpartition(":")[2]
    return int(digits) if digits.isdigit() else 0


def _explain(place: _KeyPlace, error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden" or place.info is None:
        return unknown_key(place.site, place.key)
    name, found, kinds = ".".join(place.keys), place.node.plain(), kinds_of(place.info)
    if place.item is not None:
        name, kinds = f"{name}[{place.item}]", item_kinds_of(place.info)
    if error["type"] == "missing" and isinstance(error["loc"][-1], str):
        if kinds:
            return f"{name} is missing; it is a map whose kind is one of {', '.join(kinds)}."
        what = f" ({place.info.description})" if place.info.description else ""
        return f"{name} is missing; it must be {describe(place.info)}{what}."
    if kinds and isinstance(found, dict):
        return wrong_kind(name, kinds, found.get("kind"), [str(key) for key in found])
    if kinds:
        allowed = f"a map whose kind is one of {', '.join(kinds)}" if place.item is not None else describe(place.info)
        return f"{name} is {brief(found)}; it must be {allowed}."
    hint = called_now(found, new_words(place.info)) or did_you_mean(found, options_of(place.info))
    if str in parts_of(place.info.annotation) and isinstance(found, (bool, int, float)):
        hint = f' Put it in quotes: "{brief(found)}".'
    return f"{name} is {brief(found)}; it must be {describe(place.info)}.{hint}"
