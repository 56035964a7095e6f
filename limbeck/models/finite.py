"""Numbers that are none: what to say of NaN and infinity in a model, which of its weights have them, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def advice(dtype: torch.dtype) -> str:
    """What to do about a model that computes NaN or infinity in this type."""
    damaged = "its weights are damaged: take them anew from where they were published"
    if dtype == torch.float32:
        return f"It runs in float32, so {damaged}."
    others = "float32" if dtype == torch.bfloat16 else "bfloat16 or float32"
    name = str(dtype).removeprefix("torch.")
    return f"A value may be too large for {name}: set teacher.dtype to {others}. If float32 has them too, {damaged}."


def wrong_weights(model: torch.nn.Module) -> Iterator[str]:
    """Weights that hold NaN or infinity: their names, and the first such row."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and not bool(torch.stack(tensor.aminmax()).isfinite().all()):
            first = (~tensor.isfinite()).nonzero()[0].tolist()
            yield f"{name} (row {first[0] if first else 0})"
