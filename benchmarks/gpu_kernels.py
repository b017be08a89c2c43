"""What the project's own kernels do, for `gpu_counts.py`, which sees one operation each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor


def _deformable_sums(values: Tensor, learned: Tensor, _: Tensor, heads: int, *__: Any) -> tuple[float, float]:
    # Four rows for each of the learned places, which are three numbers.
    gathered = math.prod(learned.shape) / 3 * 4 * values.shape[-1] / heads * values.element_size()
    return 0, gathered


WORK: dict[str, Callable[..., tuple[float, float]]] = {"deformable_sums": _deformable_sums}
"""By the operation's name, of its arguments: FLOPs, and bytes of rows picked out."""
