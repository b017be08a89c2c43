"""A demo's shards against the truth of its scenes, and what its figures must reach. Nothing is labelled again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from patchmint.demo.dataset import TrueScene, Truth
from patchmint.errors import ShardError
from patchmint.geometry import Placement, RleMasks, coverage_to_uint8
from patchmint.geometry.rle import Masks, decode_mask
from patchmint.labelers.patches import select_patches
from patchmint.shards.reader import StoredImage, StoredSample, iter_samples
from patchmint.storage import Storage
from patchmint.types import RgbImage, Rle, Span

Patches = npt.NDArray[np.bool_]

_LEAST_ERROR = 1e-6
# Keeps the PSNR of equal pictures finite.


def touched_patches(mask: Rle, placement: Placement) -> Patches:
    """Patches that a mask touches: bool `placement.shape`."""
    coverage = RleMasks([mask]).coverage([0], placement)
    return select_patches(coverage_to_uint8(coverage), 0.0) > 0


def f1_and_iou(labelled: Patches, true: Patches) -> tuple[float, float]:
    """F1 and IoU of two sets of patches, or pixels, of one shape; 1 where both are empty."""
    both, either = int((labelled & true).sum()), int((labelled | true).sum())
    if not either:
        return 1.0, 1.0
    return 2 * both / (either + both), both / either


def mask_ious(masks: Masks, truths: Iterable[Patches]) -> list[float]:
    """IoU of each mask with the true one (height, width) at its place."""
    return [f1_and_iou(decode_mask(found) > 0, true)[1] for found, true in zip(masks.rles(), truths, strict=True)]


def psnr(drawn: RgbImage, true: RgbImage) -> float:
    """Peak signal-to-noise ratio of a picture against the true one of the same shape, in dB; 108 if they are equal."""
    error = float(np.square(drawn - true.astype(np.float64)).mean())
    return float(10 * np.log10(255**2 / max(error, _LEAST_ERROR)))


@dataclass
class LabelFigures:
    """Figures of patch labels, gathered text by text.

    Attributes:
        f1, iou: of each text that names something present, its patches against the true ones.
        absent: of each phrase that names something absent, whether anything was found for it.
        empty: of each text that names nothing present, whether any patch was labelled.
    """

    f1: list[float] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)
    absent: list[bool] = field(default_factory=list)
    empty: list[bool] = field(default_factory=list)

    def add(self, labelled: Patches, true: Patches | None) -> None:
        """Compare a text's patches with the true ones; None where it names nothing present."""
        if true is None:
            self.empty.append(bool(labelled.any()))
            return
        f1, iou = f1_and_iou(labelled, true)
        self.f1.append(f1)
        self.iou.append(iou)

    def add_absent(self, phrase: Span, found: Iterable[Span]) -> None:
        """Note whether any span that something was found for overlaps a phrase that names something absent."""
        self.absent.append(any(start < phrase[1] and end > phrase[0] for start, end in found))

    def summary(self) -> dict[str, float]:
        """Means and shares; NaN where there was nothing to judge."""
        return {
            "f1": _mean(self.f1),
            "iou": _mean(self.iou),
            "absent_rate": _mean(self.absent),
            "empty_text_rate": _mean(self.empty),
        }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


