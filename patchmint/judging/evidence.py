"""What is known of a text's labels without any truth.

`cheap` costs no pass of a model. What one phrase names looks alike: cells under a label are compared, through stored
features or codes, with cells under the same words elsewhere in the data set, with the ring around the label, and with
the rest of the image. Beside that, scores, sizes, and overlaps. `agreement` is with what the same detector says when it
is asked again (`patchmint.judging.again`).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter, uniform_filter

from patchmint.datasets.dataset import Dataset
from patchmint.geometry import Placement, RleMasks, coverage_share
from patchmint.geometry.rle import area, fill_boxes
from patchmint.judging.metrics import Flags, Floats, overlaps
from patchmint.judging.plant import Label
from patchmint.shards.reader import StoredImage
from patchmint.types import UNKNOWN_SCORE, Box, Integers, Size

CHEAP = (
    *("score_least", "score_mean", "boxes_log"),
    *("inside_least", "inside_mean", "word_least", "edge_least", "foreign_most", "left_out_most"),
    *("size_most", "size_least", "fill_least", "overlap_most", "repeated_most"),
)
"""What is cheap to know of a text's labels."""

FULL = ("again_mean", "again_least", "box_mean", "box_least", "new_mean", "new_most")
"""What further passes of the detector say of them."""

_TABLE = 1 << 22
# Places for pairs of a word and a code, 16 MB; two that share a place are rare, and blur a little.
_WORDS = 1 << 16
_PRIOR = 20.0
# So many cells of background each word begins with.

_CELLS = 96
# A side of the grid on which areas of boxes are compared.
_PLANES = 8
# Sides of so many make 256 codes of features: few enough to be seen often, enough to tell things apart.
_FEW = 4
# Sizes of fewer labels don't say what is usual.

Boxes = tuple[tuple[Box, float], ...]
"""What a pass found for a text: boxes in pixels of the image, and scores."""

Again = tuple[Boxes, ...]
"""The same of each pass."""

Heard = Mapping[int, Again]
"""What passes find in an image, by the numbers of its texts."""


@dataclass(frozen=True, eq=False)
class Look:
    """What an image looks like, in cells.

    Attributes:
        size: (height, width) in pixels.
        placement: of the cells.
        shown: share of each cell that shows the image, (rows, cols).
        codes: different codes that occur, (K,).
        places: which of them each cell has, (rows, cols).
    """

    size: Size
    placement: Placement
    shown: Floats
    codes: Integers
    places: Integers

    @classmethod
    def of(cls, image: StoredImage, dataset: Dataset) -> Self | None:
        """That of a stored image, by its features where each cell of the labels' grid has one, else by its codes.

        None where there is neither, or nobody knows where the codes lie.
        """
        assert dataset.manifest is not None
        size, tokens = image_size(image), dataset.manifest.layout.tokens
        features = image.features
        placement = dataset.placement(image) if features is not None else None
        if features is not None and placement is not None and len(features) == math.prod(placement.shape):
            ids = _signs(features).reshape(placement.shape)
        elif tokens is not None and tokens.cells is not None and image.codes is not None:
            placement, ids = tokens.cells.place(size), image.codes.astype(np.int64)
            ids = ids[..., 0] if ids.ndim > 2 else ids  # of several codebooks the first
        else:
            return None
        found, places = np.unique(ids, return_inverse=True)
        return cls(size, placement, placement.inside, found, places.reshape(ids.shape))

    def under(self, label: Label) -> Floats:
        """Share of each cell that a label covers, (rows, cols)."""
        if label.mask is not None:
            return RleMasks([label.mask]).coverage([0], self.placement)
        return coverage_share(fill_boxes([label.phrase.box], self.size), self.placement)

    def counts(self, weights: Floats) -> Floats:
        """How much of each code there is under weights (rows, cols): (K,)."""
        return np.asarray(np.bincount(self.places.ravel(), weights.ravel(), len(self.codes)), np.float64)


def _signs(features: npt.NDArray[np.float16]) -> Integers:
    """Features (cells, channels) as codes: on which sides of some planes through their mean they lie."""
    values = features.astype(np.float32)
    sides = (values - values.mean(0)) @ _planes(values.shape[1]) > 0
    return np.asarray(sides @ (1 << np.arange(_PLANES)), np.int64)


