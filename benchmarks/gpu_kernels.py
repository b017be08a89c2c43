"""What the project's own kernels do, for `gpu_counts.py`, which sees one operation each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

OWN_ATTENTION = 250e12
"""FLOP/s of attention in Triton with biases on an H200, a cautious guess: without them it reaches 400e12."""


def _deformable_sums(values: Tensor, learned: Tensor, _: Tensor, heads: int, *__: Any) -> tuple[float, float, float]:
    # Four rows for each of the learned places, which are three numbers.
    gathered = math.prod(learned.shape) / 3 * 4 * values.shape[-1] / heads * values.element_size()
    return 0, 1, gathered


def _attention_by_rows(query: Tensor, *_: Tensor) -> tuple[float, float, float]:
    side = query.shape[-2]
    return 4 * query.numel() * side * side, OWN_ATTENTION, 0


WORK: dict[str, Callable[..., tuple[float, float, float]]] = {
    "attention_by_rows": _attention_by_rows,
    "deformable_sums": _deformable_sums,
}
"""By the operation's name, of its arguments: FLOPs, how many a second, and bytes of rows picked out."""
