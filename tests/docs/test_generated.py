"""Pages of docs/reference/ that are generated are what the code says."""

import runpy
from pathlib import Path

import pytest

from limbeck import errors

ROOT = Path(__file__).parents[2]
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))


@pytest.mark.parametrize("file", [file for file in GENERATE["PAGES"] if file != "recipe.md"])
def test_the_committed_page_is_current(file):
    committed = (ROOT / "docs" / "reference" / file).read_text(encoding="utf-8")
    assert committed == GENERATE["PAGES"][file](), "run: make docs"


def test_every_command_has_its_options_and_an_example():
    text = GENERATE["commands_markdown"]()
    for command in ("limbeck run", "limbeck show traces", "limbeck experts add", "limbeck route fit", "limbeck serve"):
        assert f"## {command}\n" in text
    sections = text.split("\n## ")[1:]
    assert all(section.count("```sh") == 1 and "| argument or option |" in section for section in sections)
    run = next(section for section in sections if section.startswith("limbeck run\n"))
    assert "| `RECIPE` | path | required |" in run and "| `KEY=VALUE` | text, several |" in run


def test_every_error_says_when_and_what_to_do():
    tree = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.LimbeckError)]
    text = GENERATE["errors_markdown"]()
    for one in tree:
        if one is not errors.LimbeckError:
            when, _, advice = (one.__doc__ or "").partition("\n\n")
            assert when.endswith(".") and advice.strip(), f"{one.__name__} lacks what to do next"
            assert f"| {one.exit_code} | [`{one.__name__}`](#{one.__name__.lower()}) |" in text


def sample(one: int, *, two: "list[str] | None" = None, three: str = "x") -> "int | None":
    """A function with each kind of parameter."""


def test_signatures_keep_defaults_and_lose_quotes_of_annotations():
    shown = GENERATE["signature"]("sample", sample)
    assert shown == "sample(one: int, *, two: list[str] | None = None, three: str = 'x') -> int | None"