@lru_cache(maxsize=4)
def _planes(channels: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((channels, _PLANES), np.float32)


def image_size(image: StoredImage) -> Size:
    """(height, width)."""
    return image.info.height, image.info.width


def words_of(phrase: str) -> tuple[str, ...]:
    """The words of a phrase, once each; plurals go with their singulars as far as an s tells."""
    return tuple(dict.fromkeys(word.rstrip("s") or word for word in re.findall(r"\w+", phrase.casefold())))


def _row(word: str) -> int:
    return zlib.crc32(word.encode())


Found = Mapping[int, Sequence[Label]]
"""Of an image what was found, by the numbers of its texts."""


@dataclass(frozen=True, eq=False)
class Added:
    """What an image adds to what is counted, which mustn't testify for the image itself.

    Attributes:
        counts: by word, how much of each of the image's codes there is under labels of that word: (K,).
        sizes: by word, the number of such labels, and the sums of their log sizes and of these squared: (3,).
    """

    counts: Mapping[str, Floats]
    sizes: Mapping[str, Floats]

    @classmethod
    def of(cls, look: Look | None, size: Size, found: Found) -> Self:
        """That of an image of which `size` is (height, width)."""
        counts: dict[str, Floats] = {}
        sizes: dict[str, Floats] = {}
        for label in (label for own in found.values() for label in own):
            value = _log_size(label, size)
            under = look.counts(look.under(label)) if look is not None else None
            for word in words_of(label.phrase.text):
                sizes[word] = sizes.get(word, 0) + np.array([1, value, value * value])
                if under is not None:
                    counts[word] = counts.get(word, 0) + under
        return cls(counts, sizes)


class Likeness:
    """Which codes and which sizes go with which words, counted over a data set; memory doesn't grow with it."""

    def __init__(self) -> None:
        self._pairs = np.zeros(_TABLE, np.float32)
        self._cells = np.zeros(_WORDS)
        self._sizes = np.zeros((3, _WORDS))
        self._background = np.zeros(_WORDS)

    def add(self, look: Look | None, added: Added) -> None:
        """Count an image."""
        if look is not None:
            np.add.at(self._background, look.codes % _WORDS, look.counts(look.shown))
            for word, counts in added.counts.items():
                np.add.at(self._pairs, _pairs(word, look.codes), counts)
                self._cells[_row(word) % _WORDS] += counts.sum()
        for word, sums in added.sizes.items():
            self._sizes[:, _row(word) % _WORDS] += sums

    def evidence(self, look: Look, word: str, own: Floats | None) -> Floats:
        """How much more often than elsewhere each cell's code stands under labels of a word: log odds (rows, cols).

        Args:
            look: of the image.
            word: of `words_of`.
            own: what the image itself has added for that word (K,), which mustn't testify.
        """
        counts = self._pairs[_pairs(word, look.codes)].astype(np.float64)
        cells = self._cells[_row(word) % _WORDS]
        if own is not None:
            counts, cells = np.maximum(counts - own, 0), max(cells - own.sum(), 0)
        usual = (self._background[look.codes % _WORDS] + 1) / (self._background.sum() + len(look.codes))
        odds = np.log((counts + _PRIOR * usual) / ((cells + _PRIOR) * usual))
        return np.asarray(odds[look.places])

    def size_of(self, label: Label, size: Size, own: Mapping[str, Floats]) -> float:
        """How unusual a label's size is for its words, in standard deviations, without the image's `own`."""
        value, found = _log_size(label, size), [0.0]
        for word in words_of(label.phrase.text):
            count, total, squares = (self._sizes[:, _row(word) % _WORDS] - own.get(word, 0)).tolist()
            if count >= _FEW:
                spread = math.sqrt(max(squares / count - (total / count) ** 2, 0.04))
                found.append((value - total / count) / spread)
        return max(found, key=abs)


def _pairs(word: str, codes: Integers) -> Integers:
    # Knuth's multiplicative hash, in 64 bits
    return np.asarray(
        ((codes ^ (_row(word) << 20)).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)) % _TABLE,
        np.int64,
    )


def _log_size(label: Label, size: Size) -> float:
    left, top, right, bottom = label.phrase.box
    return math.log(max((right - left) * (bottom - top), 1) / (size[0] * size[1]))


