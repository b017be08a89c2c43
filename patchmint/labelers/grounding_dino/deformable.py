"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, section 4.1) with upstream's parameters.

Upstream's Python fallback, which is all that `groundingdino-py` has, samples every level by itself, and keeps every
sample until they are weighted. Here one weighted sum of rows of values gives each answer: a point is four rows, its
nearest positions, in any level. On a GPU all that follows what is learned is one kernel (`patchmint.compute.kernels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from patchmint.compute.compiled import OwnKernel
from patchmint.compute.devices import computing_fully, to_device, works_in_parts
from patchmint.types import Size

_POINTS_AT_ONCE = 2**17
# On the CPU, so that what belongs to them stays in the cache.


@dataclass(frozen=True)
class LevelTable:
    """Numbers of L levels that lie one after the other, each row-major, on the device.

    Attributes:
        sizes: float (L, 2), width and height.
        last: int32 (2, L), the last column (row) that has another behind it; 0 in a level of one.
        more: float (2, L), 1 where there is more than one column (row), else 0.
        steps: int32 (2, L), positions from a column (row) to the next; 0 in a level of one.
        pitch: int32 (L,), positions in a row.
        start: int32 (L,), the level's first position.
    """

    sizes: torch.Tensor
    last: torch.Tensor
    more: torch.Tensor
    steps: torch.Tensor
    pitch: torch.Tensor
    start: torch.Tensor


def level_table(shapes: Sequence[Size], device: torch.device) -> LevelTable:
    """Describe levels of given (height, width), in one copy that nothing waits for."""
    rows, start = [], 0
    for height, width in shapes:
        last = (max(width - 2, 0), max(height - 2, 0))
        more = (int(width > 1), int(height > 1))
        rows.append((width, height, *last, *more, more[0], more[1] * width, width, start))
        start += height * width
    table = to_device(torch.tensor(rows, dtype=torch.int32), device).T
    return LevelTable(table[0:2].T.float(), table[2:4], table[4:6].float(), table[6:8], table[8], table[9])


def deformable_attention(
    module: Any,
    query: torch.Tensor,
    reference: torch.Tensor,
    value: torch.Tensor,
    levels: LevelTable,
    padding: torch.Tensor,
) -> torch.Tensor:
    """Let each query look at a few learned points around its reference.

    Places and weights are float32 whatever products are computed in.

    Args:
        module: upstream's `MultiScaleDeformableAttention`, for its linear layers and numbers.
        query: float (B, Q, C).
        reference: float (B, Q, L, 2 | 4), xy or xywh as shares of the padded canvas.
        value: float (B, S, C), features of all levels, flattened row-major, one level after the other.
        levels: of the features.
        padding: bool (B, S), True at positions that belong to no image.

    Returns:
        float (B, Q, C).
    """
    values = module.value_proj(value).masked_fill_(padding[..., None], 0.0)
    weight, bias = _axes_apart(module)

    def learned(part: torch.Tensor) -> torch.Tensor:
        with computing_fully(query.device):
            return functional.linear(part.float(), weight, bias)

    if _in_one_kernel(query):
        # written out: some versions of torch can't compile `vars` of a dataclass
        table = [levels.sizes, levels.last, levels.more, levels.steps, levels.pitch, levels.start]
        summed = _sums_of_kernel(values, learned(query), reference, module.num_heads, table)
    elif works_in_parts(query.device):
        full = values.float()
        points = query.shape[0] * module.num_heads * module.num_levels * module.num_points
        step = max(1, _POINTS_AT_ONCE // points)
        parts = zip(torch.split(query, step, dim=1), torch.split(reference, step, dim=1), strict=True)
        summed = torch.cat([_sums(full, learned(q), r, module.num_heads, levels) for q, r in parts], dim=1)
    else:
        summed = _sums(values.float(), learned(query), reference, module.num_heads, levels)
    return torch.as_tensor(module.output_proj(summed))


def _in_one_kernel(query: torch.Tensor) -> bool:
    """Whether to attend as on a GPU, where nothing is learnt from the answer."""
    return query.is_cuda and not torch.is_grad_enabled()


def _axes_apart(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """One linear layer for offsets and weights: all offsets in x, then all in y, then all weights of points."""
    offsets, shares = module.sampling_offsets, module.attention_weights
    weight = torch.cat([offsets.weight[0::2], offsets.weight[1::2], shares.weight])
    return weight, torch.cat([offsets.bias[0::2], offsets.bias[1::2], shares.bias])


_kernel = OwnKernel("deformable attention")


@torch.library.custom_op("patchmint::deformable_sums", mutates_args=())
def _sums_of_kernel(
    values: torch.Tensor, learned: torch.Tensor, reference: torch.Tensor, heads: int, levels: list[torch.Tensor]
) -> torch.Tensor:
    """As `_sums`, in the dtype of `values`, in one kernel if there can be one; `levels`: a table's attributes."""
    table = LevelTable(*levels)

    def run() -> torch.Tensor:
        from patchmint.compute.kernels import deformable_sums

        return deformable_sums(values, learned, reference, table.sizes, table.start, heads)

    return _kernel.run(run, lambda: _sums(values.float(), learned, reference, heads, table).to(values.dtype))


@_sums_of_kernel.register_fake
def _(values: torch.Tensor, learned: torch.Tensor, *_: Any) -> torch.Tensor:
    return values.new_empty(*learned.shape[:2], values.shape[-1])


def _sums(
    values: torch.Tensor, learned: torch.Tensor, reference: torch.Tensor, heads: int, levels: LevelTable
) -> torch.Tensor:
    """Sums of values at learned places, bilinear between positions, nothing outside of a level.

    Args:
        values: float32 (B, S, C), 0 where there is no image.
        learned: float32 (B, Q, 3 * heads * L * points), as `_axes_apart` orders it.
        reference: float32 (B, Q, L, 2 | 4).
        heads: of the attention.
        levels: of the values; none may be empty.

    Returns:
        float32 (B, Q, C).
    """
    offsets = 2 * learned.shape[-1] // 3
    places = torch.unflatten(learned[..., :offsets], -1, (2, heads, len(levels.start), -1))
    if reference.shape[-1] == 4:
        # Offsets count in positions around a point, in half box sides, shared out over the points, around a box.
        unit = reference[..., 2:] * levels.sizes * (0.5 / places.shape[-1])
        places = places * unit.mT[:, :, :, None, :, None]
    centre = reference[..., :2] * levels.sizes - 0.5
    places = (places + centre.mT[:, :, :, None, :, None]).flatten(-2)
    shares = torch.unflatten(learned[..., offsets:], -1, (heads, -1)).softmax(-1)
    rows, positions = values.reshape(-1, values.shape[-1] // heads), values.shape[1]
    batch, queries, _, _, count = places.shape

    def of_points(numbers: torch.Tensor) -> torch.Tensor:
        # Written out for all points: elementwise operations are slow on rows as short as the levels are few.
        return (
            numbers.repeat_interleave(count // numbers.shape[-1], -1)[..., None, :].expand(-1, heads, -1).contiguous()
        )

    # Truncation is rounding down here: below 0 both are cut off at 0. A NaN becomes some number, its weight stays NaN.
    low = torch.minimum(places.int().clamp(min=0), of_points(levels.last))
    ahead = places - low
    near = (1 - ahead.abs()).clamp(min=0)
    far = (of_points(levels.more) - (ahead - 1).abs()).clamp(min=0)

    device = rows.device
    first_row = levels.start[None].repeat_interleave(count // levels.start.shape[0], -1) * heads
    first_row = first_row + torch.arange(heads, dtype=torch.int32, device=device)[:, None]
    image = torch.arange(batch, dtype=torch.int32, device=device)[:, None, None, None] * (positions * heads)
    steps = of_points(levels.steps * heads)
    corner = low[:, :, 1] * of_points(levels.pitch[None] * heads)[0] + low[:, :, 0] * heads + first_row + image
    below = corner + steps[1]
    upper, lower = shares * near[:, :, 1], shares * far[:, :, 1]
    summed = functional.embedding_bag(
        torch.cat([corner, corner + steps[0], below, below + steps[0]], dim=-1).flatten(0, 2),
        rows,
        mode="sum",
        per_sample_weights=torch.cat(
            [upper * near[:, :, 0], upper * far[:, :, 0], lower * near[:, :, 0], lower * far[:, :, 0]], dim=-1
        ).flatten(0, 2),
    )
    return summed.view(batch, queries, -1)
