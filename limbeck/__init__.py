"""Limbeck: distil a large language model into a small one, and prove that it worked.

The names below are loaded on first use, so that `import limbeck` stays light: it does not import torch. No
name is that of a room (`check`, `serve`), which would hide it.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from limbeck.version import __version__

if TYPE_CHECKING:
    from limbeck import data, evaluate, export, losses, store, students, train
    from limbeck.check.recipe import check_recipe
    from limbeck.errors import LimbeckError
    from limbeck.models.open import open_lm
    from limbeck.pipeline.run import run_recipe
    from limbeck.recipe import Recipe
    from limbeck.types import Dist, LiveTarget

logging.getLogger("limbeck").addHandler(logging.NullHandler())  # silent, until whoever imports it wants to know

__all__ = ["Dist", "LimbeckError", "LiveTarget", "Recipe", "__version__", "check_recipe", "open_lm", "run_recipe"]
__all__ += ["data", "evaluate", "export", "losses", "store", "students", "train"]

_HOMES = {
    "Dist": ("limbeck.types", "Dist"),
    "LimbeckError": ("limbeck.errors", "LimbeckError"),
    "LiveTarget": ("limbeck.types", "LiveTarget"),
    "Recipe": ("limbeck.recipe", "Recipe"),
    "check_recipe": ("limbeck.check.recipe", "check_recipe"),
    "open_lm": ("limbeck.models.open", "open_lm"),
    "run_recipe": ("limbeck.pipeline.run", "run_recipe"),
}
_ROOMS = frozenset({"data", "evaluate", "export", "losses", "store", "students", "train"})


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"limbeck.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
