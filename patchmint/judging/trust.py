"""How far each text's labels can be relied on, 0..1, without any truth: from agreement.

`cheap` agreement costs no pass of a model. What one phrase names looks alike: cells under a label are compared, through
stored features or codes, with cells under the same words elsewhere in the data set, with the ring around the label, and
with the rest of the image. Beside that, scores, sizes, and overlaps. `full` adds what the same detector says of the
image flipped, at another scale, and asked in another way (`patchmint.judging.again`).

What this is worth on a data set is learnt on that data set: errors are planted into a copy of its labels
(`patchmint.judging.plant`), and a logistic model learns to tell them from what wasn't touched.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.ndimage import maximum_filter, uniform_filter

from patchmint.datasets.dataset import Dataset, spread
from patchmint.datasets.reader import iter_stored
from patchmint.errors import InputError
from patchmint.geometry import Placement, RleMasks, coverage_share, coverage_to_uint8
from patchmint.geometry.rle import area, fill_boxes
from patchmint.judging.judge import true_patches
from patchmint.judging.metrics import Flags, Floats, f1_and_iou, overlaps
from patchmint.judging.plant import Label, Planted, Planter, area_of, found_of
from patchmint.judging.truth import ImageName, Truth
from patchmint.labelers.patches import select_patches
from patchmint.shards.endings import DOCUMENT, FEATURES, IMAGE, INSTANCES
from patchmint.shards.reader import StoredImage, StoredSample
from patchmint.types import UNKNOWN_SCORE, Box, Integers, Progress, Size

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

LEARNT = 2000
"""Samples that trust is learnt from at most."""

_CELLS = 96
# A side of the grid on which areas of boxes are compared.
_BATCH = 16
# Samples whose images the detector is asked about at once.
_STEPS = 30
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
        size, tokens = _size(image), dataset.manifest.layout.tokens
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


def _size(image: StoredImage) -> Size:
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


class TrustModel(BaseModel):
    """From what is known of a text's labels to their trust: logistic regression.

    Attributes:
        names: of what must be known.
        means, scales: of each over the texts that were learnt from; what isn't known counts as the mean.
        weights: of each, standardised; the last is that of 1.
        texts: that were learnt from.
        silent: trust of a text for which nothing was found, where no passes tell.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    names: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    texts: int = 0
    silent: float = 0.5

    @classmethod
    def fit(
        cls, names: Sequence[str], known: Floats, right: Floats, counts: Floats | None = None, ridge: float = 1.0
    ) -> Self:
        """Learn by Newton's method.

        Args:
            names: of what is known.
            known: (N, len(names)), NaN where it isn't.
            right: (N,), 0..1, how right each text's labels are.
            counts: (N,), how often each counts; None: once.
            ridge: how strongly weights are held near 0.
        """
        with np.errstate(invalid="ignore"):
            unknown = np.isnan(known).all(0)
            safe = np.where(unknown, 0.0, known)
            means, scales = np.nanmean(safe, 0), np.nanstd(safe, 0)
        scales = np.where(scales > 1e-9, scales, 1.0)
        inputs = _inputs(known, means, scales)
        weights = np.zeros(inputs.shape[1])
        held = np.full(len(weights), ridge)
        held[-1] = 0
        times = np.ones(len(known)) if counts is None else counts
        for _ in range(_STEPS):
            chance = _sigmoid(inputs @ weights)
            slope = inputs.T @ (times * (right - chance)) - held * weights
            curve = (inputs * (times * chance * (1 - chance))[:, None]).T @ inputs + np.diag(held + 1e-6)
            weights = weights + np.linalg.solve(curve, slope)
        return cls(
            names=tuple(names),
            means=tuple(means.tolist()),
            scales=tuple(scales.tolist()),
            weights=tuple(weights.tolist()),
            texts=len(known),
        )

    def __call__(self, known: Floats) -> Floats:
        """Trust (N,), 0..1, of what is known, (N, len(names))."""
        return _sigmoid(_inputs(known, np.array(self.means), np.array(self.scales)) @ np.array(self.weights))


