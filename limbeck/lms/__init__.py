"""Language models: one table from the recipe's `kind` to the class that speaks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.lms.hf import HfLM

if TYPE_CHECKING:
    from pathlib import Path

KINDS = {"hf": HfLM, "gguf": HfLM}


def open_lm(path: str | Path, *, kind: str = "hf", dtype: str = "auto", trust_remote_code: bool = False) -> HfLM:
    """Open a model: hub id, folder (also a finished artifact), .gguf file or `smollm2-135m`.

    Raises TeacherError for an unknown kind or a model that cannot be opened.
    """
    return KINDS[kind].open(path, dtype=dtype, trust_remote_code=trust_remote_code)
