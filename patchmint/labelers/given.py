"""Boxes and masks that come with a text, instead of a detector's and a masker's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchmint.errors import InputError
from patchmint.geometry.coverage import coverage_share
from patchmint.geometry.placement import Floats, Placement
from patchmint.geometry.rle import Masks, RleMasks, bounding_box, encode_masks
from patchmint.labelers.grounding_dino.detector import Detections
from patchmint.types import UNKNOWN_SCORE, Rle, Size, Text


def given_boxes(texts: Sequence[Text], size: Size) -> Detections:
    """The boxes of those texts that have boxes and no masks, cut off at the image; what is left of none is left out.

    Each belongs to its text's only phrase, or else to the whole text: which phrase it belongs to isn't known.

    Args:
        texts: of one image.
        size: its (height, width).
    """
    boxes = [[] if text.masks else list(text.boxes) for text in texts]
    cut = [np.array(each, np.float32).reshape(-1, 4).clip(0, (*size[::-1], *size[::-1])) for each in boxes]
    return _detections(texts, [each[(each[:, 2:] > each[:, :2]).all(axis=1)] for each in cut])


def given_masks(texts: Sequence[Text], size: Size) -> tuple[Detections, Masks]:
    """The masks of those texts that have some, and boxes around them; empty masks are left out.

    Args:
        texts: of one image.
        size: its (height, width).

    Raises:
        InputError: a mask is damaged, or of another size than the image.
    """
    boxes: list[npt.NDArray[np.float32]] = []
    kept: list[Rle] = []
    for text in texts:
        around = [bounding_box(mask) for mask in text.masks]
        if any(tuple(mask["size"]) != size for mask in text.masks):
            raise InputError(f"a mask isn't of the image's size {size} (height, width), upright")
        kept += [mask for mask, box in zip(text.masks, around, strict=True) if box.any()]
        boxes.append(np.array([box for box in around if box.any()], np.float32).reshape(-1, 4))
    return _detections(texts, boxes), RleMasks(kept)


def _detections(texts: Sequence[Text], boxes: Sequence[npt.NDArray[np.float32]]) -> Detections:
    counts = [len(each) for each in boxes]
    spans = [text.phrases[0] if len(text.phrases) == 1 else (0, len(text.content)) for text in texts]
    return Detections(
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        scores=np.full(sum(counts), UNKNOWN_SCORE, np.float32),
        spans=np.repeat(np.array(spans, np.int64).reshape(-1, 2), counts, axis=0),
        text_index=np.repeat(np.arange(len(texts)), counts),
    )


@dataclass(frozen=True)
class BoxMasks:
    """A `Masks` of the boxes themselves: the pixels whose centres lie in each, and at least one.

    Attributes:
        boxes: float32 (N, 4), XYXY in the image.
        size: (height, width) of the image.
    """

    boxes: npt.NDArray[np.float32]
    size: Size

    def __len__(self) -> int:
        return len(self.boxes)

    def coverage(self, members: Sequence[int], placement: Placement) -> Floats:
        """Share of each cell's area under the union of some of the masks; see `Masks`."""
        return coverage_share(self._filled(members), placement) if len(members) else np.zeros(placement.shape)

    def rles(self) -> tuple[Rle, ...]:
        """All masks."""
        return tuple(encode_masks(self._filled([member])[None])[0] for member in range(len(self)))

    def _filled(self, members: Sequence[int]) -> npt.NDArray[np.uint8]:
        height, width = self.size
        filled = np.zeros(self.size, np.uint8)
        for left, top, right, bottom in np.ceil(self.boxes[list(members)] - 0.5).astype(int).tolist():
            x, y = min(left, width - 1), min(top, height - 1)
            filled[y : max(bottom, y + 1), x : max(right, x + 1)] = 1
        return filled


@dataclass(frozen=True)
class JoinedMasks:
    """A `Masks` of two others, one after the other, both of the image's size."""

    first: Masks
    second: Masks

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def coverage(self, members: Sequence[int], placement: Placement) -> Floats:
        """Share of each cell's area under the union of some of the masks; see `Masks`."""
        count = len(self.first)
        if all(member < count for member in members):
            return self.first.coverage(members, placement)
        if all(member >= count for member in members):
            return self.second.coverage([member - count for member in members], placement)
        return RleMasks(self.rles()).coverage(members, placement)

    def rles(self) -> tuple[Rle, ...]:
        """All masks."""
        return (*self.first.rles(), *self.second.rles())
