"""`limbeck selftest`: the correctness contract on the user's own pair of models, through the code that trains.

Each statement measures something and says in which range it has to be; docs/reference/correctness.md lists them all.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from limbeck.errors import BudgetError, LimbeckError, RecipeError
from limbeck.losses.divergences import NAMES
from limbeck.models.hf import head_layer
from limbeck.models.open import open_hf
from limbeck.selftest import losses, models, store
from limbeck.selftest.pair import CannotRun, Measure, Pair, short_rows
from limbeck.system.refusals import out_of_memory
from limbeck.text.tokenizer import compare_tokenizers, template_hash
from limbeck.types import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limbeck.models.hf import HfLM
    from limbeck.types import OnProgress

SHAKE = 0.05  # of each weight's spread: a student made from its own teacher
WRONG = (ArithmeticError, AssertionError, LimbeckError, LookupError, RuntimeError, TypeError, ValueError)
"""What a statement may raise that says something about the code under test."""


class Check(NamedTuple):
    """`says` is what must hold; `numbers`: rows of docs/reference/correctness.md; `joint`: the two must share ids."""

    name: str
    says: str
    numbers: tuple[int, ...]
    check: Callable[[Pair], Iterator[Measure]]
    joint: bool = True


STATEMENTS = (
    Check("tokenizer", "ids stand for the same bytes in both models", (20, 21), models.tokenizer, False),
    Check("teacher untouched", "in eval mode, bit-equal, no gradient", (6, 23), models.teacher_untouched, False),
    Check("self-distillation", "teacher = student: no loss, no gradient", (7,), losses.self_distillation),
    Check("fused = plain, live", "the fused loss is that of float64", (6,), losses.fused_is_plain_live),
    Check("fused = plain, stored", "and on stored targets", (6,), losses.fused_is_plain_stored),
    Check("temperature", "T^2 once, T on both sides", (1, 2, 6), losses.temperature),
    Check("direction of KL", "forward is KL(teacher || student)", (5,), losses.direction, False),
    Check("precision", "float32 log-softmax, nothing infinite", (9,), losses.precision),
    Check("teacher matters", "another teacher, another gradient", (8,), models.teacher_matters),
    Check("shift", "the next token, once", (10,), store.shift, False),
    Check("masked positions", "no gradient outside the spans", (11, 12), models.masked),
    Check("packing and padding", "packed = alone = padded", (11, 13), models.packing),
    Check("head", "the head is trained", (24,), models.head),
    Check("split", "one batch = its micro-batches", (3, 4), models.split),
    Check("stored targets", "they fit their own tokens only", (14,), store.alignment, False),
    Check("kept mass", "nothing is renormalised", (15,), store.kept_mass, False),
    Check("sparse bound", "KL on K + 1 cells <= KL", (16,), losses.sparse_bound),
    Check("unbiased draws", "their mean is the teacher", (17,), store.unbiased, False),
    Check("raw probabilities", "stored before sampling's settings", (18,), store.raw, False),
)


@dataclass(frozen=True)
class CheckOutcome:
    """What came of one statement: its measures; or why it raised (`raised`: it failed) or could not run (`skipped`)."""

    name: str
    says: str
    numbers: tuple[int, ...]
    measures: tuple[Measure, ...] = ()
    raised: str | None = None
    skipped: str | None = None

    @property
    def passed(self) -> bool | None:
        """None when the statement could not run."""
        if self.skipped is not None:
            return None
        return self.raised is None and all(measure.passed for measure in self.measures)


@dataclass(frozen=True)
class SelfTest:
    """All findings, and facts about what they were measured on."""

    facts: tuple[str, ...]
    findings: tuple[CheckOutcome, ...]
    seconds: float

    @property
    def failed(self) -> list[str]:
        return [finding.name for finding in self.findings if finding.passed is False]

    def to_json(self) -> dict[str, Any]:
        """Plain values; a bound that is not there is null, and so is a value that is not a number."""
        findings = [
            {**asdict(one), "passed": one.passed, "measures": [_plain(measure) for measure in one.measures]}
            for one in self.findings
        ]
        return {"facts": list(self.facts), "failed": self.failed, "seconds": self.seconds, "findings": findings}


def _plain(measure: Measure) -> dict[str, Any]:
    what, *numbers = measure
    finite = [value if math.isfinite(value) else None for value in numbers]
    return {**dict(zip(measure._fields, [what, *finite], strict=True)), "passed": measure.passed}


@dataclass(frozen=True)
class SelfTestChoice:
    """`rows`: a file of text to use instead of the built-in rows. `divergence`: one of `losses.NAMES`, all of them when
    absent. `dtype`: the teacher's; the student is float32, as in training."""

    rows: Path | None = None
    divergence: str | None = None
    dtype: str = "float32"
    trust_remote_code: bool = False


