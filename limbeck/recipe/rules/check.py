"""What a recipe may not say although every key is valid: parts that contradict each other, and settings without effect.

Pure logic on the recipe alone. What needs a model or data is in `jobs.check`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from limbeck.config.problems import Problem, idle, problem
from limbeck.errors import RecipeError
from limbeck.recipe.data import CapturedSource, DatasetSource, FileSource, ProblemsSource, StdlibSource
from limbeck.recipe.evaluate import task_problems
from limbeck.recipe.export import export_problems
from limbeck.recipe.objective import (
    AlphaBeta,
    ByTeacher,
    Decoupled,
    FirstTokens,
    PlaceRamp,
    Ranking,
    Schedule,
    needs_of,
)
from limbeck.recipe.recipe import (
    WSD,
    GenerateMode,
    Live,
    PruneStudent,
    Recipe,
    Sampled,
    ScoreMode,
    ScratchStudent,
    Steps,
    TextTarget,
    TopK,
    Votes,
)
from limbeck.recipe.rules.curate import curate_rules
from limbeck.recipe.rules.data import captured_rules
from limbeck.recipe.rules.teacher import teacher_rules
from limbeck.recipe.rules.trace import enough_rules, vote_rules
from limbeck.recipe.teacher import is_local
from limbeck.types import Cap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limbeck.recipe.objective import Divergence, Needs, Objective, PositionWeights, TeacherWeights
    from limbeck.recipe.recipe import Target

PARAMETERS = re.compile(r"\s*[0-9][0-9_]*(\.[0-9]+)?\s*[kKmMbB]?\s*")


def check_static(recipe: Recipe) -> list[Problem]:
    """Every contradiction and every setting without effect; [] when the recipe is sound."""
    data = (_source, captured_rules, _rows, _mode, _target, vote_rules, enough_rules)
    rules = (*data, _student, teacher_rules, curate_rules, _objective, _train, _evaluate, _export)
    return [found for rule in rules for found in rule(recipe)]


def raise_problems(problems: list[Problem], origin: Callable[[str], str] | None = None) -> None:
    """Raise one RecipeError that lists them, unless there are none. `origin` turns a path into file and line."""
    if problems:
        raise RecipeError("\n".join(f"{origin(p.where)}: {p.message}" if origin else p.message for p in problems))


def needs(recipe: Recipe) -> dict[Cap, str]:
    """What the recipe asks of its teacher, each with the part that asks."""
    if not is_local(recipe.teacher):
        return {}
    wanted = {Cap.FULL_LOGITS: "evaluation against the teacher's full distribution"}
    wanted[Cap.HIDDEN_STATES] = "trace.target (distributions are selected from hidden rows and the head)"
    if isinstance(recipe.trace.mode, GenerateMode):
        wanted[Cap.GENERATE] = "trace.mode generate"
    elif recipe.evaluate.answers:
        wanted[Cap.GENERATE] = "evaluate.answers"
    return wanted


def _source(recipe: Recipe) -> Iterator[Problem]:
    source = recipe.data.source
    if isinstance(source, StdlibSource | ProblemsSource | CapturedSource):
        return
    columns = [name for name in ("text", "prompt", "messages") if getattr(source, name) is not None]
    if len(columns) > 1:
        yield problem(
            "data.source",
            f"names the columns {' and '.join(columns)}; allowed is one of text, prompt (with completion), messages, "
            "or none of them (then the columns are recognised by their names).",
        )
    if source.completion is not None and source.prompt is None:
        yield problem("data.source.completion", "needs `prompt` beside it: the column of the prompts.")
    if columns == ["prompt"] and source.completion is None and isinstance(recipe.trace.mode, ScoreMode):
        yield problem(
            "data.source.prompt",
            "stands without `completion`, and a teacher that scores needs a text to score. Name the completion column, "
            "or let the teacher write: trace.mode.kind=generate.",
        )


def _rows(recipe: Recipe) -> Iterator[Problem]:
    source = recipe.data.source
    if recipe.data.chat_template:
        return
    why = "chat_template: false only changes prompt/completion pairs"
    if isinstance(source, StdlibSource):
        yield problem("data.chat_template", f"has no effect on plain text ({why}); remove it.")
    elif isinstance(source, (FileSource, DatasetSource)) and (source.text or source.messages):
        rows = "plain text" if source.text else "chat messages, which are always rendered by the template"
        yield problem("data.chat_template", f"has no effect on {rows} ({why}); remove it.")


def _mode(recipe: Recipe) -> Iterator[Problem]:
    mode = recipe.trace.mode
    if not isinstance(mode, GenerateMode):
        return
    if mode.temperature == 0:
        yield from idle(mode, "trace.mode", ("top_p",), "at temperature 0 (greedy)")
        if mode.n > 1:
            yield problem(
                "trace.mode.n", f"asks for {mode.n} replies, but at temperature 0 they are all the same; use 1."
            )
    if mode.think == "strip" and not isinstance(recipe.trace.target, TextTarget):
        yield problem(
            "trace.mode.think",
            f"is strip, but trace.target.kind is {recipe.trace.target.kind}: what was stored behind the reasoning does "
            "not fit a text without it. Set trace.target.kind=text, or keep the reasoning.",
        )
    if any(not text for text in mode.stop):
        yield problem("trace.mode.stop", "has an empty string, which would end every reply at once; remove it.")


def _target(recipe: Recipe) -> Iterator[Problem]:
    trace = recipe.trace
    if isinstance(trace.target, (Live, TextTarget)) and isinstance(trace.mode, ScoreMode):
        names, kind = ("batch_tokens", "shard_tokens"), trace.target.kind
        yield from idle(
            trace, "trace", names, f"when trace.target.kind is {kind} and the text is given: nothing is stored"
        )


def _student(recipe: Recipe) -> Iterator[Problem]:
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
    yield from idle(student, "student", ("probe_rows",), "with an explicit `keep`: nothing is measured")


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


def _objective(recipe: Recipe) -> Iterator[Problem]:
    objective, target = recipe.objective, recipe.trace.target
    by_teacher = objective.position_weights.teacher
    if objective.only_ce:
        names = ("divergence", "temperature", "also")
        yield from idle(objective, "objective", names, "when ce_weight is 1 (plain training)")
        if not isinstance(target, (Live, TextTarget)) and by_teacher is None:
            names = ("target",)
            yield from idle(recipe.trace, "trace", names, "when objective.ce_weight is 1: no distribution is used")
    elif isinstance(target, TextTarget):
        message = f"is text, which has no distribution, but objective.ce_weight is {objective.ce_weight}: set it to 1."
        yield problem("trace.target.kind", message)
    else:
        yield from _divergences(recipe)
        yield from _temperature(recipe)
    yield from _ce(objective)
    if isinstance(target, TextTarget) and by_teacher is not None:
        yield problem("objective.position_weights.teacher", "weighs by what a text target does not hold; remove it.")
    yield from _weights(objective.position_weights, target)


def _all_divergences(objective: Objective) -> list[tuple[str, Divergence]]:
    """Every divergence with its place in the recipe."""
    also = [(f"objective.also[{n}].divergence", term.divergence) for n, term in enumerate(objective.also)]
    return [("objective.divergence", objective.divergence), *also]


def offers(target: Target) -> Needs:
    """What a target has for a divergence: every token, a support with the mass of its tail, or a sample."""
    if isinstance(target, Live):
        return "full"
    return "cells" if isinstance(target, TopK) and target.rest == "tail" else "sample"


def knows_entropy(target: Target) -> bool:
    """Whether the teacher's own entropy is stored: a sample's is another."""
    return not isinstance(target, (TopK, Votes)) and not (isinstance(target, Sampled) and target.value == "probability")


def _divergences(recipe: Recipe) -> Iterator[Problem]:
    target = recipe.trace.target
    for where, divergence in _all_divergences(recipe.objective):
        needs, has = needs_of(divergence), offers(target)
        if needs == "full" and has != "full":
            yield problem(
                where,
                f"is {divergence.kind}, which compares the logits of every token; a stored {target.kind} target has "
                "only some. Set trace.target.kind=full (the teacher runs beside the student).",
            )
        elif needs == "cells" and has == "sample":
            yield problem(
                where,
                f"is {divergence.kind}, which weighs tokens by the student's probability, so it needs the teacher's "
                f"probability of every token; a stored {target.kind} target has only some. Set trace.target.kind=full "
                "(the teacher runs beside the student), or use forward_kl.",
            )
        for name, value in divergence.inert.items():
            if getattr(divergence, name) == value:
                yield problem(f"{where}.{name}", f"is {value:g}, at which the loss is always 0; lower it.")
        if isinstance(divergence, (AlphaBeta, Decoupled)) and divergence.alpha == 0 == divergence.beta:
            yield problem(where, "has alpha 0 and beta 0; at least one must be above 0.")
        if isinstance(divergence, Ranking) and isinstance(target, TopK) and divergence.k > target.k:
            yield problem(f"{where}.k", f"is {divergence.k}, but trace.target keeps {target.k} tokens; lower it.")


def _temperature(recipe: Recipe) -> Iterator[Problem]:
    objective, stored = recipe.objective, not isinstance(recipe.trace.target, Live)
    by = objective.temperature
    heeded = objective.divergence.tempered or any(
        term.divergence.tempered and term.temperature is None for term in objective.also
    )
    if not heeded:
        why = "on these divergences: the temperature changes nothing in them, or they have their own"
        yield from idle(objective, "objective", ("temperature",), why)
    if not isinstance(by, (int, float)):
        if stored:
            yield problem(
                "objective.temperature",
                f"is {by.kind}, but a stored {recipe.trace.target.kind} target has one temperature: its tail cannot be "
                "re-tempered. Give a number, or set trace.target.kind=full (the teacher runs beside the student).",
            )
        ends = (by.certain, by.unsure) if isinstance(by, ByTeacher) else (by.start, by.end)
        yield from _moves("objective.temperature", by.kind, ends)
        if min(ends) == 0:
            yield problem("objective.temperature", "reaches 0; it must be above 0 everywhere.")
        if isinstance(by, ByTeacher):
            yield from _doubt("objective.temperature", by)
    for number, term in enumerate(objective.also):
        where = f"objective.also[{number}].temperature"
        if term.temperature is None:
            continue
        if not term.divergence.tempered:
            yield problem(where, f"has no effect on {term.divergence.kind}; remove it.")
        elif stored and term.temperature != by:
            yield problem(
                where,
                f"is {term.temperature:g}, but a stored target has one temperature, and objective.temperature is its "
                "own. Remove it, or set trace.target.kind=full.",
            )


def _moves(where: str, kind: str, ends: tuple[float, float]) -> Iterator[Problem]:
    if ends[0] == ends[1]:
        yield problem(where, f"is {kind} from {ends[0]:g} to {ends[1]:g}: it does not change. Write the number.")


def _doubt(where: str, by: ByTeacher | TeacherWeights) -> Iterator[Problem]:
    if by.by == "confidence" and by.full > 1:
        yield problem(f"{where}.full", f"is {by.full:g}, but 1 - a probability is at most 1; lower it.")


def _ce(objective: Objective) -> Iterator[Problem]:
    by = objective.ce_weight
    if isinstance(by, Schedule):
        yield from _moves("objective.ce_weight", by.kind, (by.start, by.end))
        if objective.most_ce > 1:
            yield problem("objective.ce_weight", f"reaches {objective.most_ce:g}; a share is at most 1.")
    if objective.most_ce == 0:
        yield from idle(objective, "objective", ("label_smoothing",), "without cross-entropy (objective.ce_weight)")


def _weights(weights: PositionWeights, target: Target) -> Iterator[Problem]:
    where = "objective.position_weights"
    teacher, tokens, place = weights.teacher, weights.tokens, weights.place
    if teacher is not None:
        yield from _doubt(f"{where}.teacher", teacher)
        if teacher.certain == teacher.unsure:
            yield problem(f"{where}.teacher", "gives every position one weight; remove it.")
        if teacher.by == "entropy" and not knows_entropy(target):
            yield problem(
                f"{where}.teacher.by",
                f"is entropy, which this {target.kind} target does not store. Use confidence, or another trace.target.",
            )
        if teacher.by == "confidence" and isinstance(target, Sampled) and target.draws < FEW_DRAWS:
            yield problem(
                f"{where}.teacher.by",
                f"is confidence, of which {target.draws} draws are a poor witness. Use entropy, which is stored with "
                f"them, or at least {FEW_DRAWS} draws.",
            )
    if tokens is not None and len(set(tokens.model_dump().values())) == 1:
        yield problem(f"{where}.tokens", "gives every class one weight; remove it.")
    if isinstance(place, FirstTokens) and place.weight == 1:
        yield problem(f"{where}.place", "gives the first tokens the weight 1, which all have; remove it.")
    if isinstance(place, PlaceRamp):
        yield from _moves(f"{where}.place", place.kind, (place.start, place.end))


SMALL_K = 32
FEW_DRAWS = 16  # systematic draws tell a probability to within one draw


def warn_static(recipe: Recipe) -> list[Problem]:
    """What is allowed and yet doubtful; [] when nothing is. Beside a problem it says nothing new."""
    target, objective = recipe.trace.target, recipe.objective
    if objective.only_ce:
        return []
    if isinstance(target, Sampled) and target.value == "probability":
        message = (
            "is probability: renormalised over the drawn tokens, targets are biased. counts is unbiased, and smaller."
        )
        return [problem("trace.target.value", message)]
    if not isinstance(target, TopK):
        return []
    found = []
    if target.rest != "tail":
        message = (
            f"is {target.rest}: targets are biased, and more than with a tail cell (rest=tail). sampled is unbiased."
        )
        return [problem("trace.target.rest", message)]
    for where, divergence in _all_divergences(objective):
        if needs_of(divergence) == "cells":
            message = (
                f"is {divergence.kind} on a stored top_k target: all tokens outside the {target.k} kept are one cell, "
                "so the student hears how much mass they have together, not which of them the teacher would never say. "
                "Its value is a lower bound. trace.target.kind=full has no such gap."
            )
            found.append(problem(where, message))
    if target.k < SMALL_K:
        message = (
            f"is {target.k}: gradients of a small top_k are biased, since the tail is one cell. sampled is unbiased "
            f"at the same size; or raise k to {SMALL_K} or more."
        )
        found.append(problem("trace.target.k", message))
    return found


def _train(recipe: Recipe) -> Iterator[Problem]:
    train = recipe.train
    if not all(0 <= beta < 1 for beta in train.optimizer.betas):
        found = list(train.optimizer.betas)
        yield problem("train.optimizer.betas", f"is {found}; both must be at least 0 and below 1, such as [0.9, 0.95].")
    schedule = train.schedule
    if isinstance(schedule, WSD) and schedule.warmup + schedule.decay > 1:
        yield problem(
            "train.schedule",
            f"warms up over {schedule.warmup:g} and decays over {schedule.decay:g} of the budget, together more than "
            "all of it; their sum may be at most 1.",
        )
    if train.qad is not None and isinstance(train.budget, Steps) and train.qad.start > 1 - 0.5 / train.budget.steps:
        yield problem(
            "train.qad.start",
            f"is {train.qad.start:g}, after the last of {train.budget.steps} steps; lower it, or remove train.qad.",
        )
    if train.twin and recipe.objective.only_ce and recipe.objective.position_weights.teacher is None:
        yield problem(
            "train.twin",
            "has no effect when objective.ce_weight is 1: the student is the hard-label twin already. Lower ce_weight, "
            "or set train.twin=false.",
        )


def _evaluate(recipe: Recipe) -> Iterator[Problem]:
    if recipe.evaluate.answers == 0:
        yield from idle(recipe.evaluate, "evaluate", ("answer_tokens",), "when evaluate.answers is 0")
    if recipe.evaluate.tasks is not None:
        yield from task_problems(recipe.evaluate.tasks)


def _export(recipe: Recipe) -> Iterator[Problem]:
    yield from export_problems(recipe.export)