def _inputs(known: Floats, means: Floats, scales: Floats) -> Floats:
    standard = np.clip(np.nan_to_num((known - means) / scales), -4, 4)
    return np.concatenate([standard, np.ones((len(standard), 1))], 1)


def _sigmoid(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(values, -30, 30)))


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a text's labels on an image.

    Attributes:
        index: of the sample in the data set.
        image: on which.
        text: number of the text.
        found: for the text, errors planted.
        kind: what was planted, a number of `KINDS`; -1: nothing.
        planted: whether an error was to be planted.
        values: by the names of `Trust.names`; None where nothing was found.
        silent: where nothing was found, the share of the passes that found nothing either; None without passes.
    """

    index: int
    image: StoredImage
    text: int
    found: tuple[Label, ...]
    kind: int
    planted: bool
    values: Floats | None
    silent: float | None


class Asks(Protocol):
    """Further passes of the detector: `patchmint.judging.again.Passes`, which loads torch."""

    def again(self, images: Sequence[StoredImage], found: Sequence[Mapping[int, tuple[Label, ...]]]) -> list[Heard]:
        """What they find in each image, by the numbers of its texts."""
        ...


class Trust:
    """Computes the trust of a data set's labels.

    Args:
        dataset: with labels.
        passes: for `full` trust; None: `cheap`.
        model: what known values mean; None: `learn` it.
    """

    def __init__(self, dataset: Dataset, passes: Asks | None = None, model: TrustModel | None = None) -> None:
        layout = dataset.manifest.layout if dataset.manifest is not None else None
        if layout is None or layout.min_coverage is None:
            raise InputError(f"{dataset.uri} isn't a finished data set with labels; there is nothing to trust or not")
        self.names = CHEAP if passes is None else (*CHEAP, *FULL)
        if model is not None and model.names != self.names:
            raise InputError("the trust model was learnt for the other of cheap and full trust; learn it again")
        self.model = model
        self._dataset, self._passes = dataset, passes
        codes = [f"{layout.tokens.member}.npy"] if layout.tokens is not None else []
        self._endings = [DOCUMENT, INSTANCES, FEATURES, *codes]
        self._min_coverage = layout.min_coverage
        self._likeness = Likeness()
        self._heard: dict[int, list[Heard]] = {}

    def count(self, progress: Progress | None = None) -> None:
        """Look through the whole data set for what goes with which words."""
        every = np.arange(self._dataset.samples)
        for _, sample in iter_stored(self._dataset, every, self._endings, progress):
            for image in sample.images:
                look = Look.of(image, self._dataset)
                self._likeness.add(look, Added.of(look, _size(image), found_of(image)))

    def known(
        self, indices: Integers, planters: Sequence[Planter | None] = (None,), *, keep: bool = False
    ) -> Iterator[Known]:
        """What is known of the labels of samples, after `count`, sample by sample.

        Args:
            indices: positions of samples, ascending.
            planters: each gives a copy of every text's labels; None: as they are.
            keep: whether what passes find is kept for the next time.
        """
        endings = [*self._endings, IMAGE] if self._passes is not None else self._endings
        samples = iter_stored(self._dataset, indices, endings)
        while batch := list(islice(samples, _BATCH)):
            found = {index: [found_of(image) for image in sample.images] for index, sample in batch}
            heard = self._hear(batch, found, keep=keep)
            for index, sample in batch:
                for image, own, theirs in zip(sample.images, found[index], heard[index], strict=True):
                    yield from self._of_image(index, image, own, theirs, planters)

    def _hear(
        self,
        batch: Sequence[tuple[int, StoredSample]],
        found: Mapping[int, list[dict[int, tuple[Label, ...]]]],
        *,
        keep: bool,
    ) -> dict[int, list[Heard]]:
        if self._passes is None:
            return {index: [{}] * len(sample.images) for index, sample in batch}
        images = [(index, image) for index, sample in batch if index not in self._heard for image in sample.images]
        asked = self._passes.again([image for _, image in images], [found[i][image.number] for i, image in images])
        new: dict[int, list[Heard]] = {}
        for (index, _), each in zip(images, asked, strict=True):
            new.setdefault(index, []).append(each)
        if keep:
            self._heard |= new
        return {index: new.get(index) or self._heard[index] for index, _ in batch}

    def _of_image(
        self,
        index: int,
        image: StoredImage,
        found: dict[int, tuple[Label, ...]],
        heard: Heard,
        planters: Sequence[Planter | None],
    ) -> Iterator[Known]:
        size, look = _size(image), Look.of(image, self._dataset)
        added = Added.of(look, size, found)
        for text in image.texts:
            again = heard.get(text)
            silent = None if again is None else float(np.mean([not each for each in again]))
            for planter in planters:
                own, kind = found[text], -1
                if planter is not None and own:
                    own, kind = planter.corrupt(own, size)
                values = cheap(self._likeness, look, size, added, own) if own else None
                if values is not None and again is not None:
                    values = np.concatenate([values, agreement(own, again, size)])
                yield Known(index, image, text, own, kind, planter is not None, values, silent)

    def learn(
        self,
        truth: Truth | None = None,
        *,
        indices: Integers | None = None,
        share: float = 0.2,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Learn what known values mean, by errors planted into labels.

        Args:
            truth: of images, where it is known: trust is then the F1 of patches that is to be expected. None: the
                chance that no error was planted.
            indices: positions of the samples that are learnt from, ascending; None: `LEARNT`, evenly spread.
            share: of texts that are taken to have errors.
            seed: of the errors.
            progress: told after each text.

        Raises:
            InputError: too little was found in these samples, no error can be planted, or their truth isn't known.
            ShardError, StorageError: a sample can't be read.
        """
        indices = spread(self._dataset.samples, LEARNT) if indices is None else indices
        known, wrong, right, silent = list[Floats](), list[bool](), list[float](), list[float]()
        for each in self.known(indices, (None, Planter(1.0, seed)), keep=True):
            agreed = float(each.kind < 0) if truth is None else self.agreement(each, truth)
            if each.values is not None and (each.kind >= 0) == each.planted and agreed is not None:
                known.append(each.values)
                wrong.append(each.kind >= 0)
                right.append(agreed)
            elif each.values is None and truth is not None and agreed is not None:
                silent.append(agreed)
            if progress is not None:
                progress(int(np.searchsorted(indices, each.index)) + 1, len(indices))
        of = np.array(wrong)
        if not len(of) or of.all() or not of.any():
            raise InputError(f"{self._dataset.uri} has too few labels to learn from what can be trusted")
        weights = np.where(of, share / of.sum(), (1 - share) / (~of).sum()) * len(of)
        model = TrustModel.fit(self.names, np.stack(known), np.array(right), weights)
        self.model = model.model_copy(update={"silent": float(np.mean(silent))} if silent else {})

    def agreement(self, known: Known, truth: Truth) -> float | None:
        """F1 of the text's patches with the true ones; None where these aren't known."""
        image = known.image
        true = truth.of(ImageName.of(image))
        row = image.texts.index(known.text)
        text = true.text(row, image.key_json.texts[known.text]) if true is not None else None
        if text is None or not text.whole:
            return None
        placement = self._dataset.placement(image)
        patches = true_patches(text, image, placement, self._min_coverage)
        if patches is None:
            return None
        area = coverage_to_uint8(coverage_share(area_of(known.found, _size(image)), placement))
        return f1_and_iou(select_patches(area, self._min_coverage) > 0, patches)[0]

    def of(self, known: Known) -> float:
        """The trust of a text's labels; where nothing was found, the share of the passes that agree."""
        assert self.model is not None
        if known.values is not None:
            return float(self.model(known.values[None])[0])
        return self.model.silent if known.silent is None else known.silent

    def trial(self, share: float, seed: int = 0) -> Planted:
        """How many of planted errors trust finds, after `count`: in each half of the samples by what the other taught.

        Raises:
            InputError, ShardError, StorageError: as for `learn`.
        """
        every = np.arange(self._dataset.samples)
        values, kinds = list[float](), list[int]()
        for half in (0, 1):
            self.learn(indices=every[half::2], share=share, seed=seed + 1)
            for each in self.known(every[1 - half :: 2], (Planter(share, seed),)):
                if each.values is not None:
                    values.append(self.of(each))
                    kinds.append(each.kind)
        return Planted.of(np.array(values), kinds)
