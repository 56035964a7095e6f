"""`a.b.c=value` on the command line: applied to what was written, before it is validated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config.schema import SectionPath, brief, default_kind, kinds_of, sections_of, unknown_key, wrong_kind
from limbeck.config.yaml import Node, node_of, parse_yaml
from limbeck.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel


def apply_overrides(model: type[BaseModel], root: Node, overrides: Sequence[str]) -> Node:
    """`root` with every override applied. Those of a `kind` go first, and another kind starts an empty section; then
    the others in their order; the last of several for one key counts. Raises RecipeError for a path that `model` does
    not have."""
    parsed = [parse_override(text) for text in overrides]
    kinds = sorted((item for item in parsed if item[0][-1] == "kind"), key=lambda item: len(item[0]))
    others = [item for item in parsed if item[0][-1] != "kind"]
    if root.value is None and parsed:
        root = Node({}, root.origin)
    for path, node in [*kinds, *others]:
        root = _set(SectionPath(model, model), root, path, node)
    return root


def parse_override(text: str) -> tuple[tuple[str, ...], Node]:
    """The path of "a.b=value" and its value, which is read as YAML. Raises RecipeError."""
    path, equals, value = text.partition("=")
    keys = tuple(key.strip() for key in path.split("."))
    if not equals or not all(keys):
        raise RecipeError(f"the override {text!r} is not KEY=VALUE, such as train.optimizer.lr=1e-4")
    origin = f"override {text}"
    return keys, node_of(parse_yaml(value, origin).plain(), origin)


def _set(site: SectionPath, section: Node, path: tuple[str, ...], node: Node) -> Node:
    """`section`, found at `site`, with `path` inside it set to `node`."""
    key, rest = path[0], path[1:]
    if not isinstance(section.value, dict):
        raise RecipeError(f"{section.origin}: {site.name} must be a map, found {brief(section.value)}.")
    if key not in site.model.model_fields:
        raise RecipeError(f"{node.origin}: {unknown_key(site, key)}")
    if not rest:
        return Node({**section.value, key: node}, section.origin)
    if not sections_of(site.model.model_fields[key]):
        name = ".".join((*site.keys, key))
        raise RecipeError(f"{node.origin}: {name} is a value and has no {rest[0]!r} in it; set {name} itself.")
    child = section.value.get(key)
    if child is None or child.value is None:
        child = Node({}, node.origin)
    return Node({**section.value, key: _set_inside(site, key, child, rest, node)}, section.origin)


def _set_inside(site: SectionPath, key: str, child: Node, rest: tuple[str, ...], node: Node) -> Node:
    """The section `child` under `key` with `rest` inside it set to `node`, after finding out of which kind it is."""
    info = site.model.model_fields[key]
    kinds = kinds_of(info)
    if not kinds:
        return _set(site.into(key), child, rest, node)
    written = child.value.get("kind") if isinstance(child.value, dict) else None
    if rest == ("kind",):
        same = written is not None and written.value == node.value
        return child if same else Node({"kind": node}, node.origin)
    kind = written.value if written else default_kind(info)
    if not isinstance(kind, str) or kind not in kinds:
        raise RecipeError(f"{node.origin}: {wrong_kind('.'.join((*site.keys, key)), kinds, kind, [rest[0]])}")
    if not written and isinstance(child.value, dict):
        child = Node({"kind": Node(kind, child.origin), **child.value}, child.origin)
    return _set(site.into(key, kind), child, rest, node)
