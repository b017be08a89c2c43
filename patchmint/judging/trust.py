"""How far each text's labels can be relied on, 0..1, without any truth: from agreement (`patchmint.judging.evidence`).

What that is worth on a data set is learnt on that data set: errors are planted into a copy of its labels
(`patchmint.judging.plant`), and a logistic model learns to tell them from what wasn't touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from patchmint.datasets.dataset import Dataset, spread
from patchmint.datasets.reader import iter_stored
from patchmint.errors import InputError
from patchmint.geometry import coverage_share, coverage_to_uint8
from patchmint.judging.evidence import CHEAP, FULL, Added, Heard, Likeness, Look, agreement, cheap, image_size
from patchmint.judging.judge import true_patches
from patchmint.judging.metrics import Floats, f1_and_iou
from patchmint.judging.plant import Label, Planted, Planter, area_of, found_of
from patchmint.judging.truth import ImageName, Truth
from patchmint.labelers.patches import select_patches
from patchmint.shards.endings import DOCUMENT, FEATURES, IMAGE, INSTANCES
from patchmint.shards.reader import StoredImage, StoredSample
from patchmint.types import Integers, Progress

LEARNT = 2000
"""Samples that trust is learnt from at most."""

_BATCH = 16
# Samples whose images the detector is asked about at once.
_STEPS = 30


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
                self._likeness.add(look, Added.of(look, image_size(image), found_of(image)))

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
        size, look = image_size(image), Look.of(image, self._dataset)
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
        area = coverage_to_uint8(coverage_share(area_of(known.found, image_size(image)), placement))
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
