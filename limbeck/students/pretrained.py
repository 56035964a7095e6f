"""A student that exists already: opened from a hub id or a folder, in float32, from safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from limbeck.errors import TeacherError
from limbeck.models.weights import pickle_only
from limbeck.students.blocks import brief

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_pretrained(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model at a hub id or in a folder, as float32 on the CPU, in eval mode.

    Raises TeacherError when there is no such model, when its weights are stored as pickle only, or when it ships code
    that `trust_remote_code` does not allow.
    """
    if problem := pickle_only(Path(path)):
        raise TeacherError(problem)
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(path), dtype=torch.float32, trust_remote_code=trust_remote_code, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise TeacherError(
            f"the student {str(path)!r} cannot be opened ({brief(error)}). "
            "Allowed are a hub id, or a folder with config.json and safetensors weights."
        ) from error
