"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, section 4.1) with upstream's parameters.

The same sums as upstream's `ms_deform_attn.py` and its Python fallback, which is all that `groundingdino-py` has; level
shapes are plain integers, so that nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from patchmint.types import Size


def deformable_attention(
    module: Any,
    query: torch.Tensor,
    reference: torch.Tensor,
    value: torch.Tensor,
    shapes: Sequence[Size],
    padding: torch.Tensor,
) -> torch.Tensor:
    """Let each query look at a few learned points around its reference.

    Args:
        module: upstream's `MultiScaleDeformableAttention`, for its linear layers and numbers.
        query: float (B, Q, C).
        reference: float (B, Q, levels, 2 | 4), xy or xywh as shares of the padded canvas.
        value: float (B, S, C), features of all levels, flattened row-major, one level after the other.
        shapes: (height, width) of each level.
        padding: bool (B, S), True at positions that belong to no image.

    Returns:
        float (B, Q, C).
    """
    batch, queries, _ = query.shape
    heads, levels, points = module.num_heads, module.num_levels, module.num_points
    values = module.value_proj(value).masked_fill(padding[..., None], 0.0)
    values = values.view(batch, value.shape[1], heads, -1)
    offsets = module.sampling_offsets(query).view(batch, queries, heads, levels, points, 2)
    weights = module.attention_weights(query).view(batch, queries, heads, levels * points).softmax(-1)

    if reference.shape[-1] == 2:
        sizes = torch.tensor([(width, height) for height, width in shapes], dtype=offsets.dtype, device=offsets.device)
        where = reference[:, :, None, :, None] + offsets / sizes[None, None, None, :, None]
    else:
        # offsets count in half box sides, shared out over the points
        where = reference[:, :, None, :, None, :2] + offsets / points * reference[:, :, None, :, None, 2:] * 0.5

    grid = (2 * where - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)  # (B * heads, levels, Q, points, 2)
    sampled = []
    start = 0
    for level, (height, width) in enumerate(shapes):
        features = values[:, start : start + height * width].permute(0, 2, 3, 1).flatten(0, 1)
        features = features.unflatten(-1, (height, width))
        sampled.append(
            functional.grid_sample(features, grid[:, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        )
        start += height * width
    # (B * heads, C / heads, Q, levels * points) weighted by (B * heads, 1, Q, levels * points)
    mixed = torch.stack(sampled, dim=-2).flatten(-2) * weights.transpose(1, 2).reshape(
        batch * heads, 1, queries, levels * points
    )
    merged = mixed.sum(-1).view(batch, -1, queries).transpose(1, 2)
    return torch.as_tensor(module.output_proj(merged))
