"""GGUF: one file that llama.cpp, Ollama and their relatives run, written with the official `gguf` package.

Weights are quantized one tensor at a time, so that no second copy of the model is held. Kinds of quantization that only
llama.cpp itself can write (K-quants) are made by it from an exact file.
"""

from __future__ import annotations

import shutil
import subprocess
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from limbeck.errors import MissingExtra, TeacherError
from limbeck.export.gguf_families import WeightPart, describe, family_of, parts
from limbeck.export.gguf_tokens import describe_tokens, read_tokens
from limbeck.models.card import LICENCES
from limbeck.models.gguf_import import model_licence
from limbeck.system.refusals import disk_errors

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedModel

    from limbeck.models.hf import HfLM

FILE = "model.gguf"
F16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Quant:
    """`kind` is the type of matrices, `ends` that of embedding and head, `file_type` what the file says of itself
    (llama.cpp's `llama_ftype`). `by_llama`: only llama.cpp's own quantizer writes it."""

    kind: str
    file_type: int
    ends: str = ""
    by_llama: bool = False


QUANTS = {
    "f32": Quant("F32", 0),
    "f16": Quant("F16", 1),
    "bf16": Quant("BF16", 32),
    "q8_0": Quant("Q8_0", 7),
    "q4_0": Quant("Q4_0", 2, ends="Q8_0"),  # four bits in the head cost more quality than they save
    "q4_k_m": Quant("Q4_K_M", 15, by_llama=True),
    "q5_k_m": Quant("Q5_K_M", 17, by_llama=True),
    "q6_k": Quant("Q6_K", 18, by_llama=True),
}
EXACT = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
"""The kind that holds a model's weights as they are."""

MATRICES = ("token_embd", "output")


def write_gguf(folder: Path, lm: HfLM, *, quant: str) -> None:
    """Write `model.gguf`, the tokenizer and a `Modelfile` for Ollama into an existing folder.

    `quant` is one of QUANTS. Vectors stay float32, and so do matrices of rows that no block of 32 fits into stay
    float16. Nothing but one tensor at a time is held beside the model. Raises TeacherError for a family, tokenizer,
    setting or weight that llama.cpp would not reproduce, MissingExtra without the packages, BudgetError when the disk
    is full.
    """
    plan = QUANTS.get(quant)
    if plan is None:
        raise TeacherError(f"a GGUF file cannot have the quantization {quant!r}; allowed are {', '.join(QUANTS)}.")
    if find_spec("gguf") is None:
        raise MissingExtra("gguf", "export", "exporting to GGUF")
    if plan.by_llama:
        _refuse_without_llama(quant)
    with disk_errors(folder / FILE):
        if plan.by_llama:
            _write_by_llama(folder, lm, quant)
        else:
            _write(folder / FILE, lm, plan)
        lm.tokenizer.save_pretrained(folder)
        (folder / "Modelfile").write_text(_modelfile(lm.model), encoding="utf-8")


def _write(path: Path, lm: HfLM, plan: Quant) -> None:
    """The file itself: first all that it says of itself, then tensor by tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gguf's own imports
        from gguf import GGUFWriter

    family = family_of(lm.model)
    tokens = read_tokens(lm.tokenizer, lm.vocab)
    writer = GGUFWriter(None, family.arch)
    try:
        _introduce(writer, lm, plan)
        describe(writer, family, lm.model, lm.vocab)
        describe_tokens(writer, tokens, lm.tokenizer, lm.end_ids)
        todo = list(parts(family, lm.model, lm.vocab))
        for part in todo:
            _announce(writer, part, plan)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for part in todo:
            writer.write_tensor_data(_encode(part, _kind(part, plan)))
    finally:
        writer.close()


def _introduce(writer: GGUFWriter, lm: HfLM, plan: Quant) -> None:
    """Name, size, licence, kind of file."""
    from gguf import GGML_QUANT_VERSION

    writer.add_type("model")
    writer.add_name(Path(lm.name).name or "model")
    writer.add_size_label(_size_label(sum(one.numel() for one in lm.model.parameters())))
    if licence := _licence(lm):
        writer.add_license(licence)
    writer.add_file_type(plan.file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _size_label(num: int) -> str:
    return f"{num / 1e9:.1f}B" if num >= 1e9 else f"{num / 1e6:.0f}M" if num >= 1e6 else f"{num / 1e3:.0f}K"


def _licence(lm: HfLM) -> str | None:
    """What the model's own card states; the hub is not asked."""
    return LICENCES.get(lm.name) or (model_licence(lm.name) if Path(lm.name).exists() else None)


