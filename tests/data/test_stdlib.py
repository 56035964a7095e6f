from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from limbeck.data.stdlib import MAX_LINES, MIN_LINES, read_stdlib
from limbeck.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = (
    '''
import functools


def short(): "Documented, but of one line."


def plain(x):
    """Double."""
    return 2 * x


def bare(x):
    y = x
    return y


class Box:
    @property
    @functools.cache
    def size(self):
        r"""How big \\d it is.
At the margin.
        """

        def inner():
            """Part of the outer one."""
            return 1

        return inner()

    async def wait(self):
        """Wait."""
        return None


if True:
    def branch():
        """In a branch."""
        return 1


def long():
    """Too long."""
'''
    + "    x = 1\n" * 40
)


def fail(message: str) -> None:
    raise AssertionError(message)


def test_documented_functions_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "pkg" / "sub").mkdir(parents=True)
    (tmp_path / "pkg" / "sub" / "m.py").write_text(SOURCE)
    found = list(read_stdlib(fail, tmp_path))
    assert [example.source for example in found] == [f"pkg/sub/m.py:{line}" for line in (8, 19, 32, 38)]
    assert {example.topic for example in found} == {"pkg"}
    assert found[0].text == 'def plain(x):\n    """Double."""\n    return 2 * x'
    size = (found[1].text or "").split("\n")
    assert size[:3] == ["@property", "@functools.cache", "def size(self):"]
    assert size[4] == "At the margin." and size[5] == '    """' and size[6] == ""
    assert (found[2].text or "").startswith("async def wait(self):\n    ")


def test_tests_and_other_peoples_packages_are_left_out(tmp_path: Path) -> None:
    code = 'def f():\n    """Doc."""\n    return 1\n'
    for name in ("b.py", "a/x.py", "test/t.py", "a/tests/t.py", "site-packages/p.py", "idlelib/i.py", "lib2to3/l.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    assert [(e.topic, e.source) for e in read_stdlib(fail, tmp_path)] == [("a", "a/x.py:1"), ("b", "b.py:1")]


def test_declared_encodings_and_broken_files(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b'# coding: latin-1\ndef f():\n    """D\xe9j\xe0."""\n    return 1\n')
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "bytes.py").write_bytes(b"x = '\xff'\n")
    refused: list[str] = []
    (example,) = read_stdlib(refused.append, tmp_path)
    assert "Déjà" in (example.text or "")
    assert [message.split(":")[0] for message in refused] == ["broken.py", "bytes.py"]


def test_no_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no standard library sources"):
        list(read_stdlib(fail, tmp_path))


@pytest.mark.slow
def test_the_interpreters_own_library() -> None:
    found = list(read_stdlib(fail))
    assert len(found) > 3000 and len({example.source for example in found}) == len(found)
    assert {"json", "argparse", "asyncio"} <= {example.topic for example in found}
    assert not {"test", "idlelib", "lib2to3"} & {example.topic for example in found}
    for example in found[::50]:
        (function,) = ast.parse(example.text or "").body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(function)
        assert MIN_LINES <= len((example.text or "").split("\n")) <= MAX_LINES
