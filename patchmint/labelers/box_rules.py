"""What a detector is asked for, and which of its boxes count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import box_iou

from patchmint.config import LabelsConfig
from patchmint.interfaces import Detections, Detector, Reason, check_answers, check_found, handed
from patchmint.labelers.phrases import phrase_spans, plain
from patchmint.types import Integers, RgbImage, Size, Span, Text

_HALF = 0.5


@dataclass(frozen=True)
class Loss:
    """Boxes that don't count, and why.

    Attributes:
        reason: what took them away.
        found: they.
    """

    reason: Reason
    found: Detections

    def moved(self, numbers: Integers, offset: npt.NDArray[np.float32] | float = 0.0) -> Loss:
        """The same where text n is `numbers[n]`, and boxes lie elsewhere."""
        boxes, texts = self.found.boxes + np.float32(offset), numbers[self.found.text_index]
        return Loss(self.reason, Detections(boxes, self.found.scores, self.found.spans, texts))


@dataclass(frozen=True)
class BoxRules:
    """The settings in `labels` that rule over a detector, whichever it is.

    Attributes:
        splits: whether a text that names no phrases has one between each two full stops (`prompt: phrases`).
        threshold: what the score of a box must be over.
        thresholds: of single phrases, instead.
        negative: phrases that are looked for in each image as well: a box is dropped if one of theirs scores better,
            and overlaps it by more than half (IoU).
        nms: of a phrase's boxes that overlap by more than this IoU, the best stays.
        area: shares of the image that a box has at least, and at most.
    """

    splits: bool = False
    threshold: float = 0.35
    thresholds: Mapping[str, float] = field(default_factory=dict)
    negative: tuple[str, ...] = ()
    nms: float | None = None
    area: tuple[float, float] | None = None

    @classmethod
    def of(cls, labels: LabelsConfig) -> BoxRules:
        """Those of the settings."""
        return cls(
            labels.prompt == "phrases",
            labels.box_threshold,
            labels.phrase_thresholds or {},
            labels.negative_phrases or (),
            labels.nms,
            labels.box_area,
        )

    def detect(
        self,
        detector: Detector,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        prepared: Sequence[Any],
        losses: Sequence[list[Loss]] | None = None,
    ) -> list[Detections]:
        """Have a detector find what each text talks about.

        Args:
            detector: any.
            images: HWC uint8 RGB, any sizes.
            texts: for each image its texts.
            prepared: what the detector's `prepare` made of each image.
            losses: for each image a list to which is added which boxes don't count, and why; text n stands for negative
                phrases, where n is the number of the image's texts. None = nobody asks.

        Returns:
            One `Detections` an image, of boxes that count, best first within each text.

        Raises:
            PluginError: an outside detector breaks its contract.
        """
        negative = [Text.from_phrases(self.negative)] if self.negative else []
        asked = [[*(replace(text, phrases=tuple(self.spans(text))) for text in own), *negative] for own in texts]
        least = min([self.threshold, *self.thresholds.values()]) if losses is None else 0.0
        answers = detector.detect(images, asked, least, **handed(detector, prepared))
        check_answers("a detector", len(images), answers, Detections)
        kept = []
        noted = [None] * len(images) if losses is None else losses
        for image, own, found, lost in zip(images, asked, answers, noted, strict=True):
            size = (image.shape[0], image.shape[1])
            check_found("a detector", found, size, own)
            kept.append(self._kept(merge([found]), own, size, lost))
        return kept

    def spans(self, text: Text) -> Sequence[Span]:
        """The phrases of a text that a detector is asked for; none: the whole text."""
        return phrase_spans(text) if text.phrases or self.splits else ()

    def threshold_of(self, phrase: str) -> float:
        """The score over which a box of a phrase counts."""
        return self._thresholds.get(plain(phrase), self.threshold)

    @cached_property
    def _thresholds(self) -> Mapping[str, float]:
        return {plain(phrase): threshold for phrase, threshold in self.thresholds.items()}

    def _kept(self, found: Detections, asked: Sequence[Text], size: Size, losses: list[Loss] | None) -> Detections:
        """What the rules leave of an image's boxes, when those of negative phrases, the last text's, have served."""
        places = zip(found.text_index, found.spans, strict=True)
        limits = [self.threshold_of(asked[text].content[start:end]) for text, (start, end) in places]
        found = without(found, found.scores <= np.array(limits, np.float32), "threshold", losses)
        if self.negative:
            theirs = np.asarray(found.text_index == len(asked) - 1)
            against, found = found.only(theirs), found.only(~theirs)
            better = against.scores > found.scores[:, None]
            beaten = better & (overlaps(found.boxes, against.boxes) > _HALF)
            found = without(found, np.asarray(beaten.any(axis=1)), "negative_phrases", losses)
        if self.nms is not None:
            found = without(found, ~_best_of_alike(found, self.nms), "nms", losses)
        if self.area is not None:
            sides = found.boxes[:, 2:] - found.boxes[:, :2]
            share = sides.prod(axis=1) / (size[0] * size[1])
            found = without(found, (share < self.area[0]) | (share > self.area[1]), "box_area", losses)
        return found


USUAL_RULES = BoxRules()


def without(found: Detections, lost: npt.NDArray[np.bool_], reason: Reason, losses: list[Loss] | None) -> Detections:
    """The others, when those that are lost, bool (N,), have been noted where somebody asks."""
    if losses is not None:
        losses.append(Loss(reason, found.only(lost)))
    return found.only(~lost)


def merge(parts: list[Detections]) -> Detections:
    """Put detections together, texts in order, best first within each."""
    if not parts:
        return Detections.none()
    text_index = np.concatenate([part.text_index for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    order = np.lexsort((-scores, text_index))
    return Detections(
        boxes=np.concatenate([part.boxes for part in parts])[order],
        scores=scores[order],
        spans=np.concatenate([part.spans for part in parts])[order],
        text_index=text_index[order],
    )


def overlaps(boxes: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Intersection over union of boxes (N, 4) and others (M, 4): (N, M)."""
    return np.asarray(box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).numpy())


def _best_of_alike(found: Detections, most: float) -> npt.NDArray[np.bool_]:
    """Non-maximum suppression within each phrase of each text: bool (N,); those found are best first."""
    alike = overlaps(found.boxes, found.boxes)
    names = np.concatenate([found.text_index[:, None], found.spans], axis=1)
    kept = np.zeros(len(names), dtype=np.bool_)
    for number, name in enumerate(names):
        kept[number] = not (kept & (names == name).all(axis=1) & (alike[number] > most)).any()
    return kept
