"""The recipe's sections on evaluation by tasks: problems that models answer, and tasks of lm-evaluation-harness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from limbeck.config.problems import problem
from limbeck.config.schema import Positive, Section
from limbeck.recipe.data import DataSource
from limbeck.recipe.verifier import Exact, Judge, Verifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.config.problems import Problem


class GreedyDecoding(Section):
    """The most probable token, always: one reply to each problem."""

    kind: Literal["greedy"] = "greedy"


class R1Decoding(Section):
    """As DeepSeek-R1 is evaluated (arXiv 2501.12948): temperature 0.6, top-p 0.95."""

    kind: Literal["r1"] = "r1"


class SampledDecoding(Section):
    """Sampling of your own."""

    kind: Literal["sampled"] = "sampled"
    temperature: Annotated[float, Field(gt=0.0)] = Field(default=1.0, description="sampling temperature")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(default=1.0, description="nucleus sampling")


Decoding = GreedyDecoding | R1Decoding | SampledDecoding


class Tasks(Section):
    """Problems that teacher, student and twin answer: pass@1, pass@k, majority vote, and errors that the student has
    from its teacher."""

    source: DataSource | None = Field(
        default=None,
        discriminator="kind",
        description="problems with references; null asks the held-out rows that have a reference",
    )
    limit: Positive = Field(default=256, description="maximum number of problems (a seeded sample)")
    n: Positive = Field(default=1, description="replies to each problem")
    decoding: Decoding = Field(default_factory=GreedyDecoding, discriminator="kind")
    max_tokens: Positive = Field(default=512, description="maximum length of a reply in tokens")
    verifier: Verifier = Field(default_factory=Exact, discriminator="kind", description="judge of an answer")
    ks: tuple[Positive, ...] = Field(default=(1,), description="the k of pass@k, each at most `n`")
    batch_tokens: Positive = Field(default=32768, description="tokens of one batch of prompts and replies")


class Harness(Section):
    """Tasks of lm-evaluation-harness (extra `eval`), run in this process. A task folder is code: its YAML may name
    Python functions, which are run."""

    tasks: tuple[str, ...] = Field(min_length=1, description="names of tasks or groups")
    include_path: str | None = Field(default=None, description="folder of task files beside those that it ships")
    limit: Positive | None = Field(default=None, description="use at most this many examples of each task")
    batch_size: Positive = Field(default=16, description="examples of one forward")


def task_problems(tasks: Tasks) -> Iterator[Problem]:
    """What contradicts itself or has no effect."""
    if isinstance(tasks.decoding, GreedyDecoding) and tasks.n > 1:
        message = f"asks for {tasks.n} replies, but greedy ones are all the same; use 1, or decoding kind r1."
        yield problem("evaluate.tasks.n", message)
    too_large = [k for k in tasks.ks if k > tasks.n]
    if too_large:
        listed = ", ".join(map(str, too_large))
        message = f"has {listed}, but there are {tasks.n} replies to each problem; raise n, or lower k."
        yield problem("evaluate.tasks.ks", message)
    if isinstance(tasks.verifier, Judge):
        message = "is judge, which needs a model to ask; evaluation has none but those it examines. Use another kind."
        yield problem("evaluate.tasks.verifier.kind", message)
    if not tasks.ks or len(set(tasks.ks)) < len(tasks.ks):
        yield problem("evaluate.tasks.ks", f"is {list(tasks.ks)}; it must name at least one k, and each once.")


DECODINGS: dict[str, tuple[float, float]] = {"greedy": (0.0, 1.0), "r1": (0.6, 0.95)}
"""Temperature and top-p of the decodings that are fixed."""


def temperature_and_top_p(decoding: Decoding) -> tuple[float, float]:
    """How a decoding draws; temperature 0 is greedy."""
    if isinstance(decoding, SampledDecoding):
        return decoding.temperature, decoding.top_p
    return DECODINGS[decoding.kind]


class Evaluate(Section):
    """Fidelity on held-out rows against the live teacher, calibration, speed, and side-by-side answers."""

    batch_tokens: Positive = Field(default=2048, description="tokens of one forward pass")
    bootstrap: Positive = Field(default=2000, description="resamples of the paired bootstrap over held-out rows")
    answers: Annotated[int, Field(ge=0)] = Field(
        default=4, description="held-out prompts answered side by side in the report"
    )
    answer_tokens: Positive = Field(default=48, description="tokens of each answer")
    tasks: Tasks | None = Field(default=None, description="problems that all models answer; null asks none")
    harness: Harness | None = Field(default=None, description="tasks of lm-evaluation-harness; null runs none")
