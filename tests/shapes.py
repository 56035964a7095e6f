"""Shapes are checked while tests run, from the names: `logits_NV` has two dimensions, and N is the same everywhere in
one call or one dataclass.

`watch("limbeck.losses", "limbeck.types")` installs an import hook: functions of those modules check their arguments and
named-tuple results, dataclasses their fields. Nothing in the package itself knows of it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch

SUFFIX = re.compile(r"_([a-zA-Z]{1,4})$")


class ShapeError(AssertionError):
    """A tensor does not have the shape that its name promises."""


def letters(name: str) -> str | None:
    """`hidden_ND` -> "ND"; None for names without a shape: the suffix has a capital and no letter twice."""
    found = SUFFIX.search(name)
    if found is None or found[1].islower() or len(set(found[1])) < len(found[1]):
        return None
    return found[1]


def check(where: str, values: Mapping[str, Any], sizes: dict[str, int] | None = None) -> dict[str, int]:
    """Sizes by letter over all named tensors. Raises ShapeError naming the tensor and the two sizes."""
    sizes = {} if sizes is None else sizes
    for name, value in values.items():
        shape = letters(name)
        if shape is None or not isinstance(value, torch.Tensor):
            continue
        if value.ndim != len(shape):
            raise ShapeError(f"{where}: {name} has shape {tuple(value.shape)}, its name says {len(shape)} dimensions")
        for letter, size in zip(shape, value.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ShapeError(
                    f"{where}: {name} has {letter} = {size}, another tensor has {letter} = {sizes[letter]}"
                )
    return sizes


def checked(function: FunctionType) -> FunctionType:
    """The same function with the shapes of arguments and of a named-tuple result checked at every call.

    Checked when it returns: what the function refuses by itself stays its own error.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        sizes = check(function.__qualname__, signature.bind(*args, **kwargs).arguments)
        if isinstance(result, tuple) and hasattr(result, "_asdict"):
            check(f"result of {function.__qualname__}", result._asdict(), sizes)
        return result

    return wrapper  # type: ignore[return-value]


def check_fields(cls: type) -> None:
    """Make a dataclass check its own fields when it is made."""
    init = cls.__init__

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        check(cls.__name__, {item.name: getattr(self, item.name) for item in fields(self)})

    cls.__init__ = wrapper  # type: ignore[method-assign]


def check_module(module: ModuleType) -> None:
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, FunctionType) and any(map(letters, inspect.signature(value).parameters)):
            setattr(module, name, checked(value))
        elif isinstance(value, type) and is_dataclass(value) and any(letters(item.name) for item in fields(value)):
            check_fields(value)


class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        check_module(module)


class Finder(importlib.abc.MetaPathFinder):
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if not any(fullname == name or fullname.startswith(f"{name}.") for name in self.names):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def watch(*names: str) -> None:
    """Check these modules (and those inside them) from their first import on."""
    already = [name for name in sys.modules if any(name == n or name.startswith(f"{n}.") for n in names)]
    if already:
        raise RuntimeError(f"{already} were imported before their shapes could be watched")
    sys.meta_path.insert(0, Finder(names))
