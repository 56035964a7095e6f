"""What a recipe's check says."""

from limbeck.check.recipe import check_recipe
from limbeck.recipe import Recipe


def problems(recipe: Recipe) -> dict[str, str]:
    return {found.where: found.message for found in check_recipe(recipe, estimate=False).problems}