@dataclass(frozen=True)
class Limit:
    """A limit of one figure.

    Attributes:
        bound: the least that it may be; or the most.
        most: whether it is the most.
        unit: of the figure; empty for shares.
        meaning: what the figure says.
    """

    bound: float
    meaning: str
    most: bool = False
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether a figure reaches it; NaN (there was nothing to judge) does."""
        return math.isnan(value) or (value <= self.bound if self.most else value >= self.bound)

    def shown(self, value: float) -> str:
        """A figure as people read it."""
        return (
            "nothing to judge" if math.isnan(value) else f"{value:.3f}" if not self.unit else f"{value:.1f} {self.unit}"
        )


LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        "f1": Limit(0.90, "patches of texts that name something present, F1"),
        "iou": Limit(0.85, "the same, IoU"),
        "absent_rate": Limit(0.05, "absent things that anything was found for", most=True),
        "mask_iou": Limit(0.85, "masks of true boxes, IoU"),
        "psnr": Limit(22.0, "pictures drawn from their codes", unit="dB"),
        "codes_used": Limit(0.5, "codes of the codebook that occur"),
    }
)
"""By figure, in the order of the table."""

DOCUMENT_LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        "documents_f1": Limit(0.80, "patches of what turns name in each picture, F1"),
        "documents_absent_rate": Limit(0.05, "absent from a picture, and yet found in it", most=True),
    }
)
"""The same of the documents, whose questions are about several pictures at once."""


@dataclass
class ShardFigures:
    """Figures of labels and codes, gathered sample by sample.

    Attributes:
        labels: of the patch labels.
        codes: all that occur.
        codebook: how many there could be.
    """

    labels: LabelFigures = field(default_factory=LabelFigures)
    codes: set[int] = field(default_factory=set)
    codebook: int = 0

    def add(self, sample: StoredSample, *scenes: TrueScene) -> None:
        """Compare a sample with the truth of each of its images.

        Raises:
            ShardError: it has no labels or no codes, or they are damaged.
        """
        self.codebook = sample.key_json.tokens.codebook_sizes[0]
        for image, scene in zip(sample.images, scenes, strict=True):
            self._add_image(image, scene)

    def _add_image(self, image: StoredImage, scene: TrueScene) -> None:
        selector, codes = image.selector, image.codes
        placement = image.placement
        if selector is None or codes is None or selector.shape != (len(scene.texts), *placement.shape):
            raise ShardError(
                f"sample {image.key!r} lacks codes, or labels {placement.shape} of its {len(scene.texts)} texts; run "
                "`patchmint inspect verify` on the data set, or delete it and run the demo again"
            )
        self.codes.update(np.unique(codes).tolist())
        for index, text in enumerate(scene.texts):
            spans = [(found.start, found.end) for found in image.phrases if found.text_index == index]
            for phrase in text.phrases:
                if phrase.mask is None:
                    self.labels.add_absent(phrase.span, spans)
            true = touched_patches(text.mask, placement) if text.mask is not None else None
            self.labels.add(selector[index] > 0, true)

    def summary(self) -> dict[str, float]:
        """`f1`, `iou`, `absent_rate`, `codes_used`; NaN where there was nothing to judge."""
        labels = self.labels.summary()
        used = len(self.codes) / self.codebook if self.codebook else float("nan")
        return {"f1": labels["f1"], "iou": labels["iou"], "absent_rate": labels["absent_rate"], "codes_used": used}


def judged_samples(storage: Storage, truth: Truth) -> Iterator[tuple[StoredSample, TrueScene]]:
    """A data set's samples, each with the truth of its scene: as `judged_documents`, of pictures."""
    for sample, (scene,) in judged_documents(storage, {name: (scene,) for name, scene in truth.scenes.items()}):
        yield sample, scene


def judged_documents(
    storage: Storage, truth: Mapping[str, tuple[TrueScene, ...]]
) -> Iterator[tuple[StoredSample, tuple[TrueScene, ...]]]:
    """A data set's samples, each with the truth of its scenes.

    Args:
        storage: of a finished build.
        truth: by the samples' ids, of the scenes that they were built from.

    Raises:
        ShardError: a shard is damaged, holds a sample twice, or was built from other scenes.
        StorageError: a shard can't be read.
    """
    judged: set[str] = set()
    for path in sorted(entry.path for entry in storage.list("shards/") if entry.path.endswith(".tar")):
        for sample in iter_samples(storage, path):
            name, scenes = sample.key_json.id, truth.get(sample.key_json.id)
            told = None if scenes is None else [tuple(text.content for text in scene.texts) for scene in scenes]
            if scenes is None or name in judged or told != [sample.key_json.texts] * len(sample.images):
                raise ShardError(
                    f"{path} in {storage.uri} holds sample {sample.key!r} of other scenes than those beside it; delete "
                    "the data set and run the demo again, or choose another OUT"
                )
            judged.add(name)
            yield sample, scenes


def sample_placement(sample: StoredSample) -> Placement:
    """The patch grid of a picture's labels, on its image. Raises ShardError as `StoredImage.placement`."""
    return sample.images[0].placement
