"""Attention with SAM's relative positions, split into rows and columns (MViTv2, arXiv 2112.01526, section 4.1).

The score of query q at (y, x) and key k at (i, j) is q * k + q * rows[y, i] + q * cols[x, j]. Upstream writes both
terms into a matrix of all scores. Here queries and keys are lengthened instead: a query by what each row and each
column of keys adds to it, a key by ones at its own row and column. Plain attention of the longer vectors then gives the
same scores, so that any fused kernel will do. Over whole pictures the longer ones cost more than all else; there both
terms are added to some scores at a time, on a GPU in a kernel of ours (`patchmint.compute.kernels`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from patchmint.compute.compiled import OwnKernel

_SCORES_AT_ONCE = 2**21
# Scores worked out together on a CPU: 4 MiB in bfloat16, which stay in its cache between the three steps.

_SHORT = 16
# Positions in a row.

_ALIGNED = 8
# Fused kernels want vectors of a multiple of 16 bytes.


def relative_table(weights: Tensor, side: int) -> Tensor:
    """Spread what is learnt for each distance over queries and keys: (2 * side - 1, c) -> (side, side, c)."""
    places = torch.arange(side, device=weights.device)
    return weights[places[:, None] - places[None, :] + side - 1]


def attend(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Attend over a square of positions on a CPU, all products in the dtype of `query`.

    Args:
        query: (groups, heads, side, side, c), not yet scaled.
        key: the same shape.
        value: the same shape.
        rows: `relative_table` of rows (side, side, c), in the same dtype.
        cols: that of columns.

    Returns:
        (groups, heads, side, side, c).
    """
    by_row = torch.einsum("ghyxc,ykc->ghyxk", query, rows)
    by_col = torch.einsum("ghyxc,xkc->ghyxk", query, cols)
    scaled = query * query.shape[-1] ** -0.5
    adds = query.dtype == torch.float32 or len(rows) > _SHORT
    way = _attend_added if adds else _attend_lengthened
    return way(scaled, key, value, by_row, by_col).view(query.shape)


def distance_table(rows: Tensor, cols: Tensor) -> Tensor:
    """What `attend_fused` takes of weights learnt for each distance in rows, and in columns, (2 * side - 1, c) each.

    Returns:
        (c, 4 * side): rising distances from query to key, where the weights' fall, and multiplied by the root of c,
        since the products will be divided by it.
    """
    both = torch.cat([functional.pad(weights.flip(0), (0, 0, 0, 1)) for weights in (rows, cols)])
    return (both * math.sqrt(both.shape[-1])).mT.contiguous()


def attend_fused(query: Tensor, key: Tensor, value: Tensor, distances: Tensor) -> Tensor:
    """Attend in one kernel, which never writes scores to memory, and with few passes before it: for GPUs.

    Args:
        query: (B, rows, cols, heads, side, side, c), a window or the whole picture each; any strides.
        key: the same shape.
        value: the same shape.
        distances: `distance_table` in the same dtype.

    Returns:
        The same shape.
    """
    # (heads, B * rows * side * cols * side, c), where queries of windows lie as rows of the picture: a view.
    flat = query.permute(3, 0, 1, 4, 2, 5, 6).flatten(1, -2)
    found = torch.bmm(flat, distances.expand(len(flat), -1, -1))
    if _by_rows(query):
        mixed: Tensor = _attend_by_rows(query, key, value, found)
        return torch.unflatten(mixed, 1, query.shape[4:6]).permute(0, 3, 1, 2, 4)[:, None, None]
    return _attend_long(query, key, value, found)


def _by_rows(query: Tensor) -> bool:
    """Whether it is whole pictures, in a dtype and of sizes that the kernel is for."""
    side, c = query.shape[-2:]
    rest = c - (1 << c.bit_length() - 1)
    fits = 16 <= c <= 96 and all(n >= 16 and n.bit_count() == 1 for n in (side, rest or 16))
    return fits and query.shape[1:3] == (1, 1) and query.dtype in (torch.float16, torch.bfloat16)


_kernel = OwnKernel("SAM's attention over whole pictures")


@torch.library.custom_op("patchmint::attention_by_rows", mutates_args=())
def _attend_by_rows(query: Tensor, key: Tensor, value: Tensor, found: Tensor) -> Tensor:
    """As `_attend_long`, in a kernel of our own if there can be one, but (B, side * side, heads, c)."""

    def run() -> Tensor:
        from patchmint.compute.kernels import attention_by_rows

        queries, keys, values = (each[:, 0, 0].flatten(2, 3) for each in (query, key, value))
        return attention_by_rows(queries, keys, values, found)

    def long() -> Tensor:
        return _attend_long(query, key, value, found)[:, 0, 0].permute(0, 2, 3, 1, 4).flatten(1, 2).contiguous()

    return _kernel.run(run, long)


