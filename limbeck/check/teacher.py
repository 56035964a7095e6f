"""What a teacher is seen to do: an endpoint's lacks are problems, doubtful distributions are warnings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from limbeck.check.findings import Doubt, Fact, Finding
from limbeck.check.opened import Opened, problem_of
from limbeck.config.problems import Problem, problem
from limbeck.errors import LimbeckError
from limbeck.label.preflight import missing, needs_probe, run_probe, sentences
from limbeck.label.recorders import reader_for
from limbeck.losses.chunked import iter_logits
from limbeck.losses.support import top_ids
from limbeck.recipe import GenerateMode, Recipe, TopK
from limbeck.text.packing import pack, plan_batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from limbeck.models.hf import HfLM
    from limbeck.types import Row


PROBE_TOKENS = 512
TOO_SURE = 0.999  # mean probability of the first choice: beyond it, soft targets say what labels say
WARM = 2.0
FLAT = 0.3  # evenness of the tail: a thousandth in language models, near 1 after label smoothing
MUCH_TAIL = 0.05
LEADING = 0.5


class TeacherStats(NamedTuple):
    """`sure`: mean probability of the teacher's first choice. `evenness`: how flat the distribution of all other tokens
    is where the first has more than half (geometric over arithmetic mean, 1 is flat; 0 where no row is so sure).
    `tail`: mean mass outside the k most probable tokens. All at temperature 1."""

    sure: float
    evenness: float
    tail: float


def doubt_of(logits_NV: Tensor, k: int) -> TeacherStats:
    """Raises nothing for no rows: all is 0 then."""
    logp_NV = torch.log_softmax(logits_NV.double(), 1)
    if not logp_NV.shape[0]:
        return TeacherStats(0.0, 0.0, 0.0)
    p_NV = logp_NV.exp()
    first_N = p_NV.amax(1)
    others = max(p_NV.shape[1] - 1, 1)
    mean_log_N = (logp_NV.clamp_min(-1e4).sum(1) - first_N.log()) / others
    even_N = (mean_log_N - ((1 - first_N).clamp_min(1e-300) / others).log()).exp()
    led = first_N > LEADING
    kept_N = p_NV.gather(1, top_ids(p_NV, min(k, p_NV.shape[1]))).sum(1)
    evenness = float(even_N[led].mean()) if bool(led.any()) else 0.0
    return TeacherStats(float(first_N.mean()), evenness, float((1 - kept_N).clamp_min(0.0).mean()))


def teacher_doubts(recipe: Recipe, opened: Opened) -> Iterator[Doubt]:
    """Where the teacher runs in this process."""
    if recipe.teacher.is_local:
        yield from map(Doubt, warn_of_teacher(recipe, opened.teacher, opened.all_rows.rows))


def warn_of_teacher(recipe: Recipe, teacher: HfLM, rows: Sequence[Row]) -> list[Problem]:
    """One forward of at most some hundred tokens of the first training rows. Prompts count where replies are yet to be
    written."""
    if recipe.objective.only_ce:
        return []
    target = recipe.trace.target
    found = doubt_of(_logits(recipe, teacher, rows), target.k if isinstance(target, TopK) else 1)
    return list(_doubts(recipe, found))


def _logits(recipe: Recipe, teacher: HfLM, rows: Sequence[Row]) -> Tensor:
    chosen = [row for row in rows if row.split == "train"]
    chosen = [chosen[index] for index in plan_batches([len(row.ids) for row in chosen], PROBE_TOKENS)[0]]
    if isinstance(recipe.trace.mode, GenerateMode):  # a prompt has no supervised token yet
        chosen = [replace(row, spans=((1, len(row.ids)),)) for row in chosen]
    hidden_ND = teacher.hidden(pack(chosen, device=teacher.device))[:PROBE_TOKENS]
    parts = [z_nV.clone() for _, z_nV in iter_logits(hidden_ND, teacher.head)]
    return torch.cat(parts) if parts else torch.zeros(0, teacher.vocab)


def _doubts(recipe: Recipe, found: TeacherStats) -> Iterator[Problem]:
    warmest, target = recipe.objective.max_temperature, recipe.trace.target
    if found.sure > TOO_SURE:
        message = (
            f"has a teacher whose first choice has the probability {found.sure:.5f} on the first rows: soft targets "
            "carry hardly more than labels there. Choose text that it is less sure of, or another teacher."
        )
        yield problem("teacher.path", message)
    if warmest > WARM and (found.sure > TOO_SURE or found.evenness > FLAT):
        flat = f"looks trained with label smoothing: the tokens that it does not choose are {found.evenness:.0%} even"
        why = flat if found.evenness > FLAT else f"is sure of nearly everything ({found.sure:.5f})"
        message = (
            f"goes up to {warmest:g}, but this teacher {why}. Heating that up teaches noise (Müller et al. 2019, "
            f"arXiv 1906.02629); use at most {WARM:g}."
        )
        yield problem("objective.temperature", message)
    if isinstance(target, TopK) and found.tail > MUCH_TAIL:
        message = (
            f"is {target.k}, which leaves {found.tail:.1%} of the teacher's mass on the first rows to one tail cell: "
            "gradients are biased by it. Raise k, or use sampled, which is unbiased."
        )
        yield problem("trace.target.k", message)


def endpoint_offers(recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    """A few requests, where the recipe needs more than one reply to each prompt."""
    if not needs_probe(recipe):
        return
    said: list[str] = []
    with problem_of("teacher", LimbeckError):
        record = run_probe(recipe, (), reader_for(recipe, opened.reader.tokenizer), said.append)
    yield from map(Fact, [*said, *sentences(record)])
    yield from missing(recipe, record)
