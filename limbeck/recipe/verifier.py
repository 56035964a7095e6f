"""The recipe's sections on verifiers: what makes a reply right."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from limbeck.config.schema import AboveZero, Positive, Section
from limbeck.recipe.teacher import OpenAITeacher

Where = Literal["whole", "last_line", "last_number", "boxed", "marker"]

WHERE = (
    "where the answer stands in a reply (reasoning in <think> tags is cut off before): `whole`, `last_line`, "
    "`last_number`, `boxed` (the last \\boxed{}), or after the last `marker`"
)


class Exact(Section):
    """The answer is the reference, letter by letter."""

    kind: Literal["exact"] = "exact"
    answer: Where = Field(default="whole", description=WHERE)
    marker: str = Field(default="####", description="what stands before the answer, with `answer: marker`")
    normalize: bool = Field(
        default=False,
        serialization_alias="fold",
        description="ignore case, punctuation and runs of white space; signs and operators are no punctuation",
    )


class Numeric(Section):
    """The answer is the reference as a number: 1,000, 70 000, 2 1/2, 12 %, $3.50, 1e3, 10^3, 5 million and LaTeX's
    fractions and roots are understood, units are left aside. What is no number (a tuple, an interval, x^2) is never
    judged by its last digits."""

    kind: Literal["numeric"] = "numeric"
    answer: Where = Field(default="last_number", description=WHERE)
    marker: str = Field(default="####", description="what stands before the answer, with `answer: marker`")
    tolerance: Annotated[float, Field(ge=0.0)] = Field(
        default=1e-6, description="largest error, of the reference's size (absolute below 1)"
    )


class Math(Section):
    """The answer equals the reference as mathematics, LaTeX included (`math-verify`, extra `verify`)."""

    kind: Literal["math"] = "math"
    timeout_seconds: AboveZero = Field(
        default=5.0, serialization_alias="seconds", description="timeout of one comparison"
    )


class Regex(Section):
    """The answer matches a pattern; without one, the row's reference is the pattern."""

    kind: Literal["regex"] = "regex"
    answer: Where = Field(default="whole", description=WHERE)
    marker: str = Field(default="####", description="what stands before the answer, with `answer: marker`")
    pattern: str | None = Field(default=None, description="pattern for all rows; null takes each row's reference")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        return pattern


class JsonSchema(Section):
    """The reply is JSON (bare, or in a code block) of a schema: the row's reference, or one file for all rows
    (`jsonschema`, extra `verify`)."""

    kind: Literal["json_schema"] = "json_schema"
    path: str | None = Field(default=None, description="schema file for all rows; null takes each row's reference")


class UnitTests(Section):
    """The reply's program passes the row's tests (reference: Python source, a JSON list of it, or a JSON object with
    `test` and `entry_point`), in a sandbox."""

    kind: Literal["unit_tests"] = "unit_tests"
    isolation: Literal["bwrap", "rlimits"] = Field(
        default="bwrap",
        description="`bwrap`: no network, no files; `rlimits` only limits time and memory, and is unsafe: the code can "
        "read your files",
    )
    timeout_seconds: AboveZero = Field(
        default=5.0, serialization_alias="seconds", description="timeout of one program with its tests"
    )
    memory_mib: Annotated[int, Field(ge=64)] = Field(
        default=512, description="memory limit of each process, and of all together"
    )
    processes: Positive = Field(default=16, description="limit of processes and threads")


class Judge(Section):
    """A language model compares the reply with the reference: in this process (`path`), or behind an OpenAI-compatible
    endpoint (`endpoint`, the same keys as a teacher of kind `openai`)."""

    kind: Literal["judge"] = "judge"
    path: str | None = Field(default=None, description="hub id, folder or .gguf file of an instruction model")
    endpoint: OpenAITeacher | None = Field(default=None, description="endpoint of the judge, instead of `path`")
    max_tokens: Positive = Field(default=64, description="maximum length of the judge's reply in tokens")
    instructions: str = Field(
        default="Decide whether the answer means the same as the reference. Reply with CORRECT or INCORRECT only.",
        description="instructions of the judge; its reply must begin or end with CORRECT or INCORRECT",
    )

    @model_validator(mode="after")
    def _one_model(self) -> Judge:
        if (self.path is None) == (self.endpoint is None):
            raise ValueError("a judge is either a model in this process (path) or an endpoint: give one of the two")
        asked = self.endpoint
        if asked and (asked.max_cost is not None or asked.mode == "batch" or asked.endpoint == "completions"):
            raise ValueError("a judge is asked live, in chats, and without a limit of costs: max_cost, mode, endpoint")
        return self


Verifier = Exact | Numeric | Math | Regex | JsonSchema | UnitTests | Judge


def needs_reference(verifier: Verifier) -> bool:
    """Whether it compares with the row's reference: a pattern or schema for all rows does not."""
    if isinstance(verifier, Regex):
        return verifier.pattern is None
    return not isinstance(verifier, JsonSchema) or verifier.path is None
