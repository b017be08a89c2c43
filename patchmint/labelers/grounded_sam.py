"""Grounded SAM: a detector finds boxes for a text, a masker makes masks of them. One segmenter out of two models.

Either model may be left out: boxes, and masks, may come with the texts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from patchmint.compute.devices import resolve_precision
from patchmint.compute.stages import stage
from patchmint.config import UNTRAINED, LabelsConfig, ModelsConfig
from patchmint.errors import PluginError
from patchmint.geometry.rle import ChosenMasks, Masks
from patchmint.interfaces import (
    Detections,
    Detector,
    Instances,
    Masker,
    PhraseDetector,
    PrefersLikeSizes,
    check_answers,
    handed,
    prepared_by,
)
from patchmint.labelers.box_rules import USUAL_RULES, BoxRules, Loss, merge
from patchmint.labelers.given import BoxMasks, JoinedMasks, given_boxes, given_masks
from patchmint.labelers.grounding_dino import arch as dino_arch
from patchmint.labelers.grounding_dino import model as dino_model
from patchmint.labelers.grounding_dino.detector import GroundingDino
from patchmint.labelers.grounding_dino.prompts import Vocabulary
from patchmint.labelers.mask_rules import MaskRules
from patchmint.labelers.owlv2.arch import Owlv2Arch, infer_detector
from patchmint.labelers.phrases import ByPhrases
from patchmint.labelers.presence import Presence
from patchmint.labelers.sam import arch as sam_arch
from patchmint.labelers.sam import model as sam_model
from patchmint.labelers.sam.masker import SamMasker
from patchmint.plugins import is_outside, load_plugin, named
from patchmint.types import UNKNOWN_SCORE, Origin, Precision, RgbImage, Size, Text
from patchmint.weights.loading import load_named
from patchmint.weights.store import locate

Prepared = tuple[object, object]
"""What the detector and the masker made of an image ahead; None of one that is left out, or does nothing ahead."""


class GroundedSam:
    """A `Segmenter` made of a detector and a masker (Grounded SAM, arXiv 2401.14159).

    Args:
        detector: finds boxes for texts that have none; None = nothing is found for these.
        masker: makes masks of boxes; None = the boxes are the masks.
        box_rules: what the detector is asked for, and which of its boxes count.
        presence: looks at these once more; None = nobody does.
        mask_area: shares of the image that a mask has at least, and at most; None = any.
        clip_to_box: whether masks end at their boxes.
        names: of detector and masker, for errors.
    """

    def __init__(
        self,
        detector: Detector | None,
        masker: Masker | None,
        *,
        box_rules: BoxRules = USUAL_RULES,
        presence: Presence | None = None,
        mask_area: tuple[float, float] | None = None,
        clip_to_box: bool = False,
        names: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self.detector = detector
        self.masker = masker
        self.box_rules = box_rules
        self.presence = presence
        self._detector_name, self._masker_name = names
        self._mask_rules = MaskRules(mask_area, clip_to_box)

    def prepare(self, image: RgbImage) -> Prepared:
        """Do what detector and masker can do ahead; for any thread.

        It is in vain where nothing is looked for, or found, which costs milliseconds of a thread that has time.
        """
        return prepared_by(self.detector, image), prepared_by(self.masker, image)

    def segment(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        prepared: Sequence[Prepared] | None = None,
        losses: Sequence[list[Loss]] | None = None,
    ) -> list[Instances]:
        """Find what each text talks about; see `patchmint.interfaces.Segmenter`.

        Args:
            images: any sizes.
            texts: for each image its texts.
            prepared: what `prepare` made of each image; None = nothing was done ahead.
            losses: as for `BoxRules.detect`.
        """
        ready = [self.prepare(image) for image in images] if prepared is None else prepared
        with stage("detect"), named(self._detector_name):
            found, unconfirmed = self._boxes(images, texts, ready, losses)
        boxes, repeated = zip(*(_once(detections.boxes) for detections in found), strict=True) if found else ((), ())
        with stage("mask"), named(self._masker_name):
            masks: list[Masks] = [
                once if chosen is None else ChosenMasks(once, chosen)
                for once, chosen in zip(self._masks(images, boxes, ready), repeated, strict=True)
            ]
        answers = []
        noted = [None] * len(images) if losses is None else losses
        rows = zip(images, texts, found, unconfirmed, masks, noted, strict=True)
        for image, image_texts, detections, doubted, image_masks, lost in rows:
            size = (image.shape[0], image.shape[1])
            of_boxes: Origin = "annotator" if self.masker is None else "mixed"
            origins = [of_boxes if score == UNKNOWN_SCORE else "model" for score in detections.scores]
            drawn = given_masks(image_texts, size)
            if len(drawn[1]):
                detections, image_masks, origins = _joined((detections, image_masks, origins), drawn)
            made = self._instances(size, detections, image_masks, origins, lost)
            answers.append(replace(made, unconfirmed=doubted))
        return answers

    def _boxes(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        prepared: Sequence[Prepared],
        losses: Sequence[list[Loss]] | None,
    ) -> tuple[list[Detections], list[frozenset[tuple[int, int, int]]]]:
        """Of each image the boxes that come with its texts, and those that are found for the other texts.

        Also which phrases of the latter a second look didn't confirm, as `Instances.unconfirmed`.
        """
        given = [given_boxes(each, (image.shape[0], image.shape[1])) for each, image in zip(texts, images, strict=True)]
        asked = [[index for index, text in enumerate(each) if not text.instances] for each in texts]
        looked = [index for index, wanted in enumerate(asked) if wanted]
        unconfirmed: list[frozenset[tuple[int, int, int]]] = [frozenset()] * len(images)
        if self.detector is not None and looked:
            own: list[list[Loss]] = [[] for _ in looked]
            noted = own if losses is not None else None
            seen = [images[index] for index in looked]
            wanted = [[texts[index][text] for text in asked[index]] for index in looked]
            found = self.box_rules.detect(self.detector, seen, wanted, [prepared[index][0] for index in looked], noted)
            if self.presence is not None:
                kept = self.presence.kept(self.detector, seen, wanted, found, noted)
                for index, before, after in zip(looked, found, kept, strict=True):
                    unconfirmed[index] = frozenset(_names(before, asked[index]) - _names(after, asked[index]))
                found = kept
            for index, detections, lost in zip(looked, found, own, strict=True):
                numbers = np.array([*asked[index], len(texts[index])])  # the last: of negative phrases
                given[index] = merge([given[index], replace(detections, text_index=numbers[detections.text_index])])
                if losses is not None:
                    losses[index] += [each.moved(numbers) for each in lost]
        return given, unconfirmed

    def _masks(
        self,
        images: Sequence[RgbImage],
        boxes: Sequence[npt.NDArray[np.float32]],
        prepared: Sequence[Prepared],
    ) -> Sequence[Masks]:
        if self.masker is None:
            return [BoxMasks(each, (image.shape[0], image.shape[1])) for each, image in zip(boxes, images, strict=True)]
        return masks_of(self.masker, images, boxes, [parts[1] for parts in prepared])

    def _instances(
        self,
        size: Size,
        detections: Detections,
        masks: Masks,
        origins: Sequence[Origin],
        losses: list[Loss] | None,
    ) -> Instances:
        found = Instances(
            image_size=size,
            masks=masks,
            text_index=detections.text_index,
            scores=detections.scores,
            boxes=detections.boxes,
            spans=detections.spans,
            origins=tuple(origins),
        )
        found = self._mask_rules.clip(found)
        kept = self._mask_rules.kept(found)
        if losses is not None:
            losses.append(Loss("mask_area", detections.only(~kept)))
        return found.only(np.flatnonzero(kept))

    def rehearse(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        boxes: int,
        prepared: Sequence[Prepared] | None = None,
    ) -> None:
        """Do all the work of `segment`, as if so many boxes had been found in each image.

        Args:
            images: any sizes.
            texts: for each image its texts.
            boxes: as large as the image.
            prepared: what `prepare` made of each image; None = nothing was done ahead.
        """
        ready = [self.prepare(image) for image in images] if prepared is None else prepared
        if self.detector is not None:
            self.box_rules.detect(self.detector, images, texts, [parts[0] for parts in ready])
        whole = [np.array([[0, 0, image.shape[1], image.shape[0]]] * boxes, np.float32) for image in images]
        if self.detector is not None and self.presence is not None:
            self.presence.rehearse(self.detector, images, texts)
        self._masks(images, whole, ready)

    def batch_key(self, size: Size) -> Hashable:
        """The detector's, if it has one.

        Args:
            size: (height, width) of an image.
        """
        return self.detector.batch_key(size) if isinstance(self.detector, PrefersLikeSizes) else None


def masks_of(
    masker: Masker,
    images: Sequence[RgbImage],
    boxes: Sequence[npt.NDArray[np.float32]],
    prepared: Sequence[object] | None = None,
) -> list[Masks]:
    """Have a masker make the masks of boxes, whatever it is; see `patchmint.interfaces.Masker`.

    Args:
        masker: any.
        images: any sizes.
        boxes: for each image (N, 4).
        prepared: what its `prepare` made of each image; None = nothing was done ahead.

    Raises:
        PluginError: an outside masker breaks its contract.
    """
    ready = [prepared_by(masker, image) for image in images] if prepared is None else prepared
    found = masker.masks(images, boxes, **handed(masker, ready))
    check_answers("a masker", len(images), found)
    for masks, each in zip(found, boxes, strict=True):
        if len(masks) != len(each):
            raise PluginError(f"a masker gave {len(masks)} masks for {len(each)} boxes; it must give one a box")
    return found


def _names(found: Detections, texts: Sequence[int]) -> set[tuple[int, int, int]]:
    """The text and the span of each box, by the numbers of the texts that were asked for."""
    rows = zip(found.text_index.tolist(), found.spans.tolist(), strict=True)
    return {(texts[text], start, end) for text, (start, end) in rows}


def _once(boxes: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], tuple[int, ...] | None]:
    """Boxes (N, 4), each once where several phrases lead to it, and the number of each; None if none is repeated."""
    numbers: dict[bytes, int] = {}
    chosen = tuple(numbers.setdefault(box.tobytes(), len(numbers)) for box in boxes)
    if len(numbers) == len(boxes):
        return boxes, None
    return boxes[[chosen.index(number) for number in range(len(numbers))]], chosen


def _joined(
    found: tuple[Detections, Masks, Sequence[Origin]], drawn: tuple[Detections, Masks]
) -> tuple[Detections, Masks, list[Origin]]:
    """What has masks of its own, beside the rest of an image's; texts in order."""
    order = np.argsort(np.concatenate([found[0].text_index, drawn[0].text_index]), kind="stable").tolist()
    theirs: Origin = "annotator"
    origins = [*found[2], *[theirs] * len(drawn[1])]
    masks = ChosenMasks(JoinedMasks(found[1], drawn[1]), tuple(order))
    return merge([found[0], drawn[0]]), masks, [origins[number] for number in order]


