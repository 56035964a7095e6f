"""What a folder of weights is, looked at before anything in it is opened: its format, and that nothing hides in it.

Weights come from safetensors, GGUF and ONNX files only: opening a pickle can run code that is hidden in it.
"""

from __future__ import annotations

import json
from pathlib import Path

from limbeck.errors import StoreError
from limbeck.system.atomic import verify_dir

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
CARD_FILE = "limbeck.json"
FORMATS = {"safetensors": ".safetensors", "gguf": ".gguf", "onnx": ".onnx"}
"""Formats of artifacts, and how the names of their files end."""

ADAPTER = "adapter_config.json"


def pickle_only(folder: Path) -> str | None:
    """A sentence saying so when a folder holds pickled weights and no safetensors; else None."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    pickles = _pickles(folder)
    if not pickles:
        return None
    return (
        f"{folder} holds pickled weights only ({', '.join(pickles[:3])}); opening a pickle can run code, so only "
        "safetensors are allowed. Convert it once, where you trust it: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
    )


def _pickles(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for pattern in PICKLES for file in folder.rglob(pattern))


def adapter_only(folder: Path) -> str | None:
    """A sentence saying so when a folder is a PEFT adapter, which is no model of its own; else None."""
    if not (folder / ADAPTER).is_file():
        return None
    return (
        f"{folder} is a PEFT adapter ({ADAPTER}), not a model. Merge it into its base model first: "
        "PeftModel.from_pretrained(BASE, FOLDER).merge_and_unload().save_pretrained(NEW_FOLDER), and the tokenizer "
        "beside it."
    )


POINTER = b"version https://git-lfs.github.com/"


def pointer_file(folder: Path) -> str | None:
    """A sentence saying so when a file of weights is only git-lfs's pointer to one; else None."""
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with file.open("rb") as handle:
            if handle.read(len(POINTER)) == POINTER:
                return (
                    f"{file} is a pointer of git-lfs, not the weights themselves. Fetch them: git lfs pull in that "
                    "folder, or hf download."
                )
    return None


def format_of(folder: Path) -> str | None:
    """The format that an artifact's card names; None for a folder that is no artifact. Nothing else is looked at.

    Raises StoreError for a card that cannot be read or names a format that is none.
    """
    card = folder / CARD_FILE
    if not card.is_file():
        return None
    try:
        named = json.loads(card.read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(f"{card} is not readable ({error}). Write the artifact again, or copy it anew.") from error
    if not isinstance(named, str) or named not in FORMATS:
        raise StoreError(
            f"{card} names the format {str(named)[:40]!r}; this Limbeck opens {', '.join(FORMATS)}. Update Limbeck, or "
            "take another export of this model."
        )
    return named


def checked_format(folder: Path) -> str | None:
    """As `format_of`, after checking that an artifact is as it was written: every file against the manifest, no file
    beside them, no pickle. Reads all of it. Raises StoreError saying what is wrong."""
    named = format_of(folder)
    if named is None:
        return None
    pickles = _pickles(folder)
    if pickles:
        raise StoreError(
            f"{folder} holds a pickle ({pickles[0]}), and opening one can run code. No artifact has any: remove the "
            "folder, and get it from someone you trust."
        )
    if problem := verify_dir(folder, alone=True):
        raise StoreError(f"{problem}. Write the artifact again, or copy it anew.")
    if not any(folder.glob(f"*{FORMATS[named]}")):
        raise StoreError(f"{folder} has no {FORMATS[named]} file, although its card says {named}. Copy it anew.")
    return named


def weight_bytes(folder: Path) -> int:
    """Bytes of the files that hold weights, data beside an ONNX graph included."""
    ends = tuple(FORMATS.values())
    files = [file for file in folder.iterdir() if file.name.endswith(ends) or ".onnx" in file.name]
    return sum(file.stat().st_size for file in files)
