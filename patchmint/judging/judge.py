"""A data set's labels against the truth: image by image, in memory that doesn't grow with their number.

What grows are the boxes that AP needs: some 20 bytes for each (`AveragePrecision`). Intervals are those of a Poisson
bootstrap: each replicate counts each image as often as a Poisson variable says, so images needn't be kept.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import iter_stored
from patchmint.datasets.rows import iter_tables
from patchmint.errors import InputError, ShardError
from patchmint.geometry import Placement, RleMasks, coverage_to_uint8
from patchmint.judging.figures import (
    FIGURES,
    SIZE,
    Bin,
    Group,
    Sums,
    figures_of,
    group_of,
    interval_of,
    reliability_table,
)
from patchmint.judging.metrics import (
    AveragePrecision,
    Flags,
    Floats,
    assigned,
    coco_matches,
    f1_and_iou,
    overlaps,
    reliability,
)
from patchmint.judging.truth import (
    ImageName,
    RowImage,
    TrueImage,
    TruePhrase,
    TrueText,
    TrueThing,
    Truth,
    joined,
    row_columns,
    row_images,
)
from patchmint.labelers.patches import select_patches
from patchmint.shards.endings import DOCUMENT, INSTANCES, SELECTOR
from patchmint.shards.reader import StoredImage
from patchmint.types import UNKNOWN_SCORE, Box, Integers, Progress, Rle, Size, Span

Calibrate = Callable[[Sequence[float]], Floats]

_BLOCK = 256
_MOST_IMAGES = 100_000
_MOST_FOUND = 200_000
# Above these, AP gets no interval.
_EXAMPLES = 5
_MOST_PHRASES = 50

_ALL = ("all", "")
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
_ORDER = {name: number for number, name in enumerate(("small", "medium", "large"))}


def touched_patches(mask: Rle, placement: Placement, min_coverage: float = 0.0) -> Flags:
    """Patches of which a mask covers more than a share: bool `placement.shape`."""
    coverage = RleMasks([mask]).coverage([0], placement)
    return select_patches(coverage_to_uint8(coverage), min_coverage) > 0


def true_patches(text: TrueText, image: StoredImage, placement: Placement, min_coverage: float) -> Flags | None:
    """The patches that a text is about, bool `placement.shape`; None where they aren't known.

    Raises:
        InputError: the truth has masks of another size than the image.
    """
    if text.mask is not None:
        if tuple(text.mask["size"]) != placement.image_size:
            raise InputError(f"the truth of {image.name} has masks of another size than the image")
        return touched_patches(text.mask, placement, min_coverage)
    if text.selector is not None:
        array, grid = text.selector
        return array > 0 if grid == image.grid else None
    return None if text.things else np.zeros(placement.shape, np.bool_)


@dataclass(frozen=True, slots=True)
class Found:
    """Something that was found for a text.

    Attributes:
        spans: the words that it answers to; several where only the words are known, and they stand there repeatedly.
        score: 0..1, or `UNKNOWN_SCORE`.
        box: XYXY; None where that isn't known.
        mask: None where that isn't known.
    """

    spans: tuple[Span, ...]
    score: float
    box: Box | None = None
    mask: Rle | None = None

    def shares(self, span: Span) -> int:
        """How many characters it has in common with another span."""
        return max((min(end, span[1]) - max(start, span[0]) for start, end in self.spans), default=0)


@dataclass(frozen=True, order=True)
class Worst:
    """A text that is labelled badly.

    Attributes:
        agreement: F1 of its patches, or, where patches aren't judged, the share of its phrases that are right.
        index: of the sample in the data set.
        image: number of the image.
        text: number among the image's texts.
        key: the sample's.
        content: the text.
        missed, wrong: words of present things not found, and of absent ones found.
    """

    agreement: float
    index: int
    image: int
    text: int
    key: str
    content: str
    missed: tuple[str, ...]
    wrong: tuple[str, ...]


class Judge:
    """Gathers figures image by image.

    Args:
        replicates: of the bootstrap; 0: no intervals.
        seed: of the bootstrap.
        worst: how many of the worst texts to keep.
        calibration: what scores mean; None: what they say.

    Attributes:
        min_coverage: share of a patch that a label takes, as of the data set.
    """

    def __init__(
        self, *, replicates: int = 0, seed: int = 0, worst: int = 0, calibration: Calibrate | None = None
    ) -> None:
        self.images = self.texts = self.unknown_texts = self.own = 0
        self.worst: list[tuple[float, int, Worst]] = []
        self.min_coverage = 0.0
        self._most_worst, self._calibration = worst, calibration
        self._replicates, self._seed = replicates, seed
        self._sums: dict[tuple[str, str], Floats] = {}
        self._resampled: dict[tuple[str, str], Floats] = {}
        self._block: list[tuple[tuple[str, str], int, Floats]] = []
        self._precision = {"box": AveragePrecision(), "mask": AveragePrecision()}
        self._categories: dict[str, int] = {}

    def add_image(self, image: StoredImage, true: TrueImage, index: int = 0) -> None:
        """Judge a stored image.

        Args:
            image: with KEY.json, and as far as there are such, selector and instances.
            true: its truth.
            index: of the sample in the data set.

        Raises:
            ShardError: the sample is damaged, or its labels are of another shape than its grid.
        """
        masks = image.instances
        found: dict[int, list[Found]] = {number: [] for number in image.texts}
        for number, phrase in enumerate(image.phrases):
            self.own += phrase.origin != "model"
            mask = masks[number].mask.rle if masks is not None else None
            span = (phrase.start, phrase.end)
            found.setdefault(phrase.text_index, []).append(Found((span,), phrase.score, phrase.box, mask))
        known = ("box",) if masks is None else ("box", "mask")
        size = (image.info.height, image.info.width)
        selector = image.selector
        placement = image.placement if selector is not None else None
        if selector is not None and placement is not None and selector.shape != (len(image.texts), *placement.shape):
            raise ShardError(
                f"sample {image.key!r} lacks labels on {placement.shape} of its {len(image.texts)} texts (it has "
                f"{selector.shape}); run `patchmint inspect verify` on the data set"
            )
        for row, number in enumerate(image.texts):
            content = image.key_json.texts[number]
            text = true.text(row, content)
            if text is None:
                self.unknown_texts += 1
                continue
            patches = None
            if selector is not None and placement is not None and text.whole:
                meant = true_patches(text, image, placement, self.min_coverage)
                patches = (selector[row] > 0, meant) if meant is not None else None
            place = (index, image.number, row, image.key)
            self.add_text(text, found[number], size, patches, texts=len(image.texts), known=known, place=place)
        self.end_image()

    def add_row(self, image: RowImage, true: TrueImage, index: int = 0) -> None:
        """Judge an image by its sidecar's row: what is there, and scores."""
        for row, (number, content) in enumerate(image.texts.items()):
            text = true.text(row, content)
            if text is None:
                self.unknown_texts += 1
                continue
            found = [Found(_spans(content, words), score) for n, words, score in image.found if n == number]
            place = (index, image.name.number, row, image.name.key)
            self.add_text(text, found, image.name.size, texts=len(image.texts), known=(), place=place)
        self.end_image()

    def add_text(
        self,
        text: TrueText,
        found: Sequence[Found],
        size: Size,
        patches: tuple[Flags, Flags] | None = None,
        *,
        texts: int = 1,
        known: Sequence[str] = ("box",),
        place: tuple[int, int, int, str] = (0, 0, 0, ""),
    ) -> None:
        """Judge what was found for a text.

        Args:
            text: the truth.
            found: in any order.
            size: (height, width) of the image.
            patches: labelled ones and true ones, bool of one shape; None: they aren't judged.
            texts: how many the image has.
            known: which shapes all of `found` have: "box", "mask".
            place: index of the sample, numbers of image and text, and key, for `worst`.
        """
        self.texts += 1
        sums = Sums()
        of_texts = ("texts", str(texts) if texts < 5 else "5 or more")
        agreement = None
        if patches is not None:
            labelled = patches[0]
            if text.things:
                agreement, iou = f1_and_iou(*patches)
                sums.add(texts=1, f1=agreement, iou=iou)
            else:
                agreement = float(not labelled.any())
                sums.add(silent=1, silent_labelled=bool(labelled.any()))
        self._count(sums, *_places(text.things, size), of_texts)
        answers: list[list[Found]] = [[] for _ in text.phrases]
        unnamed: list[Found] = []
        for each in found:
            shared = [each.shares(phrase.span) for phrase in text.phrases]
            best = int(np.argmax(shared)) if shared else 0
            (answers[best] if shared and shared[best] > 0 else unnamed).append(each)
        missed, wrong = [], []
        for phrase, answer in zip(text.phrases, answers, strict=True):
            words = _words(text.content[slice(*phrase.span)])
            touched = any(each.shares(phrase.span) > 0 for each in found)
            if phrase.things and not touched:
                missed.append(words)
            if touched and not phrase.things:
                wrong.append(words)
            judged = self._phrase(phrase, answer, words, touched=touched, known=known)
            self._count(judged, *_places(phrase.things, size), of_texts, ("phrase", words))
        if text.whole:
            wrong += [_words(text.content[slice(*each.spans[0])]) for each in unnamed if each.spans]
            self._count(self._phrase(TruePhrase((0, 0), ()), unnamed, "", touched=None, known=known), of_texts)
        if self._most_worst:
            if agreement is None:
                agreement = 1 - (len(missed) + len(wrong)) / max(len(text.phrases), len(missed) + len(wrong), 1)
            bad = Worst(agreement, *place[:3], place[3], text.content, tuple(missed), tuple(wrong))
            push = heapq.heappushpop if len(self.worst) == self._most_worst else heapq.heappush
            push(self.worst, (-agreement, -self.texts, bad))

    def _phrase(
        self, phrase: TruePhrase, found: Sequence[Found], words: str, *, touched: bool | None, known: Sequence[str]
    ) -> Sums:
        """Judge what was found for a phrase; `touched` None: what answers to none. `known`: shapes of what is found."""
        sums, things = Sums(), phrase.things
        if touched is None:
            sums.add(found=len(found), unnamed=len(found))
        else:
            there = bool(things)
            sums.add(
                found=len(found),
                there_found=there and touched,
                there_missed=there and not touched,
                absent_found=touched and not there,
                absent_left=not touched and not there,
            )
        order = sorted(found, key=lambda each: -each.score)
        scores = [each.score for each in order]
        right = [bool(things)] * len(order)
        for kind in known:
            shapes: list[Any] = [getattr(each, kind) for each in order]
            true: list[Any] = [getattr(thing, kind) for thing in things]
            if None in true or not (shapes or true):
                continue
            crowd = [thing.crowd for thing in things]
            ious = overlaps(shapes, true, crowd)
            if kind == "box":
                right = coco_matches(ious, crowd)[0][0].tolist()
            if things:
                alone = assigned(ious[:, [not each for each in crowd]])
                counts = {f"{kind}_true": len(crowd) - sum(crowd), f"{kind}_found": len(order)}
                sums.add(**counts, **{f"{kind}_right": alone})
            if UNKNOWN_SCORE not in scores:
                category = self._categories.setdefault(words, len(self._categories))
                self._precision[kind].add(self.images, category, scores, ious, crowd)
        if "mask" in known and (mask := joined(things)) is not None:
            union = joined([TrueThing((0, 0, 0, 0), each.mask) for each in order])
            sums.add(masks=1, mask_iou=overlaps([union], [mask], [False])[0, 0] if union is not None else 0)
        if order and UNKNOWN_SCORE not in scores:
            meant = scores if self._calibration is None else self._calibration(scores).tolist()
            sums.add(scores=reliability(meant, right).ravel())
        return sums

    def _count(self, sums: Sums, *groups: tuple[str, str]) -> None:
        for group in (_ALL, *groups):
            total = self._sums.setdefault(group, np.zeros(SIZE))
            total += sums.values
            if self._replicates and group[0] != "phrase":
                self._block.append((group, self.images % _BLOCK, sums.values))

    def end_image(self) -> None:
        """Say that all texts of an image were added."""
        self.images += 1
        if self.images % _BLOCK == 0:
            self._resample()

    def _weights(self, block: int) -> npt.NDArray[np.uint8]:
        """How often each image of a block counts in each replicate: (_BLOCK, replicates)."""
        rng = np.random.default_rng((self._seed, block))
        return rng.poisson(1, (_BLOCK, self._replicates)).astype(np.uint8)

    def _resample(self) -> None:
        if not self._block:
            return
        weights = self._weights((self.images - 1) // _BLOCK).astype(float)
        for group in {group for group, _, _ in self._block}:
            rows, values = zip(*((row, values) for of, row, values in self._block if of == group), strict=True)
            total = self._resampled.setdefault(group, np.zeros((self._replicates, SIZE)))
            total += weights[list(rows)].T @ np.stack(values)
        self._block = []

    def outcomes(self) -> tuple[Integers, Floats, Flags]:
        """Of each box with a score number of the image, score, and whether it is right at IoU 0.50."""
        return self._precision["box"].outcomes()

    def figures(self) -> dict[str, float]:
        """The figures without intervals, by the names of `FIGURES`; NaN where there was nothing to judge."""
        found = {name: float(value) for name, value in figures_of(self._sums.get(_ALL, np.zeros(SIZE))).items()}
        for kind, precision in self._precision.items():
            found[f"{kind}_ap"] = precision.mean(pooled=True)
            found[f"{kind}_ap_by_phrase"] = precision.mean()
        return {name: found[name] for name in FIGURES}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The middle 95 % of the replicates of each figure that has some."""
        self._resample()
        replicates = figures_of(self._resampled.get(_ALL, np.zeros((0, SIZE))))
        wanted = {kind: each for kind, each in self._precision.items() if 0 < len(each) <= _MOST_FOUND}
        if self._replicates and wanted and self.images <= _MOST_IMAGES:
            weights = np.concatenate([self._weights(block) for block in range(-(-self.images // _BLOCK))])
            for kind, precision in wanted.items():
                replicates[f"{kind}_ap"] = np.array([precision.mean(column, pooled=True) for column in weights.T])
        return {name: interval for name, values in replicates.items() if (interval := interval_of(values)) is not None}

    def groups(self) -> dict[str, list[Group]]:
        """Figures of parts, by what divides them: size, position, texts (an image has), phrase (the commonest)."""
        self._resample()
        found: dict[str, list[Group]] = {}
        for (kind, name), sums in self._sums.items():
            if kind != _ALL[0]:
                found.setdefault(kind, []).append(group_of(name, sums, self._resampled.get((kind, name))))
        for kind, groups in found.items():
            groups.sort(
                key=lambda group: (-group.phrases if kind == "phrase" else 0, _ORDER.get(group.name, 0), group.name)
            )
        return {kind: found[kind][:_MOST_PHRASES] for kind in ("size", "position", "texts", "phrase") if kind in found}

    def table(self) -> list[Bin]:
        """The reliability table: scores in tenths that have any."""
        return reliability_table(self._sums.get(_ALL, np.zeros(SIZE)))


def _places(things: Sequence[TrueThing], size: Size) -> list[tuple[str, str]]:
    """The groups of things by size, COCO's, of the largest one, and by where the middle of all is."""
    boxes = np.array([thing.box for thing in things], np.float64)
    if not boxes.any():  # also where only sidecars were read
        return []
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).max()
    middle = (boxes[:, :2].min(0) + boxes[:, 2:].max(0)) / 2 / size[::-1]
    column, row = np.minimum(np.maximum(middle * 3, 0), 2).astype(int)
    named = "small" if area < 32**2 else "medium" if area < 96**2 else "large"
    return [("size", named), ("position", f"{_ROWS[row]} {_COLUMNS[column]}")]


