"""Which device and which precision, by looking and measuring."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import time

import psutil
import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def prepare_cpu() -> None:
    """What makes a long job on a CPU steady and fast, once per process. A user's own environment variables win.

    oneDNN is kept from remembering a kernel for every shape it ever saw: packed rows differ in length at each step, and
    its cache of 1,024 grew by 35 MB a step. 64 hold what one step needs; with 16, attention made its kernels anew all
    the time and a step took a quarter longer (measured). Read once, at the first product.

    glibc is told to keep the memory that tensors free instead of returning it to the system after each: a training step
    makes gigabytes of temporaries, and faulting their pages in anew took 13-16 % of it (measured; same peak memory).
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def pick_device() -> torch.device:
    """The accelerator where there is one (under torchrun: this rank's), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def total_memory() -> int:
    """Bytes of the accelerator where there is one, else of this machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(pick_device()).total_memory
    return psutil.virtual_memory().total


def taken_memory() -> int:
    """Bytes that this process takes of it now."""
    return torch.cuda.memory_allocated(pick_device()) if torch.cuda.is_available() else resident_memory()


def resident_memory() -> int:
    """Bytes that this process takes of the machine's memory, GPU or not."""
    return psutil.Process().memory_info().rss


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
