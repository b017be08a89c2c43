"""Grounded SAM: Grounding DINO finds boxes for a text, SAM makes masks of them. One segmenter out of two models."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from patchmint.compute.devices import resolve_precision
from patchmint.compute.stages import stage
from patchmint.config import UNTRAINED, LabelsConfig, ModelsConfig
from patchmint.geometry.rle import ChosenMasks
from patchmint.interfaces import Instances
from patchmint.labelers.grounding_dino import arch as dino_arch
from patchmint.labelers.grounding_dino import model as dino_model
from patchmint.labelers.grounding_dino.detector import GroundingDino, PromptMode
from patchmint.labelers.grounding_dino.prompts import Vocabulary
from patchmint.labelers.sam import arch as sam_arch
from patchmint.labelers.sam import model as sam_model
from patchmint.labelers.sam.masker import SamMasker
from patchmint.types import Precision, RgbImage, Size, Text
from patchmint.weights.loading import load_named
from patchmint.weights.store import locate


class GroundedSam:
    """A `Segmenter` made of a detector and a masker (Grounded SAM, arXiv 2401.14159)."""

    def __init__(self, detector: GroundingDino, masker: SamMasker) -> None:
        self.detector = detector
        self.masker = masker

    def prepare(self, image: RgbImage) -> tuple[RgbImage, RgbImage]:
        """Resize an image for the detector and for the masker; for any thread.

        The masker gets it in vain where nothing is found, which costs milliseconds of a thread that has time.
        """
        return self.detector.prepare(image), self.masker.prepare(image)

    def segment(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        prepared: Sequence[tuple[RgbImage, RgbImage]] | None = None,
    ) -> list[Instances]:
        """Find what each text talks about; see `patchmint.interfaces.Segmenter`.

        Args:
            images: any sizes.
            texts: for each image its texts.
            prepared: what `prepare` made of each image; None = nothing was done ahead.
        """
        with stage("detect"):
            found = self.detector.detect(images, texts, **_part(prepared, 0))
        boxes, repeated = zip(*(_once(detections.boxes) for detections in found), strict=True) if found else ((), ())
        with stage("mask"):
            masks = [
                once if chosen is None else ChosenMasks(once, chosen)
                for once, chosen in zip(self.masker.masks(images, boxes, **_part(prepared, 1)), repeated, strict=True)
            ]
        return [
            Instances(
                image_size=(image.shape[0], image.shape[1]),
                masks=image_masks,
                text_index=detections.text_index,
                scores=detections.scores,
                boxes=detections.boxes,
                spans=detections.spans,
            )
            for image, detections, image_masks in zip(images, found, masks, strict=True)
        ]

    def rehearse(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        boxes: int,
        prepared: Sequence[tuple[RgbImage, RgbImage]] | None = None,
    ) -> None:
        """Do all the work of `segment`, as if so many boxes had been found in each image.

        Args:
            images: any sizes.
            texts: for each image its texts.
            boxes: as large as the image.
            prepared: what `prepare` made of each image; None = nothing was done ahead.
        """
        self.detector.detect(images, texts, **_part(prepared, 0))
        whole = [np.array([[0, 0, image.shape[1], image.shape[0]]] * boxes, np.float32) for image in images]
        self.masker.masks(images, whole, **_part(prepared, 1))

    def batch_key(self, size: Size) -> Hashable:
        """The size that the detector makes of an image: images of one size share its backbone pass.

        Args:
            size: (height, width) of an image.
        """
        return dino_arch.detector_size(size, self.detector.arch.short_side, self.detector.arch.long_side)


def _once(boxes: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], tuple[int, ...] | None]:
    """Boxes (N, 4), each once where several phrases lead to it, and the number of each; None if none is repeated."""
    numbers: dict[bytes, int] = {}
    chosen = tuple(numbers.setdefault(box.tobytes(), len(numbers)) for box in boxes)
    if len(numbers) == len(boxes):
        return boxes, None
    return boxes[[chosen.index(number) for number in range(len(numbers))]], chosen


def _part(prepared: Sequence[tuple[RgbImage, RgbImage]] | None, place: int) -> dict[str, list[RgbImage]]:
    """The keyword that hands one of the two models its part; none where nothing was done ahead."""
    return {} if prepared is None else {"prepared": [parts[place] for parts in prepared]}


def build_grounded_sam(
    models: ModelsConfig, labels: LabelsConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> GroundedSam:
    """Build detector and masker, and load their weights; see `patchmint.labelers.build.build_segmenter`.

    Raises:
        WeightsError: a checkpoint is missing, damaged, unsafe or of another architecture.
    """
    return GroundedSam(
        _build_detector(models, labels, device, precision, compiled=compiled),
        build_masker(models, labels, device, precision, compiled=compiled),
    )


def _build_detector(
    models: ModelsConfig, labels: LabelsConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> GroundingDino:
    if models.detector == UNTRAINED:
        model, arch = dino_model.untrained(dino_arch.TINY), dino_arch.TINY
    else:
        model, arch = dino_model.load_grounding_dino(load_named(models.detector))
    vocabulary = (
        Vocabulary.of_characters(arch.text_vocabulary)
        if models.vocabulary == UNTRAINED
        else Vocabulary.from_file(locate(models.vocabulary))
    )
    return GroundingDino(
        model,
        arch,
        vocabulary,
        prompt=PromptMode(labels.prompt),
        box_threshold=labels.box_threshold,
        text_threshold=labels.text_threshold,
        device=device,
        precision=resolve_precision(precision, device, cpu=torch.bfloat16, gpu=torch.bfloat16),
        compiled=compiled,
    )


def build_masker(
    models: ModelsConfig, labels: LabelsConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> SamMasker:
    """Build the masker alone, and load its weights.

    Raises:
        WeightsError: as `build_grounded_sam`.
    """
    if models.masker == UNTRAINED:
        model = sam_model.untrained(sam_arch.TINY, seed=0)
    else:
        model = sam_model.load_sam(load_named(models.masker))
    return SamMasker(
        model,
        device=device,
        precision=resolve_precision(precision, device, cpu=torch.bfloat16, gpu=torch.bfloat16),
        coverage=labels.coverage,
        compiled=compiled,
    )
