"""YAML as plain values that remember where they were written. Only what a recipe needs: no tags, no anchors, no
duplicate keys, limits on size and depth, and the scalars of YAML 1.2's core schema (so `no` is a word and 3e-4 a
number)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import RecipeError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16

Scalar = str | int | float | bool | None

_INT = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, Scalar] = {"": None, "~": None}
_WORDS |= {word: None for word in ("null", "Null", "NULL")}
_WORDS |= {word: True for word in ("true", "True", "TRUE")}
_WORDS |= {word: False for word in ("false", "False", "FALSE")}
_WORDS |= {sign + word: float("-inf" if sign == "-" else "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf")}
_WORDS |= {word: float("nan") for word in (".nan", ".NaN", ".NAN")}


@dataclass(frozen=True)
class Node:
    """A value and its origin: "recipe.yaml:12" (the line of its key), or "override a.b=1"."""

    value: Scalar | dict[str, Node] | list[Node]
    origin: str

    def plain(self) -> Any:
        """The value without origins; sequences become tuples."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return tuple(node.plain() for node in self.value)
        return self.value


def node_of(value: Any, origin: str) -> Node:
    """A plain value with one origin for all of it."""
    if isinstance(value, dict):
        return Node({key: node_of(child, origin) for key, child in value.items()}, origin)
    if isinstance(value, (list, tuple)):
        return Node([node_of(child, origin) for child in value], origin)
    return Node(value, origin)


def read_yaml(path: Path) -> Node:
    """The document in a file. Raises RecipeError for a missing, unreadable, too large or malformed file."""
    if path.is_dir():
        raise RecipeError(f"{path} is a folder; a recipe is a YAML file. Write one with: limbeck init --out NAME.yaml")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise RecipeError(
            f"there is no recipe {path}{_beside(path)}. Write one with: limbeck init --out {path}"
        ) from error
    except OSError as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path} is larger than {MAX_BYTES // 1024} KiB; that is no recipe. Is it the right file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start}); a recipe is a YAML file.") from error
    return parse_yaml(text, str(path))


def _beside(path: Path) -> str:
    """The recipes that are there instead, for the error message."""
    folder = path.parent
    names = sorted(file.name for file in folder.glob("*.y*ml"))[:5] if folder.is_dir() else []
    return f" ({folder} has {', '.join(names)})" if names else ""


def parse_yaml(text: str, name: str) -> Node:
    """The document in `text`; `name` stands for the file in origins. Raises RecipeError with name:line."""
    try:
        _refuse_extras(text, name)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(_syntax_error(error, name)) from error
    if tree is None:
        return Node(None, name)
    return replace(_convert(tree, name, tree.start_mark.line), origin=name)


def _refuse_extras(text: str, name: str) -> None:
    """Tags, anchors, several documents and deep nesting, found before anything is built."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{name}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise RecipeError(f"{where}: anchors (&) and aliases (*) are not allowed in a recipe; write the value out.")
        if getattr(event, "tag", None) is not None:
            raise RecipeError(f"{where}: the tag {event.tag!r} is not allowed in a recipe; write the plain value.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecipeError(f"{where}: nested more than {MAX_DEPTH} deep; that is no recipe.")
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise RecipeError(f"{where}: a second document begins here (---); a recipe file holds one.")


def _syntax_error(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{name} is not valid YAML: {' '.join(str(error).split())}"
    problem = getattr(error, "problem", None) or "syntax error"
    hint = " Indent with spaces, not tabs." if "\\t" in problem else ""
    return f"{name}:{mark.line + 1}: not valid YAML (column {mark.column + 1}): {problem}.{hint}"


def _convert(node: yaml.Node, name: str, line: int) -> Node:
    """`line` counts from 0: that of the key, or of the value itself in a sequence."""
    origin = f"{name}:{line + 1}"
    if isinstance(node, yaml.ScalarNode):
        return Node(resolve(node.value) if node.style is None else node.value, origin)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(item, name, item.start_mark.line) for item in node.value], origin)
    items: dict[str, Node] = {}
    for key, value in node.value:
        key_line = key.start_mark.line
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeError(f"{name}:{key_line + 1}: a key must be a word, found a list or map.")
        if key.value in items:
            first = items[key.value].origin.rpartition(":")[2]
            raise RecipeError(f"{name}:{key_line + 1}: the key {key.value!r} is here twice (first on line {first}).")
        items[key.value] = _convert(value, name, key_line)
    return Node(items, origin)


def resolve(text: str) -> Scalar:
    """What an unquoted scalar means."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text) and len(text) <= 40:
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        whole = "." not in text and number.is_integer() and abs(number) < 2**53
        return int(number) if whole else number  # 1e6 counts something
    return text


def _represent_text(dumper: yaml.representer.BaseRepresenter, text: Any) -> yaml.Node:
    """PyYAML writes rare line ends unescaped and then folds them away on reading."""
    rare = any(mark in text for mark in "\r\x85\u2028\u2029\ufeff")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if rare else None)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that `resolve` would read as a number."""

    yaml_representers = dict(yaml.SafeDumper.yaml_representers) | {str: _represent_text}
    yaml_implicit_resolvers = dict(yaml.SafeDumper.yaml_implicit_resolvers) | {
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            ("tag:yaml.org,2002:int", re.compile(f"^(?:{_INT.pattern})$")),
            ("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT.pattern})$")),
        ]
        for first in "-+.0123456789"
    }


def dump_yaml(value: Any, *, flow: bool | None = False) -> str:
    """YAML text that `parse_yaml` reads back as `value` (tuples as sequences). `flow` True gives one line."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=110 if not flow else 10**9,
        default_flow_style=flow,
    )
    return text.removesuffix("...\n") if flow else text
