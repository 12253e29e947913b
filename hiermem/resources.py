"""Memory and time of this process and its GPU."""

import ctypes
import resource
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_bytes(device: "torch.device") -> dict[str, int]:
    """Largest memory so far, in bytes, of this process and of a GPU, by its name in results."""
    peak = {"peak_rss_bytes": peak_rss_bytes()}
    if device.type == "cuda":
        import torch

        peak["peak_cuda_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak


def used_bytes(device: "torch.device") -> int:
    """Memory in use now: of the GPU, or resident of this process (Linux), in bytes."""
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_allocated(device)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def give_back_memory() -> None:
    """Give the free memory between what this process still uses back to the system (glibc alone keeps it)."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def now(device: "torch.device") -> float:
    """Seconds on a clock, once the device has finished its work."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()
