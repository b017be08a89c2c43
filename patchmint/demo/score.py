"""A demo's shards against the truth of its scenes, and what its figures must reach. Nothing is labelled again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from patchmint.demo.dataset import Truth
from patchmint.errors import ShardError
from patchmint.geometry import Placement
from patchmint.geometry.rle import Masks, decode_mask
from patchmint.judging.judge import Judge
from patchmint.judging.metrics import Flags, f1_and_iou
from patchmint.judging.truth import TrueImage
from patchmint.shards.reader import StoredSample, iter_samples
from patchmint.storage import Storage
from patchmint.types import RgbImage

_LEAST_ERROR = 1e-6
# Keeps the PSNR of equal pictures finite.


def mask_ious(masks: Masks, truths: Iterable[Flags]) -> list[float]:
    """IoU of each mask with the true one (height, width) at its place."""
    return [f1_and_iou(decode_mask(found) > 0, true)[1] for found, true in zip(masks.rles(), truths, strict=True)]


def psnr(drawn: RgbImage, true: RgbImage) -> float:
    """Peak signal-to-noise ratio of a picture against the true one of the same shape, in dB; 108 if they are equal."""
    error = float(np.square(drawn - true.astype(np.float64)).mean())
    return float(10 * np.log10(255**2 / max(error, _LEAST_ERROR)))


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
        "ece": Limit(0.05, "calibrated scores against how many are right", most=True),
        "trust_auroc": Limit(0.80, "planted errors that cheap trust finds, AUROC"),
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


class ShardFigures:
    """Figures of labels and codes, gathered sample by sample.

    Attributes:
        labels: what judges the labels.
        codes: all that occur.
        codebook: how many there could be.
    """

    def __init__(self) -> None:
        self.labels = Judge()
        self.codes: set[int] = set()
        self.codebook = 0

    def add(self, sample: StoredSample, *scenes: TrueImage) -> None:
        """Compare a sample with the truth of each of its images.

        Raises:
            ShardError: it has no labels or no codes, or they are damaged.
        """
        self.codebook = sample.key_json.tokens.codebook_sizes[0]
        for image, scene in zip(sample.images, scenes, strict=True):
            if image.selector is None or image.codes is None or len(image.texts) != len(scene.texts):
                raise ShardError(
                    f"sample {image.key!r} lacks codes, or labels of its {len(scene.texts)} texts; run `patchmint "
                    "inspect verify` on the data set, or delete it and run the demo again"
                )
            self.codes.update(np.unique(image.codes).tolist())
            self.labels.add_image(image, scene)

    def summary(self) -> dict[str, float]:
        """`f1`, `iou`, `absent_rate`, `codes_used`; NaN where there was nothing to judge."""
        used = len(self.codes) / self.codebook if self.codebook else float("nan")
        labels = label_figures(self.labels)
        return {name: labels[name] for name in ("f1", "iou", "absent_rate")} | {"codes_used": used}


def label_figures(judge: Judge) -> dict[str, float]:
    """Figures of patch labels by the demo's names: `f1`, `iou`, `absent_rate`, `empty_text_rate`."""
    figures = judge.figures()
    names = {"f1": "patch_f1", "iou": "patch_iou", "absent_rate": "absent_rate", "empty_text_rate": "silent_rate"}
    return {name: figures[there] for name, there in names.items()}


def judged_samples(storage: Storage, truth: Truth) -> Iterator[tuple[StoredSample, TrueImage]]:
    """A data set's samples, each with the truth of its scene: as `judged_documents`, of pictures."""
    for sample, (scene,) in judged_documents(storage, {name: (scene,) for name, scene in truth.scenes.items()}):
        yield sample, scene


def judged_documents(
    storage: Storage, truth: Mapping[str, tuple[TrueImage, ...]]
) -> Iterator[tuple[StoredSample, tuple[TrueImage, ...]]]:
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
