"""Hidden states -> features: Dense Connector's STI, SCI and DCI, and DeCo's pooling. Functions without parameters.

Tokens are (B, tokens, channels): with `leading` 1 a CLS token, which is never pooled and stays first, then the grid's
tokens row-major, then what STI appends.

Under `cls_patch` the authors' Dense Connector drops CLS from all parts but V_L: STI then appends averages of patches to
[CLS, patches], as here, and SCI and DCI fail on 577 against 576 tokens. Here these two join the CLS tokens of all
parts, so that it has as many channels as the other tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from patchmint.features.connectors.plan import STI_WINDOW
from patchmint.features.vit.arch import VitArch
from patchmint.interfaces import FeatureSpec


def features_of(states: Iterable[Tensor], spec: FeatureSpec, arch: VitArch) -> Tensor:
    """Make the features that a spec describes.

    Args:
        states: hidden states 0, 1, ..., each float (B, arch.leading + patches, hidden); as many as the spec needs.
        spec: from `plan_features`.
        arch: the encoder's architecture.

    Returns:
        float (B, spec.tokens, spec.channels).
    """
    parts = [part[:, arch.leading - spec.leading :] for part in mean_states(states, spec.layers)]
    whole = (arch.side, arch.side)
    if spec.pool == "before":
        parts = [pool_grid(part, whole, spec.grid, spec.leading) for part in parts]
    joined = connect(parts, spec.connector, spec.leading)
    return pool_grid(joined, whole, spec.grid, spec.leading) if spec.pool == "after" else joined


def mean_states(states: Iterable[Tensor], layers: Sequence[Sequence[int]]) -> list[Tensor]:
    """Average the states of each part, while they are computed: no more than the parts is held in memory.

    Args:
        states: hidden states 0, 1, ..., of one shape.
        layers: for each part the indices of its states, each once.
    """
    sums: dict[int, Tensor] = {}
    for index, state in enumerate(states):
        for part in (part for part, members in enumerate(layers) if index in members):
            sums[part] = sums[part] + state if part in sums else state
    return [sums[part] / len(members) if len(members) > 1 else sums[part] for part, members in enumerate(layers)]


def connect(parts: Sequence[Tensor], connector: str, leading: int = 0) -> Tensor:
    """Join V_L with further parts (Dense Connector, arXiv 2405.13800).

    Args:
        parts: float (B, leading + n, C) each, V_L first.
        connector: "none": V_L alone. "sti": to its tokens are appended those of the other parts, without CLS, averaged
            by eights along the flattened token axis (AvgPool1d(8, 8): a rest of fewer is left out). "sci" and "dci":
            channels of all parts behind each other.
        leading: tokens before the grid's.

    Returns:
        "none": (B, leading + n, C); "sti": (B, leading + n + (len(parts) - 1) * (n // 8), C); else
        (B, leading + n, len(parts) * C).
    """
    match connector:
        case "none":
            return parts[0]
        case "sti":
            averages = [
                nnf.avg_pool1d(part[:, leading:].transpose(1, 2), STI_WINDOW, STI_WINDOW).transpose(1, 2)
                for part in parts[1:]
            ]
            return torch.cat([parts[0], *averages], dim=1)
        case _:
            return torch.cat(list(parts), dim=2)


def pool_grid(tokens: Tensor, grid: tuple[int, int], pooled: tuple[int, int], leading: int = 0) -> Tensor:
    """Pool the grid's tokens by 2-D adaptive averages (DeCo, arXiv 2405.20985); the others stay as they are.

    Args:
        tokens: float (B, leading + rows * cols + trailing, C).
        grid: (rows, cols) of the grid.
        pooled: (rows, cols) to pool it to; bins as `patchmint.geometry.adaptive_bins`.
        leading: tokens before the grid's.

    Returns:
        float (B, leading + pooled rows * pooled cols + trailing, C).
    """
    count = grid[0] * grid[1]
    before, after = tokens[:, :leading], tokens[:, leading + count :]
    plane = tokens[:, leading : leading + count].transpose(1, 2).reshape(tokens.shape[0], -1, *grid)
    averages = nnf.adaptive_avg_pool2d(plane, pooled).flatten(2).transpose(1, 2)
    return torch.cat([before, averages, after], dim=1)
