"""What a recipe may not ask of a teacher that is not in this process: its tokens, layers and distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config.problems import Problem, no_effect, problem
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.student import PruneStudent, ScratchStudent
from limbeck.recipe.teacher import GgufTeacher, OpenAITeacher, TextTeacher
from limbeck.recipe.trace import TextTarget, TopK, Votes

if TYPE_CHECKING:
    from collections.abc import Iterator


def teacher_rules(recipe: Recipe) -> Iterator[Problem]:
    """Every contradiction between the teacher's kind and the other sections."""
    teacher, student, trace = recipe.teacher, recipe.student, recipe.trace
    if teacher.is_local:
        if isinstance(student, ScratchStudent) and student.like is not None:
            message = "has no effect with a teacher in this process: the student has its architecture; remove it."
            yield problem("student.like", message)
        if isinstance(teacher, GgufTeacher):
            yield from no_effect(teacher, "teacher", ("trust_remote_code",), "on a .gguf file, which holds no code")
        return
    here = "Use a teacher in this process (kind hf)"
    if isinstance(student, PruneStudent):
        message = f"is prune, but a teacher of kind {teacher.kind} has no layers here. {here}, or another student."
        yield problem("student.kind", message)
    elif isinstance(student, ScratchStudent):
        yield from _scratch(student, teacher.kind)
    if isinstance(teacher, TextTeacher):
        if trace.mode.generates:
            message = "is generate, but a teacher of kind text has spoken already. Remove it, or name a teacher to ask."
            yield problem("trace.mode.kind", message)
        if not isinstance(trace.target, TextTarget):
            message = f"is {trace.target.kind}, but a teacher of kind text has no distributions. Set it to text."
            yield problem("trace.target.kind", message)
    if isinstance(teacher, OpenAITeacher):
        yield from _endpoint(recipe, teacher)


def _endpoint(recipe: Recipe, teacher: OpenAITeacher) -> Iterator[Problem]:
    trace = recipe.trace
    yield from _told(recipe, teacher.kind)
    if not trace.mode.generates:
        names = ("samples_per_request", "max_tokens_key", "system")
        yield from no_effect(teacher, "teacher", names, "when given text is scored: nothing is written")
    elif teacher.samples_per_request > (n := trace.mode.num_replies):
        message = f"is {teacher.samples_per_request}, but only trace.mode.n={n} replies are wanted; use less."
        yield problem("teacher.samples_per_request", message)
    if teacher.mode == "live":
        yield from no_effect(
            teacher, "teacher", ("batch_requests", "batch_poll_seconds"), "unless teacher.mode is batch"
        )
    else:
        names = ("concurrency", "requests_per_minute", "tokens_per_minute")
        yield from no_effect(teacher, "teacher", names, "when teacher.mode is batch: the provider sets the pace")
        if not trace.mode.generates:
            yield problem("teacher.mode", "is batch, and given text is scored live only. Set teacher.mode to live.")
    if teacher.max_cost is not None and teacher.prices is None:
        yield problem("teacher.max_cost", "has no effect without teacher.prices: nobody knows what a token costs.")
    if teacher.system is not None and teacher.endpoint == "completions":
        yield problem(
            "teacher.system", "has no effect with teacher.endpoint=completions: there are no turns; remove it."
        )
    yield from no_effect(
        trace, "trace", ("batch_tokens",), "with a teacher behind an endpoint: there is no forward here"
    )


def _told(recipe: Recipe, kind: str) -> Iterator[Problem]:
    """What an endpoint can tell at best: text, its most probable tokens, or several replies."""
    trace, objective = recipe.trace, recipe.objective
    if not isinstance(trace.target, (TextTarget, TopK, Votes)):
        message = f"is {trace.target.kind}, but a teacher of kind {kind} never tells a whole distribution. Use top_k "
        yield problem("trace.target.kind", message + "(its log-probs), votes (shares of its replies), or text.")
    elif not trace.mode.generates and not isinstance(trace.target, TopK):
        message = (
            f"is score, but a {trace.target.kind} target is made of replies. Set it to generate, or the target to "
        )
        yield problem("trace.mode.kind", message + "top_k.")
    if isinstance(trace.target, TopK) and not objective.only_ce and objective.temperature != 1:
        message = f"is not 1, but a teacher of kind {kind} tells its log-probs at temperature 1 only: the rest cannot "
        yield problem("objective.temperature", message + "be re-tempered. Set it to 1.")


def _scratch(student: ScratchStudent, kind: str) -> Iterator[Problem]:
    if student.like is None:
        message = f"is missing: a teacher of kind {kind} is not here. Name a folder or hub id to take tokenizer and "
        yield problem("student.like", message + "architecture from.")
    if student.teacher_embeddings:
        message = f"is true, but a teacher of kind {kind} has no embeddings here; remove it."
        yield problem("student.teacher_embeddings", message)