def _modelfile(model: PreTrainedModel) -> str:
    """For Ollama: the file, and how the model's authors would have it sampled. Ollama's own penalty is switched off."""
    config: Any = model.generation_config
    names = {"repeat_penalty": "repetition_penalty", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
    found = {theirs: getattr(config, ours, None) for theirs, ours in names.items()}
    settings = {"repeat_penalty": 1.0, **{name: value for name, value in found.items() if value is not None}}
    return "".join([f"FROM ./{FILE}\n", *(f"PARAMETER {name} {value:g}\n" for name, value in settings.items())])


# ---- tensors ---------------------------------------------------------------------------------------------------------


def _kind(part: WeightPart, plan: Quant) -> str:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if part.tensor.ndim < 2:
        return "F32"
    kind = plan.ends if plan.ends and part.name.split(".")[0] in MATRICES else plan.kind
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return kind if part.tensor.shape[-1] % block == 0 else "F16"


def _announce(writer: GGUFWriter, part: WeightPart, plan: Quant) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[_kind(part, plan)]
    block, size = GGML_QUANT_SIZES[kind]
    num_bytes = part.tensor.numel() // block * size
    writer.add_tensor_info(part.name, tuple(part.tensor.shape), np.dtype(np.float32), num_bytes, raw_dtype=kind)


def _encode(part: WeightPart, kind: str) -> np.ndarray:
    from gguf import GGMLQuantizationType, quants

    values = part.values()
    if kind == "F16" and (largest := float(np.abs(values).max(initial=0.0))) > F16_MAX:
        raise TeacherError(
            f"the tensor {part.name} holds {largest:.3g}, and 16-bit floats end at {F16_MAX:.0f}. Choose bf16."
        )
    return quants.quantize(values, GGMLQuantizationType[kind])


# ---- what only llama.cpp can write -----------------------------------------------------------------------------------


def _refuse_without_llama(quant: str) -> None:
    if find_spec("cyllama") is None and shutil.which("llama-quantize") is None:
        raise MissingExtra("cyllama", "llamacpp", f"quant={quant} (or llama.cpp's own llama-quantize on PATH)")


def _write_by_llama(folder: Path, lm: HfLM, quant: str) -> None:
    """Through a file that holds the weights as they are, which llama.cpp quantizes."""
    exact, target = folder / f".exact-{FILE}", folder / FILE
    try:
        _write(exact, lm, QUANTS[EXACT.get(lm.model.dtype, "f32")])
        if find_spec("cyllama"):
            _quantize_here(exact, target, QUANTS[quant].file_type)
        else:
            _quantize_there(exact, target, quant)
    finally:
        exact.unlink(missing_ok=True)


def _quantize_here(exact: Path, target: Path, file_type: int) -> None:
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    settings = llama_cpp.LlamaModelQuantizeParams()
    settings.ftype = file_type
    settings.nthread = torch.get_num_threads()
    try:
        llama_cpp.model_quantize(str(exact), str(target), settings)
    except RuntimeError as error:
        raise TeacherError(f"llama.cpp could not quantize the model: {error}. Is the disk full?") from error


def _quantize_there(exact: Path, target: Path, quant: str) -> None:
    command = ["llama-quantize", str(exact), str(target), quant.upper(), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise TeacherError(f"llama-quantize failed ({done.returncode}): {done.stderr.strip()[-300:]}")