def cheap(likeness: Likeness, look: Look | None, size: Size, added: Added, found: Sequence[Label]) -> Floats:
    """What is cheap to know of a text's labels: float64 (len(CHEAP),), NaN where it isn't known.

    Args:
        likeness: of the data set.
        look: of the image; None where there are no codes.
        size: (height, width) of the image.
        added: what was counted of it.
        found: for the text; not empty.
    """
    told = dict.fromkeys(CHEAP, math.nan)
    scores = [each.phrase.score for each in found]
    if UNKNOWN_SCORE not in scores:
        told |= {"score_least": min(scores), "score_mean": sum(scores) / len(scores)}
    told["boxes_log"] = math.log(len(found))
    sizes = [likeness.size_of(each, size, added.sizes) for each in found]
    told |= {"size_most": max(sizes), "size_least": min(sizes)}
    told["fill_least"] = min(_fill(each) for each in found)
    boxes = [each.phrase.box for each in found]
    ious = np.triu(overlaps(boxes, boxes, [False] * len(boxes)), 1)
    spans = np.array([(each.phrase.start, each.phrase.end) for each in found])
    same = (spans[:, None] == spans).all(-1)
    told |= {"overlap_most": ious[~same].max(initial=0), "repeated_most": ious[same].max(initial=0)}
    if look is not None:
        told |= _looks(likeness, look, added.counts, found)
    return np.array([told[name] for name in CHEAP])


def _fill(label: Label) -> float:
    left, top, right, bottom = label.phrase.box
    return 1.0 if label.mask is None else min(area(label.mask) / max((right - left) * (bottom - top), 1), 1.0)


def _looks(likeness: Likeness, look: Look, own: Mapping[str, Floats], found: Sequence[Label]) -> dict[str, float]:
    shown = look.shown > 0.5
    maps: dict[str, list[Floats]] = {}
    unders = [look.under(each) for each in found]
    inside, word_least, edge, foreign, left_out = [], [], [], [], []
    for label, under in zip(found, unders, strict=True):
        words = words_of(label.phrase.text)
        if label.phrase.text not in maps:
            maps[label.phrase.text] = [likeness.evidence(look, word, own.get(word)) for word in words]
        if not maps[label.phrase.text] or not under.any():
            continue
        each = np.stack(maps[label.phrase.text])
        means = (each * under).sum((1, 2)) / under.sum()
        evidence = each.mean(0)
        inside.append(means.mean())
        word_least.append(means.min())
        ring = (maximum_filter(under, 3) > 0) & (under == 0) & shown
        edge.append(means.mean() - (evidence[ring].mean() if ring.any() else 0))
        foreign.append(float((under * (evidence < 0)).sum() / under.sum()))
        covered = np.max(
            [u for u, other in zip(unders, found, strict=True) if other.phrase.text == label.phrase.text], 0
        )
        smooth = uniform_filter(evidence, 3)
        free = shown & (maximum_filter(covered, 3) == 0)
        left_out.append((smooth[free].max() if free.any() else -5.0) - means.mean())
    if not inside:
        return {}
    return {
        "inside_least": min(inside),
        "inside_mean": float(np.mean(inside)),
        "word_least": min(word_least),
        "edge_least": min(edge),
        "foreign_most": max(foreign),
        "left_out_most": max(left_out),
    }


def agreement(found: Sequence[Label], again: Again, size: Size) -> Floats:
    """How far passes agree with a text's labels: float64 (len(FULL),), shares 0..1.

    Args:
        found: for the text.
        again: what each pass found.
        size: (height, width) of the image.
    """
    own = [each.phrase.box for each in found]
    areas, boxes, new = [], [], []
    for each in again:
        theirs = [box for box, _ in each]
        areas.append(_iou(_area(own, size), _area(theirs, size)))
        ious = overlaps(own, theirs, [False] * len(theirs))
        boxes.append(ious.max(1, initial=0).min(initial=1))
        new.append(1 - ious.max(0, initial=0).min(initial=1))
    return np.array([np.mean(areas), min(areas), np.mean(boxes), min(boxes), np.mean(new), max(new)])


def _area(boxes: Sequence[Box], size: Size) -> Flags:
    scale = _CELLS / np.array([size[1], size[0]] * 2)
    scaled = np.array(boxes).reshape(-1, 4) * scale
    return fill_boxes(np.clip(scaled, 0, _CELLS), (_CELLS, _CELLS)) > 0


def _iou(one: Flags, other: Flags) -> float:
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else 1.0