@_attend_by_rows.register_fake
def _(query: Tensor, *_: Tensor) -> Tensor:
    batch, heads, side, c = (query.shape[axis] for axis in (0, 3, 4, 6))
    return query.new_empty(batch, side * side, heads, c)


def _attend_long(query: Tensor, key: Tensor, value: Tensor, found: Tensor) -> Tensor:
    """Attend by lengthened queries and keys; `found` are queries' products with all distances."""
    side, c = query.shape[-2:]
    found = found.view(-1, *query.shape[:2], side, query.shape[2], side, found.shape[-1])
    found = found.permute(1, 2, 4, 0, 3, 5, 6)
    filling = query.new_zeros(()).expand(*query.shape[:-1], -(c + 2 * side) % _ALIGNED)
    ones = torch.eye(side, dtype=key.dtype, device=key.device)
    own_row, own_col = (each.expand(*key.shape[:-1], side) for each in (ones[:, None], ones[None]))
    parts = (
        (query, _slanted(found, -3, 0, side), _slanted(found, -2, 2 * side, side), filling),
        (key, own_row, own_col, filling),
        (value, filling.new_zeros(()).expand(*value.shape[:-1], 2 * side + filling.shape[-1])),
    )
    # Each in one pass over memory, aligned.
    long_query, long_key, long_value = (torch.cat(each, dim=-1).flatten(0, 2).flatten(-3, -2) for each in parts)
    mixed = functional.scaled_dot_product_attention(long_query, long_key, long_value, scale=c**-0.5)
    return mixed[..., :c].reshape(query.shape)


def _slanted(found: Tensor, axis: int, first: int, side: int) -> Tensor:
    """Of each query's products with all distances those with the distances that there are from its place on an axis.

    A view of a tensor that has its memory to itself: a place further on, the wanted distances begin one earlier.
    """
    strides = list(found.stride())
    strides[axis] -= 1
    return found.as_strided((*found.shape[:-1], side), strides, first + side - 1)


def _attend_lengthened(query: Tensor, key: Tensor, value: Tensor, by_row: Tensor, by_col: Tensor) -> Tensor:
    """In bfloat16 in windows, whose rows are too short to be added to one by one."""
    long_query, long_key = _lengthen(query, key, by_row, by_col)
    return _in_blocks(long_query, long_key, value, None)


def _attend_added(query: Tensor, key: Tensor, value: Tensor, by_row: Tensor, by_col: Tensor) -> Tensor:
    """In float32, and over whole pictures, where longer products cost more than a pass over the scores."""
    return _in_blocks(query.flatten(2, 3), key.flatten(2, 3), value, (by_row, by_col))


def _lengthen(query: Tensor, key: Tensor, by_row: Tensor, by_col: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (groups, heads, positions, c + 2 * side) whose products hold the relative positions."""
    side = query.shape[2]
    ones = torch.eye(side, dtype=key.dtype, device=key.device)
    own_row = ones[:, None, :].expand(*key.shape[:-1], side)
    own_col = ones[None, :, :].expand(*key.shape[:-1], side)
    long_query = torch.cat([query, by_row, by_col], dim=-1)
    long_key = torch.cat([key, own_row, own_col], dim=-1)
    return long_query.flatten(2, 3), long_key.flatten(2, 3)


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, added: tuple[Tensor, Tensor] | None) -> Tensor:
    """Attention of a few rows at a time, in one buffer: (groups, heads, positions, c)."""
    groups, heads, count, width = query.shape
    side = math.isqrt(count)
    queries = query.reshape(-1, count, width)
    keys = key.reshape(-1, count, width).transpose(1, 2)
    values = value.reshape(-1, count, value.shape[-1])
    terms = () if added is None else (added[0].reshape(-1, count, side, 1), added[1].reshape(-1, count, 1, side))
    mixed = torch.empty_like(values)
    step = max(1, _SCORES_AT_ONCE // count**2)
    rows = min(count, max(1, _SCORES_AT_ONCE // count))
    buffer = torch.empty(step * rows * count, dtype=query.dtype)
    for first in range(0, len(queries), step):
        for row in range(0, count, rows):
            block = queries[first : first + step, row : row + rows]
            scores = buffer[: block.shape[0] * block.shape[1] * count].view(*block.shape[:2], count)
            if added is None:
                torch.bmm(block, keys[first : first + step], out=scores)
            else:
                by_row, by_col = (each[first : first + step, row : row + rows] for each in terms)
                torch.add(by_row, by_col, out=scores.view(*block.shape[:2], side, side))
                scores.baddbmm_(block, keys[first : first + step])
            torch.softmax(scores, dim=-1, out=scores)
            mixed[first : first + step, row : row + rows] = torch.bmm(scores, values[first : first + step])
    return mixed.view(groups, heads, count, -1)
