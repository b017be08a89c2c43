"""Labels, codes and features of the same keys in two data sets, number by number."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import iter_stored, sample_at
from patchmint.shards.endings import FEATURES, SELECTOR
from patchmint.shards.reader import StoredSample
from patchmint.types import Integers, Progress

Array = npt.NDArray[np.generic]
Arrays = Sequence[Array]

_BLOCK = 1024


@dataclass(frozen=True)
class Flips:
    """A sample whose labels changed.

    Attributes:
        key: its name.
        on: patches that went from 0 to 1.
        off: patches that went from 1 to 0.
        patches: of all its texts, in all its images.
    """

    key: str
    on: int
    off: int
    patches: int


@dataclass
class Codes:
    """How far the codes of two builds agree.

    Attributes:
        obstacle: why they can't be compared; empty where they can, or where neither build has any.
        compared: samples.
        other_shape: samples passed over, since their codes have another shape, or they have other images.
        cells: of the compared samples.
        equal: cells with the same code.
        changed: samples with any other code.
    """

    obstacle: str = ""
    compared: int = 0
    other_shape: int = 0
    cells: int = 0
    equal: int = 0
    changed: int = 0

    @property
    def agreement(self) -> float | None:
        """Share of equal cells; None where none were compared."""
        return self.equal / self.cells if self.cells else None

    def add(self, _: str, a: Arrays, b: Arrays) -> None:
        """Compare the codes of a sample's images."""
        if _shapes(a) != _shapes(b):
            self.other_shape += 1
            return
        before, after = _flat(a), _flat(b)
        equal = int(np.count_nonzero(before == after))
        self.compared += 1
        self.cells += before.size
        self.equal += equal
        self.changed += equal < before.size


@dataclass
class Labels:
    """How far the labels of two builds agree.

    Attributes:
        top: so many samples with the most flips are named.
        obstacle: why they can't be compared; empty where they can, or where neither build has any.
        compared: samples.
        other_shape: samples passed over: another number of texts, views or images.
        patches: of the compared samples, of all their texts.
        both: patches that are 1 in both.
        on: patches that went from 0 to 1.
        off: patches that went from 1 to 0.
        changed: samples with any flip.
    """

    top: int = 20
    obstacle: str = ""
    compared: int = 0
    other_shape: int = 0
    patches: int = 0
    both: int = 0
    on: int = 0
    off: int = 0
    changed: int = 0
    _most: list[tuple[int, int, Flips]] = field(default_factory=list, repr=False)

    @property
    def agreement(self) -> float | None:
        """Share of equal patches; None where none were compared."""
        return 1 - (self.on + self.off) / self.patches if self.patches else None

    @property
    def iou(self) -> float | None:
        """Intersection over union of what is 1, over all samples; None where nothing is."""
        union = self.both + self.on + self.off
        return self.both / union if union else None

    @property
    def most(self) -> list[Flips]:
        """The samples with the most flips, those first."""
        return [flips for *_, flips in sorted(self._most, reverse=True)]

    def add(self, key: str, a: Arrays, b: Arrays) -> None:
        """Compare the selectors of a sample's images."""
        if _shapes(a) != _shapes(b):
            self.other_shape += 1
            return
        before, after = _flat(a) != 0, _flat(b) != 0
        flips = Flips(key, int((~before & after).sum()), int((before & ~after).sum()), before.size)
        self.compared += 1
        self.patches += before.size
        self.both += int((before & after).sum())
        self.on += flips.on
        self.off += flips.off
        if flips.on or flips.off:
            self.changed += 1
            heapq.heappush(self._most, (flips.on + flips.off, -self.compared, flips))
            if len(self._most) > self.top:
                heapq.heappop(self._most)


@dataclass
class Features:
    """How far the features of two builds agree.

    Attributes:
        obstacle: why they can't be compared; empty where they can, or where neither build has any.
        compared: samples.
        other_shape: samples passed over, since their features have another shape, or they have other images.
        changed: samples with any other number.
        largest: difference of two numbers.
    """

    obstacle: str = ""
    compared: int = 0
    other_shape: int = 0
    changed: int = 0
    largest: float = 0.0

    def add(self, _: str, a: Arrays, b: Arrays) -> None:
        """Compare the features of a sample's images."""
        if _shapes(a) != _shapes(b):
            self.other_shape += 1
            return
        largest = float(np.abs(_flat(a).astype(np.float32) - _flat(b).astype(np.float32)).max(initial=0))
        self.compared += 1
        self.changed += largest > 0
        self.largest = max(self.largest, largest)


