"""What the stages read besides the recipe: models, schemas and task files, by their content.

A recipe names them, and a fingerprint holds the names. What a name stands for may change: so a stage's record keeps a
digest by name, beside the fingerprint, and so does whoever must know whose results a folder holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.recipe import GenerateMode, HfTeacher, PretrainedStudent, ScratchStudent, VerifyRule
from limbeck.text.visible import some

if TYPE_CHECKING:
    from limbeck.pipeline.context import RunContext

NAMED = 3
"""Names that a message lists."""

Content = dict[str, str]


def data_inputs(context: RunContext) -> Content:
    """Rows are cut at the reader's context; its tokenizer and template are in the fingerprint."""
    longest = getattr(context.reader_config, "max_position_embeddings", None)
    return {f"context of {context.recipe.reader[0]}": str(longest), **context.dataset_content}


def label_inputs(context: RunContext) -> Content:
    found = data_inputs(context) | _teacher(context)
    mode = context.recipe.trace.mode
    if isinstance(mode, GenerateMode) and mode.rejection is not None:
        found |= context.verifier_content(mode.rejection.verifier)
    return found


def curate_inputs(context: RunContext) -> Content:
    found = label_inputs(context)
    for rule in context.recipe.curate:
        if isinstance(rule, VerifyRule):
            found |= context.verifier_content(rule.verifier)
    return found


def student_inputs(context: RunContext) -> Content:
    student, found = context.recipe.student, data_inputs(context) | _teacher(context)
    if isinstance(student, PretrainedStudent):
        found |= context.model_content(student.path)
    elif isinstance(student, ScratchStudent) and student.like is not None:
        found |= context.model_content(student.like)
    return found


def train_inputs(context: RunContext) -> Content:
    return curate_inputs(context) | student_inputs(context)


def evaluate_inputs(context: RunContext) -> Content:
    evaluate, found = context.recipe.evaluate, train_inputs(context)
    if evaluate.tasks is not None:
        found |= context.verifier_content(evaluate.tasks.verifier)
    if evaluate.harness is not None and evaluate.harness.include_path is not None:
        found |= context.folder_content(evaluate.harness.include_path)
    return found


def _teacher(context: RunContext) -> Content:
    teacher = context.recipe.teacher
    return context.model_content(teacher.path) if isinstance(teacher, HfTeacher) else {}


def changed(before: Content, now: Content) -> str:
    """The names whose content is another, in words; "" without any."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return some(names, NAMED)
