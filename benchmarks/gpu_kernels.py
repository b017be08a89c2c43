"""What the project's own kernels do, for `gpu_counts.py`, which sees one operation each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

OWN_ATTENTION = 250e12
"""FLOP/s of attention in Triton with biases on an H200, a cautious guess: without them it reaches 400e12."""


@dataclass
class Work:
    """Of a call.

    Attributes:
        flops: of products and attention.
        rate: how many a second.
        gathered: bytes of rows picked out.
        more: kernels beside the first.
        again: bytes that are read twice.
    """

    flops: float = 0
    rate: float = 1
    gathered: float = 0
    more: int = 0
    again: int = 0


def _deformable_sums(values: Tensor, learned: Tensor, _: Tensor, heads: int, *__: Any) -> Work:
    # Four rows for each of the learned places, which are three numbers.
    gathered = math.prod(learned.shape) / 3 * 4 * values.shape[-1] / heads * values.element_size()
    return Work(gathered=gathered)


def _attention_by_rows(query: Tensor, *_: Tensor) -> Work:
    side = query.shape[-2]
    return Work(4 * query.numel() * side * side, OWN_ATTENTION)


def _norm_of_sum(*_: Any, **__: Any) -> Work:
    return Work()


def _silu_of_norm(x: Tensor, *_: Any) -> Work:
    return Work(more=1, again=x.numel() * x.element_size())


WORK: dict[str, Callable[..., Work]] = {
    "attention_by_rows": _attention_by_rows,
    "deformable_sums": _deformable_sums,
    "norm_of_sum": _norm_of_sum,
    "silu_of_norm": _silu_of_norm,
}
"""By the operation's name, of its arguments."""