def _shapes(arrays: Arrays) -> list[tuple[int, ...]]:
    return [array.shape for array in arrays]


def _flat(arrays: Arrays) -> Array:
    return np.concatenate([array.ravel() for array in arrays])


def compare_members(
    a: Dataset, b: Dataset, pairs: tuple[Integers, Integers], top: int, progress: Progress | None = None
) -> tuple[Labels, Codes, Features]:
    """Compare labels, codes and features of the same samples; only those members are read.

    Args:
        a: one data set.
        b: the other.
        pairs: positions in A, ascending, and those of the same keys in B.
        top: so many samples with the most flips are named.
        progress: told of samples.

    Raises:
        ShardError: a sample is damaged.
        StorageError: one can't be read.
    """
    labels, codes, features = Labels(top), Codes(), Features()
    if not len(pairs[0]):
        return labels, codes, features
    first = (sample_at(a, int(pairs[0][0])), sample_at(b, int(pairs[1][0])))
    labels.obstacle = _labels_obstacle(*first)
    codes.obstacle = _codes_obstacle(*first)
    features.obstacle = _lacking("features", FEATURES, *first)
    tokens = (_tokens_ending(first[0]), _tokens_ending(first[1]))
    parts = {
        endings: part
        for part, endings in ((labels, (SELECTOR,) * 2), (codes, tokens), (features, (FEATURES,) * 2))
        if not part.obstacle and endings[0] and first[0].arrays(endings[0])
    }
    if not parts:
        return labels, codes, features
    for one, other in _read_pairs(a, b, pairs, list(parts), progress):
        for endings, part in parts.items():
            if (before := one.arrays(endings[0])) and (after := other.arrays(endings[1])):
                part.add(one.key, before, after)
    return labels, codes, features


def _read_pairs(
    a: Dataset,
    b: Dataset,
    pairs: tuple[Integers, Integers],
    endings: Sequence[tuple[str, str]],
    progress: Progress | None,
) -> Iterator[tuple[StoredSample, StoredSample]]:
    """In blocks, since B may have the samples in another order: each data set is read from front to back."""
    wanted = list(zip(*endings, strict=True))
    total = len(pairs[0])
    for begin in range(0, total, _BLOCK):
        in_a, in_b = pairs[0][begin : begin + _BLOCK], pairs[1][begin : begin + _BLOCK]
        others = dict(iter_stored(b, np.sort(in_b), wanted[1]))
        for number, (_, sample) in enumerate(iter_stored(a, in_a, wanted[0])):
            yield sample, others.pop(int(in_b[number]))
            if progress is not None:
                progress(begin + number + 1, total)


def _lacking(what: str, ending: str, a: StoredSample, b: StoredSample) -> str:
    has_a, has_b = bool(a.arrays(ending)), bool(b.arrays(ending))
    return "" if has_a == has_b else f"{'A' if has_b else 'B'} has no {what}"


def _labels_obstacle(a: StoredSample, b: StoredSample) -> str:
    if lacking := _lacking("labels", SELECTOR, a, b):
        return lacking
    first = [sample.images[0].grid for sample in (a, b)]
    grids = [(grid.rows, grid.cols, grid.fit) for grid in first]
    told = [grid.placement_json for grid in first]
    if a.arrays(SELECTOR) and (grids[0] != grids[1] or (all(told) and told[0] != told[1])):
        shown = ["{} x {} patches ({})".format(*grid) for grid in grids]
        return f"other grids: {shown[0]} in A, {shown[1]} in B"
    return ""


def _codes_obstacle(a: StoredSample, b: StoredSample) -> str:
    tokens = [sample.key_json.tokens for sample in (a, b)]
    if bool(tokens[0].member) != bool(tokens[1].member):
        return f"{'B' if tokens[0].member else 'A'} has no codes"
    if (tokens[0].grid, tokens[0].codebook_sizes) != (tokens[1].grid, tokens[1].codebook_sizes):
        shown = [f"{_by(part.grid)} cells of {_by(part.codebook_sizes)} codes" for part in tokens]
        return f"other codes: {shown[0]} in A, {shown[1]} in B"
    return ""


def _by(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))


def _tokens_ending(sample: StoredSample) -> str:
    member = sample.key_json.tokens.member
    return f"{member}.npy" if member else ""
