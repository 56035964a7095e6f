"""Artifacts: a folder that plain `transformers` opens, with a card, a machine-readable copy of it, and a manifest.

A folder is written whole or not at all, and says itself whether it is still as it was written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from limbeck.errors import TeacherError
from limbeck.models.artifact import DTYPES, REST, _save_model, _set_dtype
from limbeck.models.int8 import num_quantized, prepare_torchao
from limbeck.system.refusals import disk_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.models.hf import HfLM


def write_safetensors(folder: Path, lm: HfLM, *, quant: str) -> None:
    """Write config, safetensors and generation config of a model into an existing folder; the model is not changed.

    `quant` is a dtype of DTYPES, or int8: each linear layer's weights as eight bits and one scale per row of outputs
    (torchao's Int8WeightOnlyConfig), everything else, the head included, in bfloat16. Raises
    TeacherError for weights that the type cannot hold, MissingExtra without torchao, BudgetError when the disk is full.
    """
    with disk_errors(folder):
        if quant == "int8":
            _write_int8(folder, lm.model)
        else:
            _refuse_overflow(lm.model, DTYPES[quant])
            _save_model(folder, lm.model, DTYPES[quant])


def _refuse_overflow(model: PreTrainedModel, dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.abs().max() > most:
            raise TeacherError(
                f"{name} holds {float(tensor.abs().max()):.3g}, and {str(dtype).removeprefix('torch.')} ends at "
                f"{most:.3g}. Export to bfloat16 or float32."
            )


def _write_int8(folder: Path, model: PreTrainedModel) -> None:
    """By way of a plain copy on disk, since transformers quantizes while it reads."""
    prepare_torchao("an int8 export")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    copy = folder / ".plain"
    _save_model(copy, model, None)
    how = TorchAoConfig(Int8WeightOnlyConfig())
    made = type(model).from_pretrained(copy, dtype=model.dtype, quantization_config=how, use_safetensors=True)
    if not num_quantized(made):
        raise TeacherError(
            f"the family {model.config.model_type!r} has no linear layer that torchao quantizes; an int8 export would "
            "be no smaller. Export to bfloat16, or to gguf or onnx with eight bits."
        )
    for parameter in made.parameters():
        if type(parameter) is torch.nn.Parameter and parameter.is_floating_point():
            parameter.data = parameter.data.to(REST)
    made.generation_config = model.generation_config
    _save_model(folder, made, None)
    _set_dtype(folder / "config.json", REST)
    for file in folder.glob("*.safetensors"):
        _sort_metadata(file)
    shutil.rmtree(copy)


def _sort_metadata(file: Path) -> None:
    """The same model gives the same bytes: safetensors writes what torchao says of each weight in a random order."""
    with file.open("r+b") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            handle.seek(8)
            handle.write(text.ljust(length))
