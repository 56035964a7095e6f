"""Rotary positions that depend on the longest sequence of a forward: which models have them, and how documents in one
packed row are turned as each would be alone.

Phi-3's longrope has one set of frequencies for short sequences and one for long ones; dynamic NTK scales them with the
length. transformers looks at the highest position of the whole forward.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PretrainedConfig, PreTrainedModel

LENGTH_BOUND = "original_max_position_embeddings"


def length_bound(config: PretrainedConfig) -> int | None:
    """Tokens up to which a position means the same beside any other sequence; None where it always does."""
    text: Any = config.get_text_config()
    bounds = [kind.get(LENGTH_BOUND) or text.max_position_embeddings for kind in rope_kinds(text) if _by_length(kind)]
    return min(bounds, default=None)


def rope_kinds(config: Any) -> list[dict[str, Any]]:
    """The settings of rotary positions: those of all layers, or of each type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]


def _by_length(kind: dict[str, Any]) -> bool:
    return kind.get("rope_type") == "longrope" or "dynamic" in str(kind.get("rope_type"))


def turned_anew(model: PreTrainedModel, before: int, after: int) -> bool:
    """Whether a sequence that grows from so many tokens to so many is turned by other frequencies than it was: once, at
    the bound, or with every token beyond it."""
    bound = length_bound(model.config)
    if bound is None or after <= bound:
        return False
    kinds = rope_kinds(model.config.get_text_config())
    return before <= bound or any("dynamic" in str(kind.get("rope_type")) for kind in kinds)


ORIGINAL = "original_inv_freq"


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """What makes the cosines and sines of positions."""
    return [module for module in model.modules() if _prefixes(module)]


def _prefixes(module: nn.Module) -> list[str]:
    """ "" or, in families that turn layers of several types differently, what stands before the names of each."""
    names = [*vars(module), *dict(module.named_buffers(recurse=False))]
    return [name.removesuffix(ORIGINAL) for name in names if name.endswith(ORIGINAL)]


def forget_length(module: Any) -> None:
    """Frequencies that grew with a long sequence are those of short ones again."""
    for prefix in _prefixes(module):
        inv_freq = getattr(module, f"{prefix}inv_freq")
        setattr(module, f"{prefix}inv_freq", getattr(module, prefix + ORIGINAL).to(inv_freq.device, copy=True))
        if hasattr(module, f"{prefix}max_seq_len_cached"):
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


@contextlib.contextmanager
def turned_alone(model: PreTrainedModel, lengths: Sequence[int]) -> Iterator[None]:
    """Inside, a packed row of documents of these lengths is turned document by document."""
    modules: list[Any] = rotary_modules(model) if length_bound(model.config) is not None else []
    before = [module.forward for module in modules]
    try:
        for module, forward in zip(modules, before, strict=True):
            module.forward = _each(module, forward, lengths)
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            module.forward = forward


def _each(module: nn.Module, forward: Callable[..., Any], lengths: Sequence[int]) -> Callable[..., Any]:
    def turn(x: Tensor, position_ids: Tensor, *more: Any, **named: Any) -> Any:
        parts = []
        for positions in position_ids.split(list(lengths), dim=-1):
            forget_length(module)
            parts.append(forward(x, positions, *more, **named))
        if isinstance(parts[0], Tensor):
            return torch.cat(parts, dim=-2)
        return tuple(torch.cat(tensors, dim=-2) for tensors in zip(*parts, strict=True))

    return turn
