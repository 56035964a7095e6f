"""Attention over a packed row, document by document: exact, and nothing is paid for padding or for a 4-D mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.models import attention

if TYPE_CHECKING:
    from limbeck.models.attention import ScoreRule

NAME = "limbeck_segments"


def register() -> None:
    """Make `attn_implementation="limbeck_segments"` known to transformers. Idempotent."""
    attention.register(NAME, _attend_packed)


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
        mask = attention.seen_mask(length, length, rule.window, q.device) if narrow else None
        outs.append(attention.attend(q, k, v, rule, mask, causal=mask is None))
    return torch.cat(outs, dim=2).transpose(1, 2).to(dtype)
