"""docs/reference/recipe.md is what the types say."""

from pathlib import Path

from limbeck.config.schema import paths_of
from limbeck.recipe import Recipe
from limbeck.recipe.reference import recipe_markdown

DOC = Path(__file__).parents[2] / "docs" / "reference" / "recipe.md"


def test_the_committed_reference_is_current():
    assert DOC.read_text() == recipe_markdown(), "run: limbeck schema --markdown > docs/reference/recipe.md"


def test_every_key_is_described():
    text = recipe_markdown()
    for path in paths_of(Recipe):
        key = path.rpartition(".")[2]
        assert key == "kind" or f"| `{key}` |" in text
    for line in text.splitlines():
        if line.startswith("| `"):
            assert line.replace("\\|", "").count("|") == 5
    assert "### student: `kind: prune`" in text
    assert "| `lr` | a number, above 0 | `0.0003` | peak learning rate |" in text
