"""One word, one thing: a class name is used once in the package, and a module name repeats only for a reason."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "limbeck"
FILES = sorted(PACKAGE.rglob("*.py"))

REPEATED = {
    "a key of the recipe, in every room that has a part of it": (
        *("curate", "data", "export", "objective", "student", "teacher", "trace", "train", "votes"),
    ),
    "one role in its room": (
        *("app", "build", "context", "encode", "errors", "page", "recipe", "run", "settings", "stage"),
    ),
    "two ends of one format": ("card", "onnx"),
}


def test_a_class_name_is_used_once():
    found: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert len(found) > 300, "the package was not found"
    assert not {name: places for name, places in found.items() if len(places) > 1}


def test_a_module_name_repeats_only_for_a_reason():
    found: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        if path.stem not in {"__init__", "__main__"}:
            found[path.stem].append(path.parent.relative_to(PACKAGE).as_posix())
    allowed = {name for names in REPEATED.values() for name in names}
    assert not {name: rooms for name, rooms in found.items() if len(rooms) > 1 and name not in allowed}


def test_no_name_says_only_its_pattern():
    patterns = ("Manager", "Handler", "Helper", "Utils", "Util")
    names = [
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert not [name for name in names if name.endswith(patterns)]
