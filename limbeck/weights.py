"""Weights come from safetensors only: opening a pickle can run code that is hidden in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def pickle_only(folder: Path) -> str | None:
    """A sentence saying so when a folder holds pickled weights and no safetensors; else None."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if not pickles:
        return None
    return (
        f"{folder} holds pickled weights only ({', '.join(pickles[:3])}); opening a pickle can run code, so only "
        "safetensors are allowed. Convert it once, where you trust it: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
    )
