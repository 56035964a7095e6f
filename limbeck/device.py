"""Which device and which precision, by looking and measuring."""

from __future__ import annotations

import functools
import os
import time

import torch


def bound_kernel_caches() -> None:
    """Keep oneDNN from remembering a kernel for every shape it ever saw: packed rows differ in length at each step, and
    its cache of 1,024 grew by 35 MB a step (measured; no slower without). Read once, at the first product."""
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, "16")


def pick_device() -> torch.device:
    """The accelerator where there is one (under torchrun: this rank's), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@functools.cache
def fastest_dtype(device_type: str) -> torch.dtype:
    """bfloat16 where it is clearly faster than float32 on this machine, else float32.

    Plain bfloat16 is slow on CPUs without the instructions for it, so a small product is timed (a few milliseconds).
    """
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    seconds = {dtype: _time_product(dtype, device_type) for dtype in (torch.float32, torch.bfloat16)}
    return torch.bfloat16 if seconds[torch.bfloat16] * 1.2 < seconds[torch.float32] else torch.float32


def _time_product(dtype: torch.dtype, device_type: str) -> float:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(512, 768, generator=generator).to(device_type, dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, a.T)
        best = min(best, time.perf_counter() - start)
    return best


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` by measurement; else the dtype of that name."""
    if name == "auto":
        return fastest_dtype(device.type)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
