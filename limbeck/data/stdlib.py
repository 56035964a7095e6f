"""Documented functions of the running interpreter's own standard library: a corpus of code that every machine has.

The sources are read in place and belong to the interpreter (PSF licence); nothing of them is kept in this package.
"""

from __future__ import annotations

import ast
import os
import sysconfig
import tokenize
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.errors import DataError
from limbeck.text.encode import Example

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIN_LINES, MAX_LINES = 3, 40

SKIPPED = frozenset(
    {
        *("test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "lib-dynload"),
        *("site-packages", "dist-packages", "__pycache__"),
    }
)
"""Folders without library code: tests and their broken samples, programs, bundled wheels, other people's packages."""


def stdlib_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def read_stdlib(refuse: Callable[[str], None], root: Path | None = None) -> Iterator[Example]:
    """Functions and methods with a docstring, of 3 to 40 lines with their decorators, dedented; the topic is the
    top-level module. Sorted by file and line. A function inside a function is part of the outer one only.

    Raises DataError when the interpreter came without its sources.
    """
    root = root or stdlib_folder()
    files = sorted(_sources(root), key=lambda file: file.relative_to(root).as_posix())
    if not files:
        raise DataError(f"this interpreter has no standard library sources in {root}; use data.source.kind=files.")
    for file in files:
        name = file.relative_to(root).as_posix()
        try:
            lines, tree = _parse(file)
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError) as error:
            refuse(f"{name}: cannot be parsed: {error}.")
            continue
        topic = name.split("/")[0].removesuffix(".py")
        for node in _functions(tree):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            last = node.end_lineno or node.lineno
            if MIN_LINES <= last - first + 1 <= MAX_LINES and ast.get_docstring(node, clean=False):
                yield Example(text=_dedent(lines[first - 1 : last]), topic=topic, source=f"{name}:{first}")


def _sources(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED]
        yield from (Path(folder) / name for name in files if name.endswith(".py"))


def _parse(file: Path) -> tuple[list[str], ast.Module]:
    with tokenize.open(file) as handle:  # in the encoding that the file declares
        text = handle.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return text.split("\n"), ast.parse(text)


def _functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of a module and of its classes and branches, in order, without looking into functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.ClassDef | ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _functions(child)


def _dedent(lines: list[str]) -> str:
    """Take the first line's indentation off every line that has it: lines of a long string may have less."""
    margin = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return "\n".join(line.removeprefix(margin) if line.strip() else line.strip() for line in lines)
