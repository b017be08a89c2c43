"""Masks of instances: the interface that patch labels need, and ordinary masks as COCO RLE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from patchmint.errors import PluginError
from patchmint.geometry.coverage import coverage_share
from patchmint.geometry.placement import Floats, Placement
from patchmint.geometry.rle import decode_mask, union
from patchmint.types import Rle


class Masks(Protocol):
    """The masks of one image's instances, in whatever form they came.

    Patch labels need to know how much of each cell they cover, and mostly nothing else; a segmenter may be able to tell
    without ever making a mask of the image's size. `RleMasks` holds ordinary masks.
    """

    def __len__(self) -> int: ...

    def coverage(self, members: Sequence[int], placement: Placement) -> Floats:
        """Share of each cell's area under the union of some of the masks: `placement.shape`, 0..1.

        Exactly 0 where they don't overlap the cell; what of a cell lies outside the image counts as not covered.
        """
        ...

    def rles(self) -> tuple[Rle, ...]:
        """All masks as COCO RLE, of one size; they cover the image's whole extent."""
        ...


class RleMasks:
    """A `Masks` of COCO RLEs. Their size may be smaller than the image's: they cover its whole extent.

    Raises:
        PluginError: the masks differ in size.
    """

    def __init__(self, rles: Sequence[Rle]) -> None:
        if len({tuple(rle["size"]) for rle in rles}) > 1:
            raise PluginError("the masks of one image have several sizes; they must have one")
        self._rles = tuple(rles)

    def __len__(self) -> int:
        return len(self._rles)

    def coverage(self, members: Sequence[int], placement: Placement) -> Floats:
        """Share of each cell's area under the union of some of the masks; see `Masks`."""
        if len(members) == 0:
            return np.zeros(placement.shape)
        return coverage_share(decode_mask(union([self._rles[member] for member in members])), placement)

    def rles(self) -> tuple[Rle, ...]:
        """All masks."""
        return self._rles
