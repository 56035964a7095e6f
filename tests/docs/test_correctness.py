"""docs/reference/correctness.md names tests that exist, and the statements of the self-test as they are."""

import ast
import re
from pathlib import Path

import pytest

from limbeck.selftest.run import STATEMENTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "correctness.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if re.match(r"\| \d", line)]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
UNOFFERED = {"27"}  # nothing to test: there is no reward


def test_every_statement_has_a_line_and_a_test():
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, 35)]
    assert {row[0] for row in ROWS if "::" not in row[2]} == UNOFFERED


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_named_tests_exist(file, name):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_last_column_is_the_selftest():
    listed = {(name.strip(), int(row[0])) for row in ROWS for name in row[3].split(";") if name.strip()}
    assert listed == {(statement.name, number) for statement in STATEMENTS for number in statement.numbers}
