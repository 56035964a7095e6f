"""`student`: where the student comes from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from limbeck.config.problems import Problem, no_effect, problem
from limbeck.config.schema import Positive, Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.recipe.recipe import Recipe


class PretrainedStudent(Section):
    """A pretrained model."""

    kind: Literal["pretrained"] = "pretrained"
    path: str = Field(description="hub id or folder")
    trust_remote_code: bool = Field(default=False, description="run code that the model's authors ship")


class PruneStudent(Section):
    """The teacher with fewer layers: those of least block influence are removed (ShortGPT, arXiv 2403.03853)."""

    kind: Literal["prune"] = "prune"
    layers: Positive | None = Field(default=None, description="number of layers to keep, chosen by block influence")
    keep: tuple[int, ...] | None = Field(default=None, description="indices of the layers to keep, instead of `layers`")
    probe_rows: Positive = Field(default=16, description="training rows on which block influence is measured")


class ScratchStudent(Section):
    """A new model of the teacher's architecture and tokenizer (or those of `like`), sized by a parameter budget or
    explicit sizes."""

    kind: Literal["scratch"] = "scratch"
    like: str | None = Field(
        default=None,
        description="hub id or folder whose architecture and tokenizer are used; for teachers that run elsewhere",
    )
    parameters: str | None = Field(default=None, description="size such as `17M`; width and depth follow from it")
    hidden_size: Positive | None = Field(default=None, description="width (with `layers` and `heads`)")
    layers: Positive | None = Field(default=None, description="depth")
    heads: Positive | None = Field(default=None, description="number of attention heads")
    teacher_embeddings: bool = Field(
        default=False,
        description="start from the teacher's embeddings, projected to the student's width where it differs",
    )


# ---- what it may not say ---------------------------------------------------------------------------------------------


PARAMETERS = re.compile(r"\s*[0-9][0-9_]*(\.[0-9]+)?\s*[kKmMbB]?\s*")


def student_rules(recipe: Recipe) -> Iterator[Problem]:
    if isinstance(recipe.student, PruneStudent):
        yield from _prune(recipe.student)
    elif isinstance(recipe.student, ScratchStudent):
        yield from _scratch(recipe.student)


def _prune(student: PruneStudent) -> Iterator[Problem]:
    if (student.layers is None) == (student.keep is None):
        found = "neither `layers` nor `keep`" if student.layers is None else "both `layers` and `keep`"
        yield problem(
            "student",
            f"has {found}; give exactly one: layers (how many to keep, chosen by block influence), or keep (which).",
        )
    if student.keep is None:
        return
    if not student.keep or min(student.keep) < 0 or list(student.keep) != sorted(set(student.keep)):
        found = list(student.keep)
        yield problem("student.keep", f"is {found}; it must be layer numbers from 0 in ascending order, each once.")
    yield from no_effect(student, "student", ("probe_rows",), "with an explicit `keep`: nothing is measured")


def _scratch(student: ScratchStudent) -> Iterator[Problem]:
    sizes = {"hidden_size": student.hidden_size, "layers": student.layers, "heads": student.heads}
    given = [name for name, value in sizes.items() if value is not None]
    if student.parameters is not None and given:
        yield problem(
            "student", f"has both `parameters` and {', '.join(given)}; give the budget or the sizes, not both."
        )
    if student.parameters is None and len(given) < 3:
        missing = [name for name in sizes if name not in given]
        found = f"{', '.join(given)} but not {', '.join(missing)}" if given else "no size"
        yield problem(
            "student", f"has {found}; give parameters (such as 17M), or all of hidden_size, layers and heads."
        )
    if student.parameters is not None and not PARAMETERS.fullmatch(student.parameters):
        message = f"is {student.parameters!r}; it must be a number with k, M or B, such as 500k, 17M or 1.5B."
        yield problem("student.parameters", message)
    if student.hidden_size and student.heads and student.hidden_size % student.heads:
        message = f"is {student.hidden_size}, which {student.heads} heads do not divide; choose a multiple of `heads`."
        yield problem("student.hidden_size", message)
