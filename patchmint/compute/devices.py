"""Devices: which one runs the models, in which number format, and arrays on their way to it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from patchmint.errors import ConfigError
from patchmint.types import Precision

Module = TypeVar("Module", bound=nn.Module)


def pick_device(device: str, slot: int = 0) -> str:
    """Resolve a device setting.

    Args:
        device: "cpu", "cuda:N", "cuda", or "auto" = a GPU if there is one.
        slot: which of several workers on this machine; "cuda" and "auto" spread them over the GPUs.

    Raises:
        ConfigError: there is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.device_count() > 1:
        device = f"cuda:{slot % torch.cuda.device_count()}"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r} can't be used; use cpu, cuda, cuda:N, or auto")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {device!r} can't be used here: {str(error).splitlines()[0]}; use cpu, or auto"
        ) from error
    return device


def machine_device(device: str) -> str:
    """A GPU by its number on the machine, where CUDA_VISIBLE_DEVICES gives this process other numbers; else as it is.

    Args:
        device: "cpu", "cuda" or "cuda:N".
    """
    kind, _, number = device.partition(":")
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    index = int(number or 0)
    return f"{kind}:{visible[index]}" if kind == "cuda" and index < len(visible) else device


def describe_devices() -> list[str]:
    """The GPUs that torch can use here, a line each: name, memory, whether it computes in bfloat16."""
    lines = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        lines.append(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")
    return lines


def ready_for(device: torch.device, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A picture's pixels as an array of their own, for `to_device`; in any thread.

    For a GPU they lie in pinned memory, so that the thread that asks the models doesn't have to copy them there.
    """
    if device.type != "cuda":
        return pixels.copy()
    pinned: npt.NDArray[np.uint8] = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True).numpy()
    pinned[...] = pixels
    return pinned


def to_device(data: npt.NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """An array, or a tensor on the CPU, as a tensor on a device.

    To a GPU it goes by pinned memory, where it may lie already (`ready_for`), and nobody waits for the copy.
    """
    tensor = torch.from_numpy(data) if isinstance(data, np.ndarray) else data
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def works_in_parts(device: torch.device) -> bool:
    """Whether large work is best cut into parts that stay in a cache; elsewhere each costs the start of kernels."""
    return device.type == "cpu"


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_precision(
    setting: Precision, device: str | torch.device, *, cpu: torch.dtype, gpu: torch.dtype
) -> torch.dtype:
    """What a setting means on a device.

    Args:
        setting: float32, bfloat16, float16, or auto = the fastest format in which this model's answers hold
            (docs/performance.md), if the device has instructions for it, else float32.
        device: where the model is to run.
        cpu: that format on a CPU.
        gpu: and on a GPU.

    Raises:
        ConfigError: float16 on a CPU, where it is slower than float32 and overflows.
    """
    kind = torch.device(device).type
    if setting == "auto":
        best = gpu if kind == "cuda" else cpu
        return torch.float32 if best == torch.bfloat16 and not _has_bfloat16(kind) else best
    if setting == "float16" and kind == "cpu":
        raise ConfigError("precision: float16 is for GPUs; on the CPU use bfloat16, float32 or auto")
    return _DTYPES[setting]


@contextmanager
def computing_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within it products of matrices and convolutions are computed in `dtype`; with float32 nothing changes."""
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


@contextmanager
def computing_fully(device: torch.device) -> Iterator[None]:
    """Within it everything is computed in the format that it comes in: for the sensitive parts of a model."""
    with torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def computing_any_shape_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """As `computing_in`, for inputs of ever new shapes: attention on a GPU isn't cuDNN's, which torch prefers there.

    It makes a plan for each shape, which takes some tenths of a second: more than the images of that shape.
    """
    with computing_in(dtype, device):
        if device.type != "cuda":
            yield
            return
        before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
        torch.backends.cuda.enable_cudnn_sdp(False)
        try:
            yield
        finally:
            torch.backends.cuda.enable_cudnn_sdp(before)


def store_products(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of a module's linear and convolution layers in `dtype`, in place.

    Autocast would cast them anew at each call. What runs outside of `computing_in` must not be among them.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.to(dtype)


def reduced_copy(module: Module, dtype: torch.dtype, device: torch.device) -> Module:
    """A copy with `store_products`, for a model that is also needed as it is; on a CPU, or for float32, no copy."""
    if dtype == torch.float32 or device.type != "cuda":
        return module
    reduced = copy.deepcopy(module)
    store_products(reduced, dtype)
    return reduced


def _has_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Elsewhere bfloat16 is emulated, and slower than float32. torch has no public name for these questions yet.
    return kind == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
