"""AdamW and learning-rate schedules."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from limbeck.recipe import WSD, Constant, Cosine, Optimizer, Train

if TYPE_CHECKING:
    from torch import nn


def build_optimizer(module: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), fused where the device has it. Vectors (norms, biases) are not decayed."""
    params = [param for param in module.parameters() if param.requires_grad]
    groups = [
        {"params": [param for param in params if param.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(param.device.type in ("cpu", "cuda") and param.is_floating_point() for param in params)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=fused,
    )


def set_rate(optimizer: torch.optim.Optimizer, settings: Train, progress: float) -> None:
    """The learning rate of the next step. `progress` is taken at its middle: neither end of a schedule has rate 0."""
    for group in optimizer.param_groups:
        group["lr"] = settings.optimizer.lr * lr_factor(settings.schedule, min(progress, 1.0))


def lr_factor(schedule: Constant | Cosine | WSD, progress: float) -> float:
    """Multiplier of the peak rate at `progress`, the share of the budget used (0 to 1)."""
    if progress < schedule.warmup:
        return progress / schedule.warmup
    if isinstance(schedule, Constant):
        return 1.0
    if isinstance(schedule, Cosine):
        share = (progress - schedule.warmup) / max(1.0 - schedule.warmup, 1e-9)
        return schedule.floor + (1.0 - schedule.floor) * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))
    if progress < 1.0 - schedule.decay:
        return 1.0
    share = (progress - 1.0 + schedule.decay) / max(schedule.decay, 1e-9)
    return 1.0 - (1.0 - schedule.floor) * min(share, 1.0)
