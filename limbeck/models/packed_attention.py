"""Attention over a packed row, document by document: exact, and nothing is paid for padding or for a 4-D mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "limbeck_segments"


def register() -> None:
    """Make `attn_implementation="limbeck_segments"` known to transformers. Idempotent."""
    AttentionInterface.register(NAME, segment_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*_args: object, **_kwargs: object) -> None:
    """Boundaries travel as lengths, so no mask is ever built."""
    return None


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    segment_lengths: tuple[int, ...] | None = None,
    **_kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention within each document. query [1, heads, T, d], key and value [1, kv heads, T, d].

    Returns [1, T, heads, d]. Sliding windows, grouped heads and soft-capped scores are honoured.
    Raises ValueError without `segment_lengths`: a model that drops them would attend across documents.
    """
    if segment_lengths is None:
        raise ValueError("packed attention was called without document lengths")
    dtype = query.dtype
    if query.device.type == "cpu" and query.requires_grad:
        # The CPU kernel's backward pass is twice as fast in float32 as in bfloat16 (and more exact).
        query, key, value = query.float(), key.float(), value.float()
    outs = []
    parts = (tensor.split(segment_lengths, dim=2) for tensor in (query, key, value))
    for q, k, v in zip(*parts, strict=True):
        length = q.shape[2]
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        if softcap is not None:
            outs.append(_capped(q, k, v, scaling, softcap, window, dropout))
            continue
        mask = None if window is None else _window_mask(length, window, q.device)
        outs.append(
            nn.functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
                is_causal=mask is None,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )
    return torch.cat(outs, dim=2).transpose(1, 2).to(dtype), None


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """True where row i may see column j: i - window < j <= i."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - window)


def _capped(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, softcap: float, window: int | None, dropout: float
) -> Tensor:
    """Attention with scores c * tanh(s / c) (Gemma 2, arXiv 2408.00118, section 2)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.matmul(q, k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    mask = _window_mask(q.shape[2], window or q.shape[2], q.device)
    weights = torch.softmax(scores.float().masked_fill(~mask, float("-inf")), -1).to(q.dtype)
    return torch.matmul(nn.functional.dropout(weights, dropout, dropout > 0), v)
