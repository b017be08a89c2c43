"""Small things in large images: the whole image is looked at, and then its tiles, whose findings are merged."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product

import numpy as np
import numpy.typing as npt

from patchmint.geometry.rle import RleMasks, decode_mask, encode_masks
from patchmint.interfaces import Detections, Instances
from patchmint.labelers.box_rules import Loss, overlaps
from patchmint.labelers.given import JoinedMasks
from patchmint.labelers.grounded_sam import GroundedSam, Prepared
from patchmint.types import Integers, RgbImage, Rle, Size, Text

_AT_ONCE = 16
"""Tiles; a batch of large images has hundreds."""
_EDGE = 64
"""A box that comes nearer to an inner edge of its tile than this part of the tile's side is of a thing cut in two."""
_SAME = 0.5
"""Boxes of one text from different tiles that overlap by more (IoU), with words in common, are of one thing."""


@dataclass(frozen=True)
class Tile:
    """A part of an image, or all of it.

    Attributes:
        side: 1 for the smallest tiles, 2 for those of twice their side, and so on.
        top, left, bottom, right: its edges, in pixels of the image.
        inner: XYXY, within which a box must lie if it isn't of a thing that an edge of the tile cuts.
    """

    side: int
    top: int
    left: int
    bottom: int
    right: int
    inner: tuple[float, float, float, float]

    @classmethod
    def of(cls, side: int, top: int, left: int, bottom: int, right: int, image: Size) -> Tile:
        """The tile with these edges in an image of (height, width)."""
        near = max(bottom - top, right - left) / _EDGE
        inner = (
            left + near if left else 0,
            top + near if top else 0,
            right - near if right < image[1] else right,
            bottom - near if bottom < image[0] else bottom,
        )
        return cls(side, top, left, bottom, right, inner)

    def of_image(self, image: RgbImage) -> RgbImage:
        """Its pixels."""
        return image[self.top : self.bottom, self.left : self.right]

    def has(self, boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Which of the boxes (N, 4), XYXY in the image, lie whole in it: bool (N,)."""
        left, top, right, bottom = self.inner
        return np.asarray(((boxes[:, :2] >= (left, top)) & (boxes[:, 2:] <= (right, bottom))).all(axis=1))


def tiles_of(image: Size, side: int) -> list[Tile]:
    """The tiles of an image of (height, width): small ones of a side, then of twice that side, until one would do.

    Tiles of one side overlap by at least a half, so that what is no larger than half of them lies whole in one.
    """
    found: list[Tile] = []
    factor = 1
    while factor * side < max(image):
        length = factor * side
        for top, left in product(_starts(image[0], length), _starts(image[1], length)):
            found.append(Tile.of(factor, top, left, min(top + length, image[0]), min(left + length, image[1]), image))
        factor *= 2
    return found


def _starts(length: int, side: int) -> list[int]:
    """Where tiles begin along a side of an image, evenly spread."""
    beyond = max(0, length - side)
    steps = -(-beyond // (side // 2))
    return [beyond * number // max(1, steps) for number in range(steps + 1)]


@dataclass(frozen=True)
class TiledSegmenter:
    """A `Segmenter` that also looks at tiles, each made as large for the models as a whole image is.

    A thing is found where it is seen whole, and largest: of what lies whole in a smaller tile, larger ones and the
    image say nothing, because they easily take several small things for a large one. Of a thing that several tiles
    find, the best box stays. An image no larger than a tile has none.

    Attributes:
        segmenter: looks at images and tiles.
        side: of the smallest tiles, in the image's pixels.
    """

    segmenter: GroundedSam
    side: int

    def prepare(self, image: RgbImage) -> list[Prepared]:
        """Resize an image and its tiles; for any thread."""
        tiles = tiles_of((image.shape[0], image.shape[1]), self.side)
        return [self.segmenter.prepare(each) for each in (image, *(tile.of_image(image) for tile in tiles))]

    def segment(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        prepared: Sequence[list[Prepared]] | None = None,
        losses: Sequence[list[Loss]] | None = None,
    ) -> list[Instances]:
        """Find what each text talks about; see `GroundedSam.segment`."""
        ready = [self.prepare(image) for image in images] if prepared is None else prepared
        whole = self.segmenter.segment(images, texts, [first for first, *_ in ready], losses)
        noted = [None] * len(images) if losses is None else losses
        rows = zip(whole, images, texts, ready, noted, strict=True)
        return [self._with_tiles(found, image, asked, parts[1:], lost) for found, image, asked, parts, lost in rows]

    def _with_tiles(
        self,
        found: Instances,
        image: RgbImage,
        texts: Sequence[Text],
        prepared: Sequence[Prepared],
        losses: list[Loss] | None,
    ) -> Instances:
        size = found.image_size
        tiles = tiles_of(size, self.side)
        asked = np.array([index for index, text in enumerate(texts) if not text.instances], np.int64)
        if not tiles or not len(asked):
            return found
        parts: list[tuple[Tile, Instances]] = []
        unconfirmed = set(found.unconfirmed)
        for start in range(0, len(tiles), _AT_ONCE):
            some = tiles[start : start + _AT_ONCE]
            wanted = [[texts[index] for index in asked]] * len(some)
            pixels = [tile.of_image(image) for tile in some]
            own: list[list[Loss]] = [[] for _ in some]
            answers = self.segmenter.segment(
                pixels, wanted, prepared[start : start + _AT_ONCE], own if losses is not None else None
            )
            for tile, answer, lost in zip(some, answers, own, strict=True):
                offset = np.array([tile.left, tile.top, tile.left, tile.top], np.float32)
                here = answer.boxes + offset
                has = tile.has(here)
                unconfirmed |= {(int(asked[text]), start, end) for text, start, end in answer.unconfirmed}
                if len(whole := np.flatnonzero(has)):
                    parts.append((tile, _moved(answer.only(whole), here[whole], asked, tile, size)))
                if losses is not None:
                    cut = Detections(answer.boxes, answer.scores, answer.spans, answer.text_index).only(~has)
                    numbers = np.array([*asked, len(texts)])  # the last: of negative phrases
                    losses += [each.moved(numbers, offset) for each in (*lost, Loss("tile-edge", cut))]
        everything = Tile.of(1 + max(tile.side for tile in tiles), 0, 0, *size, size)
        merged = _merged([(everything, found), *parts], tiles, asked, losses)
        there = np.concatenate([merged.text_index[:, None], merged.spans], axis=1).tolist()
        return replace(merged, unconfirmed=frozenset(unconfirmed - {tuple(name) for name in there}))

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


def _moved(found: Instances, boxes: npt.NDArray[np.float32], asked: Integers, tile: Tile, size: Size) -> Instances:
    """A tile's instances as the whole image's."""
    masks = np.zeros((1, *size), np.uint8)
    pasted: list[Rle] = []
    for rle in found.masks.rles():
        tile.of_image(masks[0])[:] = decode_mask(rle)
        pasted += encode_masks(masks)
    return Instances(size, RleMasks(pasted), asked[found.text_index], found.scores, boxes, found.spans, found.origins)


def _merged(
    parts: Sequence[tuple[Tile, Instances]], tiles: Sequence[Tile], asked: Integers, losses: list[Loss] | None = None
) -> Instances:
    """The instances of an image and its tiles, each thing once; texts in order, best first within each.

    Args:
        parts: the whole image's instances, then tiles', each with where they were found.
        tiles: all that were looked at.
        asked: numbers of the texts that they were looked at for.
        losses: what is dropped is added to it; None = nobody asks.
    """
    found = [part for _, part in parts]
    texts, scores, boxes, spans = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("text_index", "scores", "boxes", "spans")
    )
    source = np.repeat(np.arange(len(parts)), [len(part) for part in found])
    side = np.array([tile.side for tile, _ in parts])[source]
    alike = (
        (overlaps(boxes, boxes) > _SAME)
        & (texts[:, None] == texts)
        & (source[:, None] != source)
        & (spans[:, None, 0] < spans[:, 1])
        & (spans[:, 0] < spans[:, None, 1])
    )
    seen_larger = np.zeros(len(scores), dtype=np.bool_)
    for tile in tiles:
        seen_larger |= tile.has(boxes) & (tile.side < side)
    counts = ~seen_larger | ~np.isin(texts, asked)
    kept = np.zeros(len(scores), dtype=np.bool_)
    for number in np.argsort(-scores, kind="stable"):
        kept[number] = counts[number] and not (kept & alike[number]).any()
    if losses is not None:
        every = Detections(boxes, scores, spans, texts)
        losses += [Loss("smaller-tile", every.only(~counts)), Loss("other-tile", every.only(counts & ~kept))]
    order = np.lexsort((-scores, texts))
    everything = Instances(
        image_size=found[0].image_size,
        masks=JoinedMasks(found[0].masks, RleMasks([rle for part in found[1:] for rle in part.masks.rles()])),
        text_index=texts,
        scores=scores,
        boxes=boxes,
        spans=spans,
        origins=tuple(chain.from_iterable(part.origins for part in found)),
    )
    return everything.only(order[kept[order]])
