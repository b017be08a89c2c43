"""Kernels for GPUs that torch doesn't have, in Triton. To be imported where they are run only: not all have Triton.

Each takes what it needs at once, keeps what lies between in registers, and writes its answer. Triton makes a kernel for
each number of levels, points, heads and channels, in a second or two; other sizes are numbers that it is given.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

QUERIES_AT_ONCE = 4
"""Of one head, in a program of `deformable_sums`: of four queries' 64 places a thread reads 16 bytes at a time."""

OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
"""Of Triton's compiler. Without the second some versions warn that others will choose differently."""
NUMBERS_AT_ONCE = 2**12
"""In a program of `norm_of_sum` or `silu_of_norm`: 32 a thread."""
ATTENTION_OPTIONS = OPTIONS | {"num_warps": 8, "num_stages": 3}
"""Those of `attention_by_rows`."""


@triton.jit(do_not_specialize=["queries", "positions"])  # they change from pass to pass
def deformable_sums_kernel(
    values, learned, reference, sizes, start, out, queries, positions,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, WIDTH: tl.constexpr, NUMBERS: tl.constexpr,
    QUERIES: tl.constexpr, CORNERS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Some queries of an image and head, as one tile (queries, corners, channels): four corners for each place."""
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    corner = tl.arange(0, CORNERS)
    channel = tl.arange(0, CHANNELS)
    count: tl.constexpr = LEVELS * POINTS
    place = corner // 4
    is_place = place < count
    there = (query < queries)[:, None] & is_place[None, :]
    row = image * queries + query

    level = place // POINTS
    width = tl.load(sizes + 2 * level, mask=is_place, other=0.0)
    height = tl.load(sizes + 2 * level + 1, mask=is_place, other=0.0)
    first = tl.load(start + level, mask=is_place, other=0)

    own = learned + row[:, None] * (3 * HEADS * count) + head * count + place[None, :]
    x = tl.load(own, mask=there, other=0.0)
    y = tl.load(own + HEADS * count, mask=there, other=0.0)
    share = tl.where(is_place[None, :], tl.load(own + 2 * HEADS * count, mask=there, other=0.0), float("-inf"))
    share = tl.exp(share - tl.max(share, axis=1)[:, None])
    share *= 4 / tl.sum(share, axis=1)[:, None]

    around = reference + (row[:, None] * LEVELS + level[None, :]) * NUMBERS
    if NUMBERS == 4:
        x *= tl.load(around + 2, mask=there, other=0.0) * width[None, :] * (0.5 / POINTS)
        y *= tl.load(around + 3, mask=there, other=0.0) * height[None, :] * (0.5 / POINTS)
    x += tl.load(around, mask=there, other=0.0) * width[None, :] - 0.5
    y += tl.load(around + 1, mask=there, other=0.0) * height[None, :] - 0.5
    # At -1, and at the last position's other neighbour, nothing counts any more. What is no number stays none.
    x = tl.clamp(x, -1.0, width[None, :], propagate_nan=tl.PropagateNan.ALL)
    y = tl.clamp(y, -1.0, height[None, :], propagate_nan=tl.PropagateNan.ALL)
    right = (corner % 2 == 1)[None, :]
    below = (corner // 2 % 2 == 1)[None, :]
    x_share = x - tl.floor(x)
    y_share = y - tl.floor(y)
    weight = share * tl.where(right, x_share, 1 - x_share) * tl.where(below, y_share, 1 - y_share)

    column = tl.floor(x).to(tl.int32) + right
    line = tl.floor(y).to(tl.int32) + below
    columns = width.to(tl.int32)[None, :]
    inside = there & (column >= 0) & (column < columns) & (line >= 0) & (line < height.to(tl.int32)[None, :])
    position = first[None, :] + line * columns + column
    picture = values + image * positions * (HEADS * WIDTH) + head * WIDTH
    found = tl.load(
        picture + position[:, :, None] * (HEADS * WIDTH) + channel[None, None, :],
        mask=inside[:, :, None] & (channel < WIDTH)[None, None, :],
        other=0.0,
    )
    summed = tl.sum(weight[:, :, None] * found.to(tl.float32), axis=1)
    tl.store(
        out + row[:, None] * (HEADS * WIDTH) + head * WIDTH + channel[None, :],
        summed.to(out.dtype.element_ty),
        mask=(query < queries)[:, None] & (channel < WIDTH)[None, :],
    )


def deformable_sums(
    values: torch.Tensor,
    learned: torch.Tensor,
    reference: torch.Tensor,
    sizes: torch.Tensor,
    start: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """Weighted sums of values at learned places (Deformable DETR, arXiv 2010.04159, section 4.1), in one kernel.

    What upstream's `ms_deform_attn_core_pytorch` (`ms_deform_attn.py`) does, with the softmax and the places before it.
    A level may be empty.

    Args:
        values: float32, float16 or bfloat16 (B, S, C), 0 where there is no image.
        learned: float32 (B, Q, 3 * heads * L * points): offsets in x, in y, and weights before their softmax.
        reference: float32 (B, Q, L, 2 | 4), points or boxes.
        sizes: float32 (L, 2), width and height.
        start: int32 (L,), the level's first position.
        heads: of the attention; C is a multiple.

    Returns:
        (B, Q, C) in the dtype of `values`, summed up in float32.
    """
    values, learned, reference = values.contiguous(), learned.contiguous(), reference.contiguous()
    batch, positions, channels = values.shape
    queries, levels, numbers = reference.shape[1:]
    constants = deformable_constants(heads, levels, learned.shape[-1] // (3 * heads * levels), channels, numbers)
    out = values.new_empty(batch, queries, channels)
    grid = (triton.cdiv(queries, QUERIES_AT_ONCE), heads, batch)
    with torch.cuda.device_of(values):
        deformable_sums_kernel[grid](
            values, learned, reference, sizes.contiguous(), start.contiguous(), out, queries, positions,
            **constants, **OPTIONS,
        )  # fmt: skip
    return out


def deformable_constants(heads: int, levels: int, points: int, channels: int, numbers: int) -> dict[str, int]:
    """What `deformable_sums_kernel` is compiled for."""
    width = channels // heads
    return {
        "HEADS": heads, "LEVELS": levels, "POINTS": points, "WIDTH": width, "NUMBERS": numbers,
        "QUERIES": QUERIES_AT_ONCE, "CORNERS": triton.next_power_of_2(4 * levels * points),
        "CHANNELS": triton.next_power_of_2(width),
    }  # fmt: skip


@triton.jit
def attention_by_rows_kernel(
    query, key, value, found, out, scale,
    query_image, query_head, query_place, key_image, key_head, key_place, value_image, value_head, value_place,
    SIDE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, LOW: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Some queries of an image and head: a row of keys at a time, in flash attention's way.

    All rows get the same from their columns. Vectors are a power of two long, or two of them (80 = 64 + 16).
    """
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    column = tl.arange(0, SIDE)
    low = tl.arange(0, LOW)
    rest: tl.constexpr = WIDTH - LOW

    # Products with rising distances, of which the wanted ones begin one earlier a place further on.
    own = found + ((head * tl.num_programs(2) + image) * (SIDE * SIDE) + place) * (4 * SIDE)
    by_row = own + SIDE - 1 - place // SIDE
    by_column = tl.load(own[:, None] + (3 * SIDE - 1 - place % SIDE)[:, None] + column[None, :])

    queries = query + image * query_image + head * query_head + place[:, None] * query_place
    keys = key + image * key_image + head * key_head + column[:, None] * key_place
    values = value + image * value_image + head * value_head + column[:, None] * value_place
    asked = tl.load(queries + low[None, :])
    mixed = tl.zeros((QUERIES, LOW), tl.float32)
    if rest:
        high = LOW + tl.arange(0, rest)
        asked_high = tl.load(queries + high[None, :])
        mixed_high = tl.zeros((QUERIES, rest), tl.float32)
    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    for row in range(SIDE):
        scores = tl.dot(asked, tl.trans(tl.load(keys + low[None, :])))
        if rest:
            scores = tl.dot(asked_high, tl.trans(tl.load(keys + high[None, :])), scores)
        scores = (scores + by_column) * scale
        of_row = tl.load(by_row + row).to(tl.float32) * scale
        more = tl.maximum(most, tl.max(scores, axis=1) + of_row)
        shares = tl.exp2(scores - (more - of_row)[:, None])
        kept = tl.exp2(most - more)
        most = more
        total = total * kept + tl.sum(shares, axis=1)
        shares = shares.to(value.dtype.element_ty)
        mixed = tl.dot(shares, tl.load(values + low[None, :]), mixed * kept[:, None])
        if rest:
            mixed_high = tl.dot(shares, tl.load(values + high[None, :]), mixed_high * kept[:, None])
        keys += SIDE * key_place
        values += SIDE * value_place

    answers = out + ((image * (SIDE * SIDE) + place) * HEADS + head)[:, None] * WIDTH
    tl.store(answers + low[None, :], (mixed / total[:, None]).to(out.dtype.element_ty))
    if rest:
        tl.store(answers + high[None, :], (mixed_high / total[:, None]).to(out.dtype.element_ty))


def attention_by_rows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Attention over a square with relative positions by row and column (MViTv2, arXiv 2112.01526, section 4.1).

    What upstream's `Attention` with `add_decomposed_rel_pos` (`image_encoder.py`) does between its projections.

    Args:
        query: float16 or bfloat16 (B, heads, side * side, c), not yet scaled; read where it lies. Sides are a power of
            two from 16 on; c is one, or the sum of two.
        key: the same shape.
        value: the same shape.
        found: (heads, B * side * side, 4 * side), each query's products with rows' and columns' distances
            (`patchmint.labelers.sam.attention.distance_table`).

    Returns:
        (B, side * side, heads, c).
    """
    query, key, value = (each if each.stride(-1) == 1 else each.contiguous() for each in (query, key, value))
    found = found.contiguous()
    batch, heads, places, width = query.shape
    out = query.new_empty(batch, places, heads, width)
    constants = attention_constants(found.shape[-1] // 4, heads, width)
    scale = width**-0.5 * math.log2(math.e)
    strides = [step for each in (query, key, value) for step in each.stride()[:3]]
    grid = (places // constants["QUERIES"], heads, batch)
    with torch.cuda.device_of(query):
        attention_by_rows_kernel[grid](query, key, value, found, out, scale, *strides, **constants, **ATTENTION_OPTIONS)
    return out


def attention_constants(side: int, heads: int, width: int) -> dict[str, int]:
    """What `attention_by_rows_kernel` is compiled for."""
    return {"SIDE": side, "HEADS": heads, "WIDTH": width, "LOW": 1 << width.bit_length() - 1, "QUERIES": 128}


@triton.jit(do_not_specialize=["rows"])
def norm_of_sum_kernel(
    x, y, weight, bias, summed, normed, epsilon, rows,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Some rows, whole."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    is_channel = channel < CHANNELS
    there = (row < rows)[:, None] & is_channel[None, :]
    place = row[:, None] * CHANNELS + channel[None, :]
    total = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
    total += tl.load(y + place, mask=there, other=0.0).to(tl.float32)
    if KEEP:
        tl.store(summed + place, total, mask=there)
    away = tl.where(there, total - (tl.sum(total, axis=1) / CHANNELS)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(away * away, axis=1) / CHANNELS + epsilon)
    own = tl.load(weight + channel, mask=is_channel, other=0.0)
    shift = tl.load(bias + channel, mask=is_channel, other=0.0)
    answer = away * scale[:, None] * own[None, :] + shift[None, :]
    tl.store(normed + place, answer.to(normed.dtype.element_ty), mask=there)


def norm_of_sum(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    dtype: torch.dtype,
    *,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer norm (arXiv 1607.06450) of a sum, computed in float32.

    Args:
        x: (..., C), any floats, contiguous.
        y: the same, contiguous.
        weight: float32 (C,).
        bias: float32 (C,).
        epsilon: is added to the variance.
        dtype: of the norm.
        keep: whether the sum is wanted.

    Returns:
        The sum in the dtype of `x`, (0,) if it isn't wanted; the norm.
    """
    summed, normed = x.new_empty(x.shape if keep else 0), x.new_empty(x.shape, dtype=dtype)
    constants = norm_constants(x.shape[-1], keep=keep)
    rows = x.numel() // x.shape[-1]
    with torch.cuda.device_of(x):
        norm_of_sum_kernel[(triton.cdiv(rows, constants["ROWS"]),)](
            x, y, weight, bias, summed, normed, epsilon, rows, **constants, **OPTIONS
        )
    return summed, normed


def norm_constants(channels: int, *, keep: bool) -> dict[str, int]:
    """What `norm_of_sum_kernel` is compiled for."""
    width = triton.next_power_of_2(channels)
    return {"CHANNELS": channels, "WIDTH": width, "ROWS": max(1, NUMBERS_AT_ONCE // width), "KEEP": int(keep)}


@triton.jit(do_not_specialize=["places"])
def group_moments_kernel(
    x, moments, places,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Means and squared distances from them of each group in a part of an image, tile by tile (Chan's sums)."""
    part, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    each: tl.constexpr = CHANNELS // GROUPS
    mean = tl.zeros((GROUPS,), tl.float32)
    apart = tl.zeros((GROUPS,), tl.float32)
    count = 0.0
    length = tl.cdiv(places, PARTS)
    end = tl.minimum(places, (part + 1) * length)
    for step in range(STEPS):
        first = part * length + step * ROWS
        row = first + tl.arange(0, ROWS)
        there = (row < end)[:, None]
        tile = tl.load(x + (image * places + row[:, None]) * CHANNELS + tl.arange(0, CHANNELS)[None, :], there, 0.0)
        tile = tl.reshape(tile.to(tl.float32), (ROWS, GROUPS, each))
        more = tl.maximum(tl.minimum(end - first, ROWS), 0) * each * 1.0
        own = tl.sum(tl.sum(tile, axis=2), axis=0) / tl.maximum(more, 1.0)
        away = tl.where(there[:, :, None], tile - own[None, :, None], 0.0)
        moved = (own - mean) * (more / tl.maximum(count + more, 1.0))
        apart += tl.sum(tl.sum(away * away, axis=2), axis=0) + (own - mean) * moved * count
        mean += moved
        count += more
    found = moments + ((image * PARTS + part) * 2) * GROUPS + tl.arange(0, GROUPS)
    tl.store(found, mean)
    tl.store(found + GROUPS, apart)


@triton.jit(do_not_specialize=["places"])
def silu_of_norm_kernel(
    x, moments, weight, bias, out, epsilon, places,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """A tile of an image, from the moments of all parts of it."""
    image = tl.program_id(1).to(tl.int64)
    each: tl.constexpr = CHANNELS // GROUPS
    part, group = tl.arange(0, PARTS), tl.arange(0, GROUPS)
    length = tl.cdiv(places, PARTS)
    counts = tl.maximum(tl.minimum(places - part * length, length), 0).to(tl.float32)[:, None] * each
    found = moments + ((image * PARTS + part[:, None]) * 2) * GROUPS + group[None, :]
    means = tl.load(found)
    count = places * each * 1.0
    mean = tl.sum(means * counts, axis=0) / count
    away = means - mean[None, :]
    apart = tl.sum(tl.load(found + GROUPS) + away * away * counts, axis=0)
    scale = tl.rsqrt(apart / count + epsilon)

    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    there = (row < places)[:, None]
    place = (image * places + row[:, None]) * CHANNELS + channel[None, :]
    tile = tl.reshape(tl.load(x + place, there, 0.0).to(tl.float32), (ROWS, GROUPS, each))
    own = tl.reshape(tl.load(weight + channel), (GROUPS, each))
    shift = tl.reshape(tl.load(bias + channel), (GROUPS, each))
    normed = (tile - mean[None, :, None]) * scale[None, :, None] * own[None, :, :] + shift[None, :, :]
    answer = tl.reshape(normed / (1 + tl.exp(-normed)), (ROWS, CHANNELS))
    tl.store(out + place, answer.to(out.dtype.element_ty), there)


def silu_of_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, epsilon: float, dtype: torch.dtype
) -> torch.Tensor:
    """SiLU of a group norm (arXiv 1803.08494), computed in float32.

    Args:
        x: (B, C, H, W), channels-last, any floats; C is a power of two.
        weight: float32 (C,).
        bias: float32 (C,).
        groups: of channels; a power of two.
        epsilon: is added to the variance.
        dtype: of the answer.

    Returns:
        (B, C, H, W), channels-last.
    """
    batch, places = x.shape[0], x.shape[2] * x.shape[3]
    constants = group_constants(x.shape[1], groups)
    moments = x.new_empty(batch, constants["PARTS"], 2, groups, dtype=torch.float32)
    out = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
    with torch.cuda.device_of(x):
        steps = triton.cdiv(triton.cdiv(places, constants["PARTS"]), constants["ROWS"])
        group_moments_kernel[(constants["PARTS"], batch)](x, moments, places, **constants, STEPS=steps, **OPTIONS)
        silu_of_norm_kernel[(triton.cdiv(places, constants["ROWS"]), batch)](
            x, moments, weight, bias, out, epsilon, places, **constants, **OPTIONS
        )
    return out


def group_constants(channels: int, groups: int) -> dict[str, int]:
    """What `group_moments_kernel` and `silu_of_norm_kernel` are compiled for."""
    rows = max(1, NUMBERS_AT_ONCE // channels)
    return {"CHANNELS": channels, "GROUPS": groups, "ROWS": rows, "PARTS": 16}
