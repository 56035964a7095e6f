"""Weights of eight bits through torchao, which transformers opens and runs: the one door to that package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limbeck.errors import MissingExtra
from limbeck.system.sealed import read_json_or


def prepare_torchao(purpose: str) -> None:
    """Raise MissingExtra where torchao is not installed. transformers imports it by itself."""
    if find_spec("torchao") is None:
        raise MissingExtra("torchao", "export", purpose)


def prepare_for(folder: str) -> None:
    """Make ready for the quantized weights of a folder, where it says that it has any. Raises MissingExtra."""
    try:
        config = read_json_or(Path(folder) / "config.json", dict[str, Any]())
        method = config["quantization_config"]["quant_method"]
    except (KeyError, TypeError):
        return
    if method == "torchao":
        prepare_torchao(f"opening {folder}")


def is_quantized(tensor: Tensor) -> bool:
    """Whether a tensor is one of torchao's."""
    return type(tensor).__module__.startswith("torchao.")


def plain(tensor: Tensor) -> Tensor:
    """Its values as an ordinary tensor."""
    return tensor.dequantize() if is_quantized(tensor) else tensor


def num_quantized(model: nn.Module) -> int:
    """How many weights of a model are quantized."""
    return sum(is_quantized(tensor) for tensor in model.state_dict().values())