def _words(text: str) -> str:
    return " ".join(text.lower().split())


def _spans(content: str, words: str) -> tuple[Span, ...]:
    """Where words stand in a text."""
    return tuple(match.span() for match in re.finditer(re.escape(words), content)) if words else ()


@dataclass(frozen=True)
class Verdict:
    """What judging a data set gives; all of it goes to JSON.

    Attributes:
        dataset: its address.
        truth: what it was judged by.
        samples: that the data set has.
        judged: of them those with a known truth of any image.
        unmatched: the others; `samples` is the sum.
        examples: keys of some of those.
        unused: images, or samples, of the truth that the data set hasn't.
        images, texts: judged.
        unknown_texts: of judged images, texts about which the truth says nothing.
        own: of what was found, how much was made of annotators' boxes or masks: the truth may be the same.
        figures: by the names of `FIGURES`; None where there was nothing to judge.
        intervals: of 95 %, by bootstrap over images.
        reliability: how often scores are right.
        groups: figures of parts.
        worst: texts, worst first.
    """

    dataset: str
    truth: str
    samples: int
    judged: int
    unmatched: int
    examples: tuple[str, ...]
    unused: int
    images: int
    texts: int
    unknown_texts: int
    own: int
    figures: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    reliability: tuple[Bin, ...]
    groups: dict[str, list[Group]] = field(repr=False)
    worst: tuple[Worst, ...] = field(repr=False)


