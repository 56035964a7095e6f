"""The recipe's sections on teachers: who is asked, and how it is reached."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.shape import Section


class HfTeacher(Section):
    """A local causal language model: a hub id, a folder (safetensors), or a .gguf file."""

    kind: Literal["hf"] = "hf"
    path: str = Field(description="hub id, folder, .gguf file, or `smollm2-135m` for the demo teacher")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="`auto` measures which is fastest on this machine"
    )
    trust_remote_code: bool = Field(
        default=False, description="run code that the model's authors ship; shown in the report"
    )
    licence: str | None = Field(
        default=None, description="licence of the teacher, for the model card; read from its card if absent"
    )


class TextTeacher(Section):
    """A teacher that has spoken already: the replies in the data are its words, and nobody is asked. For published
    traces, captured traffic, or your own worked answers."""

    kind: Literal["text"] = "text"
    name: str = Field(default="the author of the data", description="whose words they are, for the model card")
    licence: str | None = Field(default=None, description="licence or terms of those words, for the model card")


Teacher = HfTeacher | TextTeacher


def is_local(teacher: Teacher) -> bool:
    """Whether the teacher runs in this process: then its tokenizer makes rows tokens, and its distributions are at
    hand. Else the student's own tokenizer does."""
    return isinstance(teacher, HfTeacher)


def name_of(teacher: Teacher) -> str:
    """The teacher's name for cards and reports."""
    return teacher.path if isinstance(teacher, HfTeacher) else teacher.name
