"""The attention interface of transformers, said once: what a registered function receives, sliding windows, soft caps.

`B` sequences, `T` new tokens, `L` tokens that they may see, `d` width of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

if TYPE_CHECKING:
    from collections.abc import Callable

    Attend = Callable[[nn.Module, Tensor, Tensor, Tensor, "ScoreRule", dict[str, Any]], Tensor]


class ScoreRule(NamedTuple):
    """How a layer makes scores: its scale (None: 1 / sqrt(d)), soft cap, sliding window, and dropout of weights."""

    scale: float | None
    softcap: float | None
    window: int | None
    dropout: float


def register(
    name: str,
    attend: Callable[[nn.Module, Tensor, Tensor, Tensor, ScoreRule, dict[str, Any]], Tensor],
) -> None:
    """Make `attn_implementation=name` known to transformers. Idempotent.

    `attend(layer, query, key, value, rule, passed)` takes query [B, heads, T, d], key and value [B, kv heads, T, d] and
    whatever else was passed to the model, and returns [B, T, heads, d]. No mask is ever built for it: what a token may
    see is passed as well. A window that a family would make as a mask is in the rule like any other. A family that
    reads in chunks (Llama 4) raises ValueError.
    """

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        softcap: float | None = None,
        sliding_window: int | None = None,
        **passed: object,
    ) -> tuple[Tensor, None]:  # transformers dictates these parameters
        rule = ScoreRule(scaling, softcap, sliding_window or _window_of(attention_mask), dropout)
        # transformers' own functions return contiguous tensors, and some families take a view of what they get
        return attend(module, query, key, value, rule, passed).contiguous(), None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _no_mask)


def _no_mask(*, local_size: int | None = None, config: Any = None, **_passed: object) -> Tensor | None:
    """In place of a mask: the window that it would make, where it would make one. Some families (Mixtral's kin,
    Qwen2-MoE) have their window in the mask alone and tell their attention nothing of it. The number is the size of an
    empty tensor: it takes no memory, is read without waiting for a device, and survives slicing."""
    if local_size is None:
        return None
    if local_size == getattr(config, "attention_chunk_size", None) != getattr(config, "sliding_window", None):
        raise ValueError("its attention reads in chunks")
    return torch.empty(1, 1, local_size, 0)


def _window_of(mask: Tensor | None) -> int | None:
    """What `_no_mask` wrote down."""
    return mask.shape[2] if mask is not None and mask.ndim == 4 and not mask.shape[3] else None


def seen_mask(num_new: int, num_all: int, window: int | None, device: torch.device) -> Tensor:
    """bool [T, L]: True where the i-th of the last `num_new` of `num_all` tokens may see token j: itself, what is
    before it, and no further back than the window."""
    at_L = torch.arange(num_all, device=device)
    own_T1 = at_L[num_all - num_new :, None]
    seen_TL = at_L <= own_T1
    return seen_TL if window is None else seen_TL & (at_L > own_T1 - window)


def attend(q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    """q [B, heads, T, d] against k and v [B, kv heads, L, d]. `mask` is True where a token is seen, or added to scores.
    `causal` is for T = L without a mask. Windows are the caller's: they are part of the mask.

    Soft-capped scores are c * tanh(s / c) (Gemma 2, arXiv 2408.00118, section 2).
    """
    grouped = q.shape[1] != k.shape[1]
    if rule.softcap is None:
        return nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=rule.dropout, scale=rule.scale, is_causal=causal, enable_gqa=grouped
        )
    if causal:
        mask = seen_mask(q.shape[2], k.shape[2], None, q.device)
    if grouped:
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
    scores = torch.matmul(q, k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if rule.scale is None else rule.scale)
    scores = (torch.tanh(scores / rule.softcap) * rule.softcap).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, -1).to(q.dtype)
    return torch.matmul(nn.functional.dropout(weights, rule.dropout, rule.dropout > 0), v)


# ---- packed rows -----------------------------------------------------------------------------------------------------

PACKED = "limbeck_segments"


def register_packed() -> None:
    """Make `attn_implementation="limbeck_segments"` known to transformers: attention over a packed row, document by
    document. It is exact, and nothing is paid for padding or for a 4-D mask. Idempotent."""
    register(PACKED, _attend_packed)


def _attend_packed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule, passed: dict[str, Any]
) -> Tensor:
    """Causal attention within each document. query [1, heads, T, d], key and value [1, kv heads, T, d].

    Returns [1, T, heads, d]. Sliding windows, grouped heads and soft-capped scores are honoured.
    Raises ValueError without `segment_lengths`: a model that drops them would attend across documents.
    """
    lengths = passed.get("segment_lengths")
    if lengths is None:
        raise ValueError("packed attention was called without document lengths")
    dtype = query.dtype
    if query.device.type == "cpu" and query.requires_grad:
        # The CPU kernel's backward pass is twice as fast in float32 as in bfloat16 (and more exact).
        query, key, value = query.float(), key.float(), value.float()
    outs = []
    for q, k, v in zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True):
        length = q.shape[2]
        narrow = rule.window is not None and rule.window < length
        mask = seen_mask(length, length, rule.window, q.device) if narrow else None
        outs.append(attend(q, k, v, rule, mask, causal=mask is None))
    return torch.cat(outs, dim=2).transpose(1, 2).to(dtype)
