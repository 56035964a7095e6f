"""Quantization-aware distillation: the student learns with the very weights that its export will store.

A weight is a point of R x D space; an export stores the nearest point of a grid (to its own idea of near). Under
quantization-aware training (LLM-QAT, arXiv 2305.17888; BitDistiller, arXiv 2402.10631) every product sees the grid
point, and the gradient on it is taken for the gradient on the weight itself (straight-through, arXiv 1308.3432). The
optimizer moves float32 master weights, which only checkpoints hold; what is saved are the grid points, in float32, and
they are fixed points: quantizing them again gives the same bits.

The grids are those of GGUF (llama.cpp), along each row in blocks of 32, bit for bit what `gguf.quants` gives:

    q4_0  d = m / -8 with m the value of largest magnitude; codes 0 .. 15 stand for -8 d .. 7 d
    q8_0  d = max |w| / 127; codes -127 .. 127
    f16   rows that no block fits into

d is kept in float16. Dimension key: R rows, D columns, b blocks, 32 their length.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.models.hf import head_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from limbeck.recipe import Qad

BLOCK = 32
CHUNK = 2**16  # elements that are rounded at a time on a CPU: what is made on the way stays in the cache
ENDS = {"q4_0": "q8_0", "q8_0": "q8_0"}
"""The grid of embedding and head: four bits there cost more quality than they save, and the GGUF export knows it."""


# ---- grids -----------------------------------------------------------------------------------------------------------


def round_to_grid(weight: Tensor, grid: str) -> Tensor:
    """The weight as an export of that kind stores it, with its shape and dtype; blocks run along the last dimension.

    `grid` is q4_0, q8_0 or f16. Blocks whose scale overflows float16 become non-finite, as they do in the export. Not
    differentiable: see `fake_quantize`. Raises ValueError where rows are no whole blocks.
    """
    if grid == "f16":
        return weight.half().to(weight.dtype)
    if weight.shape[-1] % BLOCK:
        raise ValueError(f"rows of {weight.shape[-1]} are no whole blocks of {BLOCK}")
    blocks_b32 = weight.detach().reshape(-1, BLOCK)
    out_b32 = torch.empty_like(blocks_b32)
    step = CHUNK // BLOCK if weight.device.type == "cpu" else max(len(blocks_b32), 1)
    for start in range(0, len(blocks_b32), step):
        part = slice(start, start + step)
        out_b32[part] = _GRIDS[grid](blocks_b32[part].float())
    return out_b32.view(weight.shape)


def _q4_0(w_b32: Tensor) -> Tensor:
    d_b1 = _peak(w_b32) / -8
    scale_b1 = d_b1.half().float()
    # Where the scale is lost, all is 0 whatever the codes are, and 1 / d may be infinite.
    inverse_b1 = torch.where(scale_b1 == 0, 0.0, 1 / d_b1)
    # floor is trunc here (nothing is below 0), and takes a fiftieth of its time.
    codes_b32 = (w_b32 * inverse_b1).add_(8.5).floor_().clamp_(max=15)
    return codes_b32.sub_(8).mul_(scale_b1)


def _peak(w_b32: Tensor) -> Tensor:
    """Of each block the value of largest magnitude; of several, the first."""
    high_b1, low_b1 = w_b32.amax(-1, keepdim=True), w_b32.amin(-1, keepdim=True)
    peak_b1 = torch.where(high_b1 > -low_b1, high_b1, low_b1)
    tied_b = ((high_b1 == -low_b1) & (high_b1 > 0))[:, 0]
    if tied_b.any():  # rare, but usual in weights that were 8 or 16 bits once
        tied_n32 = w_b32[tied_b]
        peak_b1[tied_b] = tied_n32.gather(-1, tied_n32.abs().argmax(-1, keepdim=True))
    return peak_b1


def _q8_0(w_b32: Tensor) -> Tensor:
    d_b1 = torch.maximum(w_b32.amax(-1, keepdim=True), -w_b32.amin(-1, keepdim=True)) / 127
    scale_b1 = d_b1.half().float()
    inverse_b1 = torch.where(scale_b1 == 0, 0.0, 1 / d_b1)
    x_b32 = w_b32 * inverse_b1
    # Halves go away from 0, which torch.round does not do; and a sum with 0.5 would be rounded itself.
    size_b32 = x_b32.abs()
    floor_b32 = size_b32.floor()
    up_b32 = size_b32.sub_(floor_b32).mul_(2).floor_()
    return floor_b32.add_(up_b32).copysign_(x_b32).mul_(scale_b1)


_GRIDS: dict[str, Callable[[Tensor], Tensor]] = {"q4_0": _q4_0, "q8_0": _q8_0}


@torch.library.custom_op("limbeck::on_grid", mutates_args=())
def _on_grid(weight: Tensor, grid: str) -> Tensor:
    """An operator of its own, so that a compiler does not unroll the chunks."""
    return round_to_grid(weight, grid)


@_on_grid.register_fake
def _(weight: Tensor, grid: str) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


_on_grid.register_autograd(lambda _ctx, grad: (grad, None))


def fake_quantize(weight: Tensor, grid: str) -> Tensor:
    """`round_to_grid` with the straight-through gradient: that on the result is taken for that on the weight."""
    return _on_grid(weight, grid)


# ---- models ----------------------------------------------------------------------------------------------------------


class QuantizedLayer(NamedTuple):
    """A module whose `weight` the export stores on a grid."""

    name: str
    module: nn.Module
    grid: str


def stored_weights(model: PreTrainedModel, quant: str) -> list[QuantizedLayer]:
    """What an export of that kind quantizes: linear layers, token embedding and head; a tied pair is there twice.
    Vectors stay as they are.

    Raises RecipeError where the model keeps matrices elsewhere (mixtures of experts, GPT-2): their export is another.
    """
    ends = {id(model.get_input_embeddings()), id(head_layer(model))}
    found = []
    for name, module in model.named_modules():
        if id(module) in ends or isinstance(module, nn.Linear):
            grid = ENDS[quant] if id(module) in ends else quant
            width = module.weight.shape[-1]  # type: ignore[union-attr]
            found.append(QuantizedLayer(name, module, "f16" if width % BLOCK else grid))  # type: ignore[operator]
    known = {id(stored.module.weight) for stored in found}
    others = [name for name, param in model.named_parameters() if param.ndim > 1 and id(param) not in known]
    if others:
        raise RecipeError(
            f"train.qad is {quant}, but the student ({model.config.model_type}) keeps matrices outside of its linear "
            f"layers: {', '.join(others[:3])}. Allowed are Llama, Mistral, Qwen and Gemma and their like; take another "
            "student, or remove train.qad."
        )
    return found


def add_fake_quant(model: PreTrainedModel, quant: str) -> str:
    """From now on every linear layer and embedding of the model computes with its weight on the grid; weights and
    their names stay as they are. Returns the grid of the head, whose weight the fused loss takes by itself.

    Raises RecipeError as `stored_weights`.
    """
    grids = {}
    for stored in stored_weights(model, quant):
        module = stored.module
        work = _linear if type(module) is nn.Linear else _embedding if type(module) is nn.Embedding else _any
        module.forward = functools.partial(work, module, stored.grid)  # type: ignore[method-assign]
        grids[id(module)] = stored.grid
    return grids[id(head_layer(model))]


def _linear(module: nn.Linear, grid: str, x: Tensor) -> Tensor:
    return nn.functional.linear(x, fake_quantize(module.weight, grid), module.bias)


def _embedding(module: nn.Embedding, grid: str, ids: Tensor) -> Tensor:
    """Only the rows that are looked up are rounded."""
    rows = nn.functional.embedding(
        ids, module.weight, module.padding_idx, module.max_norm, module.norm_type, module.scale_grad_by_freq
    )
    return fake_quantize(rows, grid)


def _any(module: nn.Module, grid: str, *args: object) -> Tensor:
    """Families that scale their embeddings have a class of their own: it computes with another weight for a moment."""
    weight = module._parameters["weight"]
    assert weight is not None
    module._parameters["weight"] = fake_quantize(weight, grid)  # type: ignore[assignment]
    try:
        return type(module).forward(module, *args)
    finally:
        module._parameters["weight"] = weight


def remove_fake_quant(model: PreTrainedModel) -> None:
    """Undo `add_fake_quant`: the model computes with its weights again."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, functools.partial) and forward.func in (_linear, _embedding, _any):
            del module.forward


@torch.no_grad()
def bake(model: PreTrainedModel, settings: Qad) -> None:
    """Make the model an ordinary one whose weights are the grid points that it was trained with."""
    remove_fake_quant(model)
    done = set()
    for stored in stored_weights(model, settings.quant):
        weight = stored.module.weight
        assert isinstance(weight, Tensor)
        if id(weight) not in done:
            weight.copy_(round_to_grid(weight, stored.grid))
            done.add(id(weight))
