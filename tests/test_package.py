"""`import limbeck` is light; its names load on first use."""

import subprocess
import sys

import pytest

import limbeck
from limbeck.recipe import Recipe

HEAVY = ("torch", "transformers", "numpy", "pyarrow", "pandas")


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(out.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import limbeck",
        "import limbeck; limbeck.Recipe",
        "import limbeck.recipe_io, limbeck.rules",
        "import limbeck.cli",
    ],
)
def test_light_imports(statement):
    assert not loaded_by(statement) & set(HEAVY)


def test_names():
    assert limbeck.Recipe is Recipe
    assert limbeck.__version__.count(".") == 2
    assert {"Recipe", "check", "run", "open_lm"} <= set(dir(limbeck))
    assert limbeck.losses.__name__ == "limbeck.losses"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        limbeck.nonsense  # noqa: B018


def test_verbs_are_functions():
    from limbeck.jobs.check import check_recipe

    assert limbeck.check is check_recipe
    assert callable(limbeck.open_lm)
