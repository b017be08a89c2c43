"""The memory of a process: how much it took, what it keeps of it, and whether it ran out."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch

_ALLOCATION = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
# The second is older.

_STATUS = Path("/proc/self/status")

_ALLOCATION_FAILED = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate")
# How libraries below torch say that memory ran out; torch passes it on as a plain RuntimeError.

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# glibc's malloc.h
_LARGEST_KEPT = (2**30, 2**25)
# Older ones take no more than the second.
_MOST_KEPT = 2**31 - 1


_KERNELS_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "512", "LRU_CACHE_CAPACITY": "1"}
# oneDNN's own cache, and that of torch's layer above it (ideep), which only repeats it. Both keep 1024 unless told.


def keep_freed_memory() -> None:
    """Let this process keep what tensors free, for the next ones; for workers, which do the same again and again.

    glibc hands large blocks back to the system, which must clear each page of the next one: activations of 32 MB were
    filled ten times as fast without that. Does nothing where the C library isn't glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    # Keeping memory without it would be worse than nothing: either setting ends glibc's own adapting of the other.
    if any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT):
        mallopt(_TRIM_THRESHOLD, _MOST_KEPT)


def keep_few_kernels() -> None:
    """Bound what this process keeps of the programs that torch's CPU library writes, one for each shape of a product.

    Images, texts and boxes come in ever new shapes, and a kept program takes up to 0.3 MB: without this a worker's
    memory grew for thousands of samples. To be called before the first product; what the environment says stands.
    """
    for name, count in _KERNELS_KEPT.items():
        os.environ.setdefault(name, count)


def let_memory_grow() -> None:
    """Have torch grow its blocks of a GPU's memory in place, rather than look for ever new ones as shapes change.

    To be called before anything is asked of a GPU; what the environment says stands.
    """
    if not any(name in os.environ for name in _ALLOCATION):
        os.environ[_ALLOCATION[0]] = "expandable_segments:True"


def ran_out(error: Exception) -> bool:
    """Whether an error means that there was no memory left, on the device or off it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _ALLOCATION_FAILED)


_NUMBERS_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}


def at_once(numbers: int, device: torch.device) -> int:
    """How many things pass a network together, at least one.

    A CPU is quickest where they stay near its cache (measured with SAM: one picture and four boxes of the official
    ViT-B); a GPU needs more at a time.

    Args:
        numbers: of one thing in the tensor that runs through the network.
        device: where it runs.
    """
    return max(1, _NUMBERS_AT_ONCE["cuda" if device.type == "cuda" else "cpu"] // numbers)


def even_parts(count: int, most: int) -> Iterator[slice]:
    """Cut `count` things into as few parts of at most `most` as there can be, all of like size.

    Full ones and a rest would leave a device with little to do in the last. At least one of them at a time.
    """
    parts = -(-count // max(1, most))
    bounds = [-(-count * part // parts) for part in range(parts + 1)] if parts else []
    return (slice(start, end) for start, end in pairwise(bounds))


def peak_memory() -> int:
    """The most memory that this process has had resident, in bytes."""
    if _STATUS.exists():  # Linux; getrusage there counts what the parent had before this program was started
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_peak(device: str) -> int:
    """The most of a GPU's memory that this process's tensors have taken, in bytes; 0 for "cpu"."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0
