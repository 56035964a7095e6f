"""A recipe against its models and data, before any work is done; estimates of time, memory and disk."""

import sys
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    """Python binds an imported room to its name in `limbeck`, where the verb `limbeck.check(recipe)` stands as well."""

    def __call__(self, recipe: Any, **settings: Any) -> Any:
        from limbeck.check.recipe import check_recipe  # torch is loaded when the room works, not when it is named

        return check_recipe(recipe, **settings)


sys.modules[__name__].__class__ = _CallableRoom