def judge(
    dataset: Dataset,
    truth: Truth,
    *,
    quick: bool = False,
    replicates: int = 200,
    seed: int = 0,
    worst: int = 12,
    calibration: Calibrate | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Judge a data set's labels.

    Args:
        dataset: with labels.
        truth: of its images.
        quick: from the sidecars alone: what is there, and scores.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        worst: how many of the worst texts are named.
        calibration: what scores mean (`patchmint.judging.calibrate`); None: what they say.
        progress: told after each sample, or shard.

    Raises:
        InputError: the data set has no labels, or none of its images has a known truth.
        ShardError, StorageError: it can't be read.
    """
    judging = Judge(replicates=replicates, seed=seed, worst=worst, calibration=calibration)
    judged, examples = judge_images(judging, dataset, truth, quick=quick, progress=progress)
    figures = {name: None if np.isnan(value) else value for name, value in judging.figures().items()}
    return Verdict(
        dataset=dataset.uri,
        truth=truth.says,
        samples=dataset.samples,
        judged=judged,
        unmatched=dataset.samples - judged,
        examples=tuple(examples),
        unused=truth.unused(),
        images=judging.images,
        texts=judging.texts,
        unknown_texts=judging.unknown_texts,
        own=judging.own,
        figures=figures,
        intervals=judging.intervals(),
        reliability=tuple(judging.table()),
        groups=judging.groups(),
        worst=tuple(sorted(bad for _, _, bad in judging.worst)),
    )


def judge_images(
    judging: Judge, dataset: Dataset, truth: Truth, *, quick: bool = False, progress: Progress | None = None
) -> tuple[int, list[str]]:
    """Judge all images whose truth is known; raises as `judge`.

    Returns:
        How many samples have such an image, and keys of some that haven't.
    """
    layout = dataset.manifest.layout if dataset.manifest is not None else None
    if dataset.foreign or (layout is not None and layout.min_coverage is None):
        raise InputError(f"{dataset.uri} has no labels that could be judged")
    judging.min_coverage = (layout.min_coverage if layout is not None else None) or 0.0
    judged, examples = 0, list[str]()
    samples = _rows(dataset, progress) if quick else _stored(dataset, progress)
    for index, key, images in samples:
        known = [(image, true) for name, image in images if (true := truth.of(name)) is not None]
        for image, true in known:
            if isinstance(image, RowImage):
                judging.add_row(image, true, index)
            else:
                judging.add_image(image, true, index)
        judged += bool(known)
        if not known and len(examples) < _EXAMPLES:
            examples.append(key)
    if not judged:
        raise InputError(
            f"{truth.says} knows none of the {dataset.samples} samples of {dataset.uri} (the first are "
            f"{', '.join(examples)}); samples go by key, else by the source's id, else by the image's path"
        )
    return judged, examples


_Images = Iterable[tuple[ImageName, StoredImage | RowImage]]


def _stored(dataset: Dataset, progress: Progress | None) -> Iterator[tuple[int, str, _Images]]:
    endings = (DOCUMENT, SELECTOR, INSTANCES)
    for index, sample in iter_stored(dataset, np.arange(dataset.samples), endings, progress):
        yield index, sample.key, [(ImageName.of(image), image) for image in sample.images]


def _rows(dataset: Dataset, progress: Progress | None) -> Iterator[tuple[int, str, _Images]]:
    index = 0
    for _, table in iter_tables(dataset, row_columns(dataset), progress):
        for batch in table.to_batches(max_chunksize=_BLOCK):
            for row in batch.to_pylist():
                yield index, row["key"], [(image.name, image) for image in row_images(row)]
                index += 1
