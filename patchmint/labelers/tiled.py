"""Small things in large images: the whole image is looked at, and then its tiles, whose findings are merged."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from patchmint.geometry.rle import ChosenMasks, Masks, RleMasks, decode_mask, encode_masks
from patchmint.interfaces import Instances
from patchmint.labelers.given import JoinedMasks
from patchmint.labelers.grounded_sam import GroundedSam, Prepared
from patchmint.labelers.grounding_dino.detector import overlaps
from patchmint.types import RgbImage, Rle, Size, Text

_AT_ONCE = 16
"""Tiles; a batch of large images has hundreds."""
_EDGE = 64
"""A box that comes nearer to an inner edge of its tile than this part of the tile's side is of a thing cut in two."""
_SAME = 0.5
"""Boxes of one text from different tiles that overlap by more (IoU), with words in common, are of one thing."""


@dataclass(frozen=True)
class TiledSegmenter:
    """A `Segmenter` that also looks at tiles, each made as large for the models as a whole image is.

    Tiles overlap by at least a half: what is no larger lies whole in one of them. Larger things are found in the
    whole image; of a thing that is found several times, the best box stays. An image no larger than a tile has none.

    Attributes:
        segmenter: looks at images and tiles.
        side: of a tile, in the image's pixels.
    """

    segmenter: GroundedSam
    side: int

    def prepare(self, image: RgbImage) -> list[Prepared]:
        """Resize an image and its tiles; for any thread."""
        return [self.segmenter.prepare(each) for each in (image, *(tile for _, tile in self._tiles(image)))]

    def segment(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        prepared: Sequence[list[Prepared]] | None = None,
    ) -> list[Instances]:
        """Find what each text talks about; see `patchmint.interfaces.Segmenter`."""
        ready = [self.prepare(image) for image in images] if prepared is None else prepared
        whole = self.segmenter.segment(images, texts, [first for first, *_ in ready])
        rows = zip(whole, images, texts, ready, strict=True)
        return [self._with_tiles(found, image, asked, parts[1:]) for found, image, asked, parts in rows]

    def _with_tiles(
        self, found: Instances, image: RgbImage, texts: Sequence[Text], prepared: Sequence[Prepared]
    ) -> Instances:
        tiles = list(self._tiles(image))
        asked = np.array([index for index, text in enumerate(texts) if not text.instances], np.int64)
        if not tiles or not len(asked):
            return found
        parts = [found]
        for start in range(0, len(tiles), _AT_ONCE):
            some = tiles[start : start + _AT_ONCE]
            wanted = [[texts[index] for index in asked]] * len(some)
            answers = self.segmenter.segment([tile for _, tile in some], wanted, prepared[start : start + _AT_ONCE])
            for ((top, left), _), answer in zip(some, answers, strict=True):
                kept = _uncut(answer.boxes, (top, left), answer.image_size, found.image_size)
                if len(kept):
                    parts.append(_moved(answer, kept, asked, (top, left), found.image_size))
        return _merged(parts)

    def _tiles(self, image: RgbImage) -> Iterator[tuple[tuple[int, int], RgbImage]]:
        """Each tile with its place (top, left), row by row."""
        tops, lefts = (self._starts(length) for length in image.shape[:2])
        if len(tops) * len(lefts) > 1:
            for top, left in product(tops, lefts):
                yield (top, left), image[top : top + self.side, left : left + self.side]

    def _starts(self, length: int) -> list[int]:
        """Where tiles begin along a side of that length, evenly spread."""
        beyond = max(0, length - self.side)
        steps = -(-beyond // (self.side // 2))
        return [beyond * number // max(1, steps) for number in range(steps + 1)]

    def rehearse(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        boxes: int,
        prepared: Sequence[list[Prepared]] | None = None,
    ) -> None:
        """As `GroundedSam.rehearse`: tiles come in batches no larger than those of the images."""
        whole = [first for first, *_ in prepared] if prepared is not None else None
        self.segmenter.rehearse(images, texts, boxes, whole)

    def batch_key(self, size: Size) -> Hashable:
        """As `GroundedSam.batch_key`."""
        return self.segmenter.batch_key(size)


def _uncut(boxes: npt.NDArray[np.float32], place: tuple[int, int], tile: Size, image: Size) -> list[int]:
    """Numbers of the boxes that don't reach an edge of the tile that isn't one of the image."""
    (top, left), (height, width) = place, tile
    near = max(tile) / _EDGE
    least = np.array([near if left else 0, near if top else 0], np.float32)
    most = np.array(
        [
            width - (near if left + width < image[1] else 0),
            height - (near if top + height < image[0] else 0),
        ],
        np.float32,
    )
    inside = (boxes[:, :2] >= least) & (boxes[:, 2:] <= most)
    return [int(number) for number in np.flatnonzero(inside.all(axis=1))]


def _moved(
    found: Instances, kept: list[int], asked: npt.NDArray[np.int64], place: tuple[int, int], size: Size
) -> Instances:
    """Some of a tile's instances, as the whole image's."""
    top, left = place
    rles, masks = found.masks.rles(), np.zeros((1, *size), np.uint8)
    pasted: list[Rle] = []
    for number in kept:
        masks[0, top : top + found.image_size[0], left : left + found.image_size[1]] = decode_mask(rles[number])
        pasted += encode_masks(masks)
    return Instances(
        image_size=size,
        masks=RleMasks(pasted),
        text_index=asked[found.text_index[kept]],
        scores=found.scores[kept],
        boxes=found.boxes[kept] + np.array([left, top, left, top], np.float32),
        spans=found.spans[kept],
        origins=tuple(found.origins[number] for number in kept),
    )


def _merged(parts: Sequence[Instances]) -> Instances:
    """The instances of an image and its tiles, each thing once; texts in order, best first within each."""

    def joined(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    masks: Masks = parts[0].masks
    for part in parts[1:]:
        masks = JoinedMasks(masks, part.masks)
    texts, scores, boxes, spans = map(joined, ("text_index", "scores", "boxes", "spans"))
    origin = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    alike = (
        (overlaps(boxes, boxes) > _SAME)
        & (texts[:, None] == texts)
        & (origin[:, None] != origin)
        & (spans[:, None, 0] < spans[:, 1])
        & (spans[:, 0] < spans[:, None, 1])
    )
    kept = np.zeros(len(scores), dtype=np.bool_)
    for number in np.argsort(-scores, kind="stable"):
        kept[number] = not (kept & alike[number]).any()
    order = np.lexsort((-scores, texts))
    order = order[kept[order]]
    origins = [origin for part in parts for origin in part.origins]
    return replace(
        parts[0],
        masks=ChosenMasks(masks, tuple(order.tolist())),
        text_index=texts[order],
        scores=scores[order],
        boxes=boxes[order],
        spans=spans[order],
        origins=tuple(origins[number] for number in order),
    )
