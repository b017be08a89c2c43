"""What the demo's figures must reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Limit:
    """A limit of one figure.

    Attributes:
        bound: the least that it may be; or the most.
        most: whether it is the most.
        unit: of the figure; empty for shares.
        meaning: what the figure says.
    """

    bound: float
    meaning: str
    most: bool = False
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether a figure reaches it; NaN (there was nothing to judge) does."""
        return math.isnan(value) or (value <= self.bound if self.most else value >= self.bound)

    def shown(self, value: float) -> str:
        """A figure as people read it."""
        return (
            "nothing to judge" if math.isnan(value) else f"{value:.3f}" if not self.unit else f"{value:.1f} {self.unit}"
        )


LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        "f1": Limit(0.90, "patches of texts that name something present, F1"),
        "iou": Limit(0.85, "the same, IoU"),
        "absent_rate": Limit(0.05, "absent things that anything was found for", most=True),
        "mask_iou": Limit(0.85, "masks of true boxes, IoU"),
        "psnr": Limit(22.0, "pictures drawn from their codes", unit="dB"),
        "codes_used": Limit(0.5, "codes of the codebook that occur"),
    }
)
"""By figure, in the order of the table."""
