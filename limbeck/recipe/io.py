"""Recipes as files: load, dump, and say where something was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config.load import load_tree, read_tree, validate
from limbeck.config.yaml import dump_yaml
from limbeck.recipe.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from limbeck.config.yaml import Node


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `a.b.c=value` overrides. Raises RecipeError: file and line, what was found, what
    is allowed. Whether its parts fit together is another question: `rules.check_static`."""
    return load_tree(Recipe, path, overrides)


def load_with_origins(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Node]:
    """The recipe, and what was written: `tree.origin_of(node, "train.budget")` says where."""
    root = read_tree(Recipe, path, overrides)
    return validate(Recipe, root), root


def dump_recipe(recipe: Recipe) -> str:
    """YAML with every key, defaults included, that `load_recipe` reads back as the same recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))
