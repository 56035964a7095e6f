"""What is wrong with a recipe, as data: the place and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.config.schema import Section


@dataclass(frozen=True)
class Problem:
    """`where` is the dotted path in the recipe; `message` a sentence: what was found, what is allowed, what to do."""

    where: str
    message: str


def problem(where: str, rest: str) -> Problem:
    """A problem whose sentence begins with the path: "student.keep is [2, 1]; it must be ..."."""
    return Problem(where, f"{where} {rest}")


def changed(section: Section, *names: str) -> list[str]:
    """Those of the named fields that differ from their default."""
    fields = type(section).model_fields
    return [name for name in names if getattr(section, name) != fields[name].get_default(call_default_factory=True)]


def no_effect(section: Section, where: str, names: tuple[str, ...], why: str) -> Iterator[Problem]:
    """A problem for each of the fields that was set although it has no effect."""
    for name in changed(section, *names):
        yield problem(f"{where}.{name}", f"has no effect {why}; remove it.")
