"""`student`: where the student comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from limbeck.config.schema import Positive, Section

if TYPE_CHECKING:
    pass


class PretrainedStudent(Section):
    """Start from a model that exists."""

    kind: Literal["pretrained"] = "pretrained"
    path: str = Field(description="hub id or folder")
    trust_remote_code: bool = Field(default=False, description="run code that the model's authors ship")


class PruneStudent(Section):
    """The teacher with fewer layers: those of least block influence are removed (ShortGPT, arXiv 2403.03853)."""

    kind: Literal["prune"] = "prune"
    layers: Positive | None = Field(
        default=None, description="number of layers to keep, chosen by measured block influence"
    )
    keep: tuple[int, ...] | None = Field(default=None, description="explicit layers to keep, instead of `layers`")
    probe_rows: Positive = Field(default=16, description="training rows on which block influence is measured")


class ScratchStudent(Section):
    """A new model of the teacher's architecture and tokenizer (or those of `like`), sized by a parameter budget or
    explicit sizes."""

    kind: Literal["scratch"] = "scratch"
    like: str | None = Field(
        default=None,
        description="hub id or folder of its architecture and tokenizer, where the teacher is not in this process",
    )
    parameters: str | None = Field(default=None, description="budget such as `17M`: width and depth are chosen")
    hidden_size: Positive | None = Field(default=None, description="explicit width (with `layers` and `heads`)")
    layers: Positive | None = Field(default=None, description="explicit depth")
    heads: Positive | None = Field(default=None, description="explicit number of attention heads")
    teacher_embeddings: bool = Field(
        default=False,
        description="start from the teacher's embeddings, projected to the student's width where it differs",
    )
