"""How large a model would be, built without weights, before any memory is taken for it.

transformers fills what the weights lack with random numbers, whatever its size, and calls each error what it likes.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from limbeck.errors import TeacherError
from limbeck.models.config_check import ADVICE, CONFIG, check_config

if TYPE_CHECKING:
    from pathlib import Path

BUILDING = threading.RLock()
"""Held while transformers makes a model: it sets the process's default dtype meanwhile, so that two at a time would
leave the one's to the other."""

SLACK = 2**24
"""Elements that are made and not stored: buffers, tied heads of small models."""


def refuse_oversized(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Raise TeacherError for a model's folder whose config.json cannot be built, or would be built larger than its
    weights are: in bounded time and memory, whatever stands there. What is no folder, or has no safetensors, is left to
    whoever opens it, and so is a model with code of its own, where that may run."""
    weights = check_config(folder) if (folder / CONFIG).is_file() else None
    if weights is None or trust_remote_code:
        return
    try:
        with BUILDING:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # a stranger's numbers make anything fail anywhere
        raise TeacherError(
            f"{folder / CONFIG} makes no model ({type(error).__name__}: {str(error)[:600]}). {ADVICE}"
        ) from error
    stated = sum(part.numel() for part in [*model.parameters(), *model.buffers()])
    held = 8 * weights.num_bytes if "quantization_config" in config.to_dict() else weights.elements
    if stated > 2 * held + SLACK:
        raise TeacherError(
            f"{folder / CONFIG} makes a model of {stated:,} numbers, and its weights are {held:,}. {ADVICE}"
        )
