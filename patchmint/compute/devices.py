"""Devices: which one runs the models, and arrays on their way to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from patchmint.errors import ConfigError


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


def describe_devices() -> list[str]:
    """The GPUs that torch can use here, a line each: name, memory, whether it computes in bfloat16."""
    lines = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        lines.append(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")
    return lines


def to_device(data: npt.NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """An array, or a tensor on the CPU, as a tensor on a device.

    To a GPU it goes by pinned memory, and nobody waits for the copy.
    """
    tensor = torch.from_numpy(data) if isinstance(data, np.ndarray) else data
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
