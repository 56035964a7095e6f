"""Language models: one table from the recipe's `kind`, and one from an artifact's format, to the class that runs it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.errors import TeacherError
from limbeck.models.hf import HfLM
from limbeck.models.meta_size import refuse_lies
from limbeck.models.weights import checked_format

if TYPE_CHECKING:
    from limbeck.types import LocalLM

KINDS = {"hf": HfLM, "gguf": HfLM}

RUNNERS = {"gguf": ("limbeck.models.llamacpp", "LlamaLM"), "onnx": ("limbeck.models.onnx", "OnnxLM")}
"""Formats that another library runs: their modules are imported when such an artifact is opened."""


def open_lm(path: str | Path, *, kind: str = "hf", dtype: str = "auto", trust_remote_code: bool = False) -> LocalLM:
    """Open a model: an artifact of any format, a hub id, a folder with safetensors, a .gguf file, or `smollm2-135m`.

    An artifact is checked against its manifest first, and opens as what its card says: safetensors as HfLM, gguf as
    LlamaLM, onnx as OnnxLM. Everything else is an HfLM. Raises StoreError for an artifact that is damaged, unsafe or of
    an unknown format; TeacherError for a model that cannot be opened; MissingExtra without the library that runs it.
    """
    try:
        form = checked_format(Path(path).expanduser())
    except OSError as error:
        raise TeacherError(f"{str(path)[:200]!r} cannot be opened: {error.strerror}. Is the path right?") from error
    return (
        open_format(form, path, dtype=dtype, trust_remote_code=trust_remote_code)
        if form
        else open_hf(path, kind=kind, dtype=dtype, trust_remote_code=trust_remote_code)
    )


def open_hf(path: str | Path, *, kind: str = "hf", dtype: str = "auto", trust_remote_code: bool = False) -> HfLM:
    """A model through transformers, for what needs its weights or hidden rows. Raises TeacherError."""
    return KINDS[kind].open(path, dtype=dtype, trust_remote_code=trust_remote_code)


def open_format(form: str, folder: str | Path, *, dtype: str = "auto", trust_remote_code: bool = False) -> LocalLM:
    """A folder of a known format, unchecked: `open_lm` is the door for what comes from elsewhere."""
    if form not in RUNNERS:
        return open_hf(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    refuse_lies(folder)
    if dtype != "auto":
        raise TeacherError(f"{folder} is a {form} export, whose precision is fixed; dtype has no effect: leave it out.")
    module, name = RUNNERS[form]
    return getattr(importlib.import_module(module), name).open(Path(folder))