def run_selftest(
    teacher: str,
    student: str | None = None,
    *,
    choice: SelfTestChoice | None = None,
    on_progress: OnProgress | None = None,
) -> SelfTest:
    """Measure every statement on a pair: hub ids, folders, .gguf files, or `smollm2-135m`. Without a student, or when
    both are one model, the student is the teacher with a little noise in its weights.

    Raises TeacherError for a model that cannot be opened, RecipeError for an unknown divergence, DataError for rows
    that cannot be used, BudgetError when memory runs out. A statement that fails is a finding, not an error.
    """
    choice, begun = choice or SelfTestChoice(), time.monotonic()
    if choice.divergence not in (None, *NAMES):
        raise RecipeError(f"there is no divergence {choice.divergence!r}; allowed are {', '.join(NAMES)}.")
    ours = open_hf(teacher, dtype=choice.dtype, trust_remote_code=choice.trust_remote_code)
    theirs = open_hf(student or teacher, dtype="float32", trust_remote_code=choice.trust_remote_code)
    alike = student in (None, teacher) or ours.fingerprint == theirs.fingerprint
    if alike:
        _shake(theirs)
    with tempfile.TemporaryDirectory(prefix="limbeck-selftest-") as folder:
        names = (choice.divergence,) if choice.divergence else NAMES
        context = min(lm.max_context or 2**30 for lm in (ours, theirs))
        rows = short_rows(ours.tokenizer, choice.rows, context)
        pair = Pair(ours, theirs, rows, names, Path(folder), _apart(ours, theirs))
        findings = []
        for number, statement in enumerate(STATEMENTS):
            findings.append(_finding(statement, pair))
            if on_progress is not None:
                on_progress(_progress(number + 1, time.monotonic() - begun))
    facts = tuple(_facts(pair, alike))
    return SelfTest(facts, tuple(findings), time.monotonic() - begun)


def _progress(done: int, seconds: float) -> Progress:
    rate = done / max(seconds, 1e-9)
    return Progress("selftest", done, len(STATEMENTS), "statements", rate, (len(STATEMENTS) - done) / rate)


def _shake(lm: HfLM) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.add_(noise * parameter.std(), alpha=SHAKE)


def _apart(teacher: HfLM, student: HfLM) -> str | None:
    """Why the ids of teacher and student cannot be compared."""
    if compare_tokenizers(teacher.tokenizer, student.tokenizer):
        return "the two have different tokenizers"
    rows = head_layer(student.model).weight.shape[0]
    return None if rows >= teacher.vocab else f"the student's head has {rows} rows for {teacher.vocab} tokens"


def _finding(statement: Check, pair: Pair) -> CheckOutcome:
    about = (statement.name, statement.says, statement.numbers)
    if statement.joint and pair.apart is not None:
        return CheckOutcome(*about, skipped=pair.apart)
    measures: list[Measure] = []
    try:
        for measure in statement.check(pair):
            measures.append(measure)
    except CannotRun as reason:
        return CheckOutcome(*about, tuple(measures), skipped=str(reason))
    except (*WRONG, MemoryError) as error:
        if out_of_memory(error):
            raise BudgetError(
                f"out of memory in the statement {statement.name!r}; use smaller models, or --dtype bfloat16."
            ) from error
        return CheckOutcome(*about, tuple(measures), raised=f"{type(error).__name__}: {error}")
    return CheckOutcome(*about, tuple(measures))


def _facts(pair: Pair, alike: bool) -> Iterator[str]:
    for who, lm in (("teacher", pair.teacher), ("student", pair.student)):
        layers = getattr(lm.model.config.get_text_config(), "num_hidden_layers", None)
        shaken = f", weights shaken by {SHAKE:.0%}" * (alike and who == "student")
        dtype = str(lm.dtype).removeprefix("torch.")
        yield f"{who}: {lm.name} ({lm.model.config.model_type}, {layers} layers, {dtype}{shaken})"
    tokens, supervised = sum(len(row.ids) for row in pair.rows), sum(row.num_supervised for row in pair.rows)
    yield f"{len(pair.rows)} rows, {tokens} tokens, {supervised} supervised, {pair.vocab} tokens in the vocabulary"
    if template_hash(pair.teacher.tokenizer) != template_hash(pair.student.tokenizer):
        yield "the chat templates differ: Limbeck renders with the teacher's"
