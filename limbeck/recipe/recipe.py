"""The recipe: one frozen typed tree that names everything a run does. A choice among methods is a union by `kind`.

Every field is described once, here and, for what is minimised, in `objective`; from these descriptions
`docs/reference/recipe.md` is generated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from limbeck.config.load import load_tree, load_written_tree, override_tree, read_tree, validate
from limbeck.config.schema import Section, UsualKind
from limbeck.config.yaml import dump_yaml
from limbeck.errors import RecipeError
from limbeck.recipe.curate import CurateRule
from limbeck.recipe.data import Data
from limbeck.recipe.evaluate import Evaluate
from limbeck.recipe.export import Export
from limbeck.recipe.objective import Objective
from limbeck.recipe.student import PretrainedStudent, PruneStudent, ScratchStudent
from limbeck.recipe.teacher import HfTeacher, Teacher
from limbeck.recipe.trace import TraceSection
from limbeck.recipe.train import Train
from limbeck.system.atomic import fingerprint
from limbeck.system.sealed import yaml_wrong

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from limbeck.config.yaml import Node


class Recipe(Section):
    """Everything a run does. `limbeck check RECIPE` proves it before any work is done."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = Field(
        description="name of the run's folder and model"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of everything that is random")
    scope: str = Field(default="", description="purpose of the student, in a sentence; it goes into the model card")
    teacher: Annotated[Teacher, UsualKind("hf")] = Field(discriminator="kind")
    data: Data
    trace: TraceSection = Field(default_factory=TraceSection)
    curate: tuple[Annotated[CurateRule, Field(discriminator="kind")], ...] = Field(
        default=(), description="rules that select the replies the student learns from, applied in order"
    )
    student: PretrainedStudent | PruneStudent | ScratchStudent = Field(discriminator="kind")
    objective: Objective = Field(default_factory=Objective)
    train: Train
    evaluate: Evaluate = Field(default_factory=Evaluate)
    export: tuple[Annotated[Export, Field(discriminator="kind")], ...] = Field(
        default=(), description="formats to export; each file is reopened and compared with the student"
    )

    @field_validator("teacher", mode="before")
    @classmethod
    def _usual_teacher(cls, value: object) -> object:
        return {"kind": "hf", **value} if isinstance(value, dict) else value

    @property
    def reader(self) -> tuple[str, bool]:
        """The model whose tokenizer makes rows tokens: the teacher, or else the student's (a path, and whether code
        that comes with it may run)."""
        if isinstance(self.teacher, HfTeacher):
            return self.teacher.path, self.teacher.trust_remote_code
        if isinstance(self.student, PretrainedStudent):
            return self.student.path, self.student.trust_remote_code
        return (self.student.like or "") if isinstance(self.student, ScratchStudent) else "", False

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe in a YAML file, with `a.b.c=value` overrides. Raises RecipeError: file and line, what was found,
        what is allowed. Whether its parts fit together is another question: `limbeck.check_recipe`."""
        return load_tree(cls, path, overrides)

    def override(self, *overrides: str) -> Recipe:
        """A copy with `a.b.c=value` overrides. Raises RecipeError."""
        return override_tree(self, overrides)

    def fingerprint(self, *sections: str) -> str:
        """16 hex digits over the given sections ("data", "trace.target" ...); over everything when none is given."""
        if not sections:
            return fingerprint(self.stored_form())
        dumped = []
        for section in sorted(sections):
            value = self.stored_form()
            for key in section.split("."):
                value = value[key]
            dumped.append([section, value])
        return fingerprint(dumped)


def load_with_origins(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Node]:
    """The recipe, and what was written: `tree.origin_of(node, "train.budget")` says where."""
    root = read_tree(Recipe, path, overrides)
    return validate(Recipe, root), root


def load_run_recipe(run: Path) -> Recipe:
    """RUN/recipe.yaml, which Limbeck wrote: by an earlier version perhaps, when keys had other names. Raises
    RecipeError, for a damaged one too."""
    file = run / "recipe.yaml"
    if file.is_file() and (problem := yaml_wrong(file)):
        raise RecipeError(problem)
    return load_written_tree(Recipe, file)


def dump_recipe(recipe: Recipe) -> str:
    """YAML with every key, defaults included, that `Recipe.load` reads back as the same recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))
