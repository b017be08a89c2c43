"""What people drew for a text: boxes instead of a detector's, masks instead of a masker's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt

from patchmint.errors import InputError
from patchmint.geometry.coverage import coverage_share
from patchmint.geometry.placement import Floats, Placement
from patchmint.geometry.rle import Masks, RleMasks, bounding_box, encode_masks, fill_boxes
from patchmint.interfaces import Detections
from patchmint.types import UNKNOWN_SCORE, Instance, Rle, Size, Text


def given_boxes(texts: Sequence[Text], size: Size) -> Detections:
    """Instances without masks: their boxes, cut off at the image; what is left of none is left out.

    Args:
        texts: of one image.
        size: its (height, width).
    """
    found = [(number, each) for number, text in enumerate(texts) for each in text.instances if each.mask is None]
    boxes = np.array([each.box for _, each in found], np.float32).reshape(-1, 4).clip(0, (*size[::-1], *size[::-1]))
    return _detections(texts, found, boxes).only(np.all(boxes[:, 2:] > boxes[:, :2], axis=1))


def given_masks(texts: Sequence[Text], size: Size) -> tuple[Detections, Masks]:
    """Instances with masks, and boxes around these; empty masks are left out.

    Args:
        texts: of one image.
        size: its (height, width).

    Raises:
        InputError: a mask is damaged, or of another size than the image.
    """
    drawn = [(number, each, each.mask) for number, text in enumerate(texts) for each in text.instances if each.mask]
    if any(tuple(mask["size"]) != size for _, _, mask in drawn):
        raise InputError(f"a mask isn't of the image's size {size} (height, width), upright")
    boxes = np.array([bounding_box(mask) for _, _, mask in drawn], np.float32).reshape(-1, 4)
    full: npt.NDArray[np.bool_] = np.any(boxes, axis=1)
    found = _detections(texts, [(number, each) for number, each, _ in drawn], boxes).only(full)
    return found, RleMasks([mask for _, _, mask in compress(drawn, full)])


def _detections(
    texts: Sequence[Text], found: Sequence[tuple[int, Instance]], boxes: npt.NDArray[np.float32]
) -> Detections:
    """As a detector's. An instance whose span isn't known belongs to its text's only phrase, or else to all of it."""
    wholes = [text.phrases[0] if len(text.phrases) == 1 else (0, len(text.content)) for text in texts]
    return Detections(
        boxes=boxes,
        scores=np.full(len(found), UNKNOWN_SCORE, np.float32),
        spans=np.array([each.span or wholes[number] for number, each in found], np.int64).reshape(-1, 2),
        text_index=np.array([number for number, _ in found], np.int64),
    )


@dataclass(frozen=True)
class BoxMasks:
    """A `Masks` of the boxes themselves (`fill_boxes`).

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
        if len(members) == 0:
            return np.zeros(placement.shape)
        return coverage_share(fill_boxes(self.boxes[list(members)], self.size), placement)

    def rles(self) -> tuple[Rle, ...]:
        """All masks."""
        return tuple(encode_masks(fill_boxes(box[None], self.size)[None])[0] for box in self.boxes)


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
