"""`student`: where the student comes from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.config.schema import Positive, Section


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