def build_grounded_sam(
    models: ModelsConfig, labels: LabelsConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> GroundedSam:
    """Build what is needed of detector and masker, and load weights; see `patchmint.labelers.build.build_segmenter`.

    Raises:
        WeightsError: a checkpoint is missing, damaged, unsafe or of another architecture.
        PluginError: an outside detector or masker is missing or broken.
    """
    needs_masker = models.masker is not None and labels.needs_masker
    return GroundedSam(
        _build_detector(models, labels, device, precision, compiled=compiled) if labels.needs_detector else None,
        build_masker(models, labels, device, precision, compiled=compiled) if needs_masker else None,
        box_rules=BoxRules.of(labels),
        presence=Presence(labels.presence) if labels.presence is not None else None,
        mask_area=labels.mask_area,
        clip_to_box=labels.clip_to_box,
        names=(models.detector, models.masker),
    )


def _build_detector(
    models: ModelsConfig, labels: LabelsConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> Detector:
    if is_outside("detector", models.detector):
        given = models.given(models.detector, locate) | {"precision": precision}
        kinds = (Detector, PhraseDetector)
        found = load_plugin("patchmint.detectors", models.detector, kinds, device, **given)
        return ByPhrases(found) if isinstance(found, PhraseDetector) else cast(Detector, found)
    reduced = resolve_precision(precision, device, cpu=torch.bfloat16, gpu=torch.bfloat16)
    if models.detector == UNTRAINED:
        model, arch = dino_model.untrained(dino_arch.TINY), dino_arch.TINY
    else:
        state = load_named(models.detector)
        kind = infer_detector(state.tensors, state.metadata)
        if isinstance(kind, Owlv2Arch):
            from patchmint.labelers.owlv2.detector import Owlv2, load_owlv2

            words = kind.words(locate(models.vocabulary, "vocabulary"))
            return ByPhrases(Owlv2(load_owlv2(state, kind), words, device=device, precision=reduced))
        model, arch = dino_model.load_grounding_dino(state)
    vocabulary = (
        Vocabulary.of_characters(arch.text_vocabulary)
        if models.vocabulary == UNTRAINED
        else Vocabulary.from_file(locate(models.vocabulary, "vocabulary"))
    )
    return GroundingDino(
        model,
        arch,
        vocabulary,
        text_threshold=labels.text_threshold,
        device=device,
        precision=reduced,
        compiled=compiled,
    )


def build_masker(
    models: ModelsConfig, labels: LabelsConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> Masker:
    """Build the masker alone, which the settings must name, and load its weights.

    Raises:
        WeightsError, PluginError: as `build_grounded_sam`.
    """
    assert models.masker is not None
    if is_outside("masker", models.masker):
        given = models.given(models.masker, locate) | {"precision": precision}
        return cast(Masker, load_plugin("patchmint.maskers", models.masker, Masker, device, **given))
    make: type[SamMasker] = SamMasker
    if models.masker == UNTRAINED:
        model = sam_model.untrained(sam_arch.TINY, seed=0)
    else:
        state = load_named(models.masker)
        arch = sam_arch.infer_arch(state.tensors, state.metadata)
        if isinstance(arch, sam_arch.DescribedArch):
            from patchmint.labelers.sam.described import load_described_masker  # takes seconds to import

            make, model = load_described_masker(state, arch)
        else:
            model = sam_model.load_sam(state)
    return make(
        model,
        device=device,
        precision=resolve_precision(precision, device, cpu=torch.bfloat16, gpu=torch.bfloat16),
        coverage=labels.coverage,
        compiled=compiled,
    )
