"""Arrays on their way to a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def to_device(data: npt.NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """An array, or a tensor on the CPU, as a tensor on a device.

    To a GPU it goes by pinned memory, and nobody waits for the copy.
    """
    tensor = torch.from_numpy(data) if isinstance(data, np.ndarray) else data
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
