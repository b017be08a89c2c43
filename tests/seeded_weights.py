"""Random weights for models of official size, as fast as memory takes them; the same on every machine."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_PERIOD = 1_000_003
"""Of the noise that is repeated: a prime, so that no two rows of a matrix are alike."""


class Uninitialised(TorchFunctionMode):
    """Within it, models are built without the slow filling that `fill` replaces."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_):
            return args[0]
        return func(*args, **(kwargs or {}))


def fill(tensors: Mapping[str, Tensor]) -> None:
    """Fill a state dict in place, each tensor by its name.

    Matrices keep the size of what goes through them; norms are near one, all other vectors near zero. Nothing is a
    constant, which would hide mistakes. Whole numbers, such as positions, stay as they are.
    """
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(_PERIOD, dtype=np.float32))
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if tensor.ndim > 1:
            scale, middle = 0.7 / math.sqrt(tensor[0].numel()), 0.0
        else:
            scale, middle = 0.02, float(name.endswith("weight"))
        values = (noise * scale + middle).roll(zlib.crc32(name.encode()) % _PERIOD)
        flat = tensor.view(-1)
        for start in range(0, len(flat), _PERIOD):
            flat[start : start + _PERIOD] = values[: len(flat) - start]


def shake(model: torch.nn.Module) -> None:
    """Give a little noise to what Grounding DINO starts at zero or one, which would hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.ndim == 1 or (parameter == 0).all():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
