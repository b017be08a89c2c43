"""Grounded SAM: Grounding DINO finds boxes for a text, SAM makes masks of them. One segmenter out of two models."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from patchmint.compute.spans import span
from patchmint.labelers.grounding_dino.detector import GroundingDino, detector_size
from patchmint.labelers.sam.masker import SamMasker
from patchmint.types import Instances, RgbImage, Size, Text


class GroundedSam:
    """A `Segmenter` made of a detector and a masker (Grounded SAM, arXiv 2401.14159)."""

    def __init__(self, detector: GroundingDino, masker: SamMasker) -> None:
        self.detector = detector
        self.masker = masker

    def segment(self, images: Sequence[RgbImage], texts: Sequence[Sequence[Text]]) -> list[Instances]:
        """Find what each text talks about; see `patchmint.types.Segmenter`."""
        with span("detect"):
            found = self.detector.detect(images, texts)
        with span("mask"):
            masks = self.masker.masks(images, [detections.boxes for detections in found])
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

    def batch_key(self, size: Size) -> Hashable:
        """The size that the detector makes of an image: images of one size share its backbone pass.

        Args:
            size: (height, width) of an image.
        """
        return detector_size(size, self.detector.arch.short_side, self.detector.arch.long_side)
