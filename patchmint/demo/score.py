"""A demo's shards against the truth of its scenes. Nothing is labelled or tokenised again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from patchmint.demo.agreement import f1_and_iou, touched_patches
from patchmint.demo.measure import LabelFigures
from patchmint.demo.truth import TrueScene, Truth
from patchmint.errors import ShardError
from patchmint.geometry import Fit, PatchGrid, Placement
from patchmint.shards.reader import StoredSample, iter_samples
from patchmint.storage import Storage


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

    def add(self, sample: StoredSample, scene: TrueScene) -> None:
        """Compare a sample with the truth.

        Raises:
            ShardError: it has no labels or no codes, or they are damaged.
        """
        selector, codes = sample.selector, sample.codes
        placement = sample_placement(sample)
        if selector is None or codes is None or selector.shape != (len(scene.texts), *placement.shape):
            raise ShardError(
                f"sample {sample.key!r} lacks codes, or labels {placement.shape} of its {len(scene.texts)} texts; run "
                "`patchmint inspect verify` on the data set, or delete it and run the demo again"
            )
        self.codes.update(np.unique(codes).tolist())
        self.codebook = sample.document.tokens.codebook_sizes[0]
        for index, text in enumerate(scene.texts):
            spans = [(found.start, found.end) for found in sample.document.phrases if found.text_index == index]
            self.labels.absent += [
                any(start < phrase.span[1] and end > phrase.span[0] for start, end in spans)
                for phrase in text.phrases
                if phrase.mask is None
            ]
            labelled = selector[index] > 0
            if text.mask is None:
                self.labels.empty.append(bool(labelled.any()))
                continue
            f1, iou = f1_and_iou(labelled, touched_patches(text.mask, placement))
            self.labels.f1.append(f1)
            self.labels.iou.append(iou)

    def summary(self) -> dict[str, float]:
        """`f1`, `iou`, `absent_rate`, `codes_used`; NaN where there was nothing to judge."""
        labels = self.labels.summary()
        used = len(self.codes) / self.codebook if self.codebook else float("nan")
        return {"f1": labels["f1"], "iou": labels["iou"], "absent_rate": labels["absent_rate"], "codes_used": used}


def judged_samples(storage: Storage, truth: Truth) -> Iterator[tuple[StoredSample, TrueScene]]:
    """A data set's samples, each with the truth of its scene.

    Args:
        storage: of a finished build.
        truth: of the scenes that it was built from.

    Raises:
        ShardError: a shard is damaged, holds a scene twice, or was built from other scenes.
        StorageError: a shard can't be read.
    """
    judged: set[str] = set()
    for path in sorted(entry.path for entry in storage.list("shards/") if entry.path.endswith(".tar")):
        for sample in iter_samples(storage, path):
            name = sample.document.id
            scene = truth.scenes.get(name)
            if scene is None or name in judged or sample.document.texts != tuple(text.content for text in scene.texts):
                raise ShardError(
                    f"{path} in {storage.uri} holds sample {sample.key!r} of other scenes than those beside it; delete "
                    "the data set and run the demo again, or choose another OUT"
                )
            judged.add(name)
            yield sample, scene


def sample_placement(sample: StoredSample) -> Placement:
    """The patch grid of a sample's labels, on its image.

    Raises:
        ShardError: its document can't be read, or names no grid of ours.
    """
    grid, image = sample.document.grid, sample.document.image
    try:
        fit = Fit(grid.fit)
    except ValueError as error:
        raise ShardError(f"sample {sample.key!r} has a grid of unknown fit {grid.fit!r}; run verify") from error
    return PatchGrid(grid.rows, grid.cols, grid.patch_px, fit).place((image.height, image.width))
