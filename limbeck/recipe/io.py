"""Recipes as files: load, dump, and say where something was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config.load import load_written_tree, read_tree, validate
from limbeck.config.yaml import dump_yaml
from limbeck.recipe.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from limbeck.config.yaml import Node


def load_with_origins(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Node]:
    """The recipe, and what was written: `tree.origin_of(node, "train.budget")` says where."""
    root = read_tree(Recipe, path, overrides)
    return validate(Recipe, root), root


def load_run_recipe(run: Path) -> Recipe:
    """RUN/recipe.yaml, which Limbeck wrote: by an earlier version perhaps, when keys had other names. Raises
    RecipeError."""
    return load_written_tree(Recipe, run / "recipe.yaml")


def dump_recipe(recipe: Recipe) -> str:
    """YAML with every key, defaults included, that `Recipe.load` reads back as the same recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))
