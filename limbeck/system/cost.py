"""What a piece of work cost: wall-clock seconds, peak memory, disk."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Cost:
    """Filled in when the `measure` block ends. `peak_bytes`: resident memory, or the accelerator's if there is one."""

    seconds: float = 0.0
    peak_bytes: int = 0


@contextlib.contextmanager
def measure() -> Iterator[Cost]:
    """Time a block and find its peak memory. On Linux the process's high-water mark is reset first; elsewhere the peak
    since the process began is reported."""
    cost = Cost()
    _reset_peak()
    begun = time.monotonic()
    try:
        yield cost
    finally:
        cost.seconds = time.monotonic() - begun
        cost.peak_bytes = _peak()


def _reset_peak() -> None:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only: give freed memory back, so that it is not counted
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def disk_bytes(*paths: Path) -> int:
    """Bytes of files and folders that exist."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files)
