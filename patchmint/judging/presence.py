"""Thresholds of a second look, learnt from a data set whose truth is known (`labels.presence`).

Each stored box is looked at again by the detector that found it. Nothing is written into the data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import numpy.typing as npt

from patchmint.compute.devices import pick_device
from patchmint.compute.memory import keep_freed_memory
from patchmint.compute.threads import limit_threads
from patchmint.config import LabelsConfig, ModelsConfig, PresenceConfig
from patchmint.config.parsing import parse_settings
from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import iter_stored
from patchmint.errors import InputError
from patchmint.images.decode import decode_image
from patchmint.interfaces import Detections, Detector
from patchmint.judging.judge import Found
from patchmint.judging.metrics import Flags, Floats
from patchmint.judging.truth import ImageName, TrueImage, Truth
from patchmint.labelers.grounded_sam import build_grounded_sam
from patchmint.labelers.phrases import plain
from patchmint.labelers.presence import Presence
from patchmint.shards.manifest import made_by
from patchmint.shards.reader import StoredImage
from patchmint.types import UNKNOWN_SCORE, Progress, Text

_BATCH = 16
_ENOUGH = 100
"""Times that a phrase names something absent, from which on it has a threshold of its own."""
_NOT_FOUND = -2.0


@dataclass(frozen=True)
class LearntPresence:
    """What was learnt, and what it does on images that it wasn't learnt from.

    Attributes:
        settings: with the thresholds.
        absent: share of absent things that have a label, before and after.
        missed: share of present things that have none, before and after.
        phrases: that were looked at.
    """

    settings: PresenceConfig
    absent: tuple[float, float]
    missed: tuple[float, float]
    phrases: int


def learn_presence(
    dataset: Dataset,
    truth: Truth,
    settings: PresenceConfig,
    *,
    most: float = 0.005,
    detector: Detector | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> LearntPresence:
    """Learn the least thresholds at which no more than a share of absent things keeps a label.

    Args:
        dataset: built without a second look.
        truth: of its images.
        settings: of the second look; what thresholds they have doesn't matter.
        most: that share, 0..1.
        detector: looks; None: the one that made the labels, which must be on this machine.
        device: where that one runs, as for `Annotator`.
        progress: told after each sample.

    Raises:
        InputError: its labels aren't a detector's, or were looked at twice, or nothing absent is known.
        ShardError, StorageError, ImageError: a sample can't be read.
        WeightsError, PluginError: the detector can't be loaded.
    """
    asked, presence = detector or _detector(dataset, device), Presence(settings)
    told: list[tuple[int, str, bool, float]] = []
    samples = iter_stored(dataset, np.arange(dataset.samples), ("jpg", "json"), progress)
    known = (
        (image, true)
        for _, sample in samples
        for image in sample.images
        if (true := truth.of(ImageName.of(image))) is not None
    )
    numbers = count()
    while batch := list(islice(known, _BATCH)):
        for of_image, number in zip(_looked_at(batch, asked, presence, dataset.max_megapixels), numbers, strict=False):
            told += [(number, *each) for each in of_image]
    half = np.array([image % 2 == 1 for image, *_ in told], np.bool_)
    words = np.array([phrase for _, phrase, _, _ in told])
    there = np.array([is_there for _, _, is_there, _ in told], np.bool_)
    scores = np.array([score for *_, score in told], np.float64)
    if there[half].all() or there[~half].all():
        raise InputError(
            f"the truth of {dataset.uri} names too little that is absent; thresholds can't be learnt by it"
        )
    apart = [_learn(words[part], there[part], scores[part], most) for part in (half, ~half)]
    kept = np.where(half, _kept(apart[1], words, scores), _kept(apart[0], words, scores))
    threshold, thresholds = _learn(words, there, scores, most)
    before = scores > _NOT_FOUND
    return LearntPresence(
        settings.model_copy(update={"threshold": threshold, "thresholds": thresholds, "calibration": None}),
        absent=(float(before[~there].mean()), float(kept[~there].mean())),
        missed=(float(1 - before[there].mean()), float(1 - kept[there].mean())),
        phrases=len(told),
    )


def _detector(dataset: Dataset, device: str) -> Detector:
    told = made_by(dataset.manifest.config, "labels") if dataset.manifest is not None else None
    if told is None or not told.get("models"):
        raise InputError(f"{dataset.uri} doesn't say which detector made its labels; only a finished build does")
    labels = parse_settings(LabelsConfig, told["labels"])
    models = parse_settings(ModelsConfig, {role: name for role, name in told["models"].items() if "." not in role})
    if models.segmenter is not None or not labels.needs_detector or labels.presence is not None:
        raise InputError(
            f"the boxes of {dataset.uri} aren't what a detector found at one look; learn from a data set built with a "
            "detector, and without labels.presence"
        )
    limit_threads()
    keep_freed_memory()
    only_boxes = models.model_copy(update={"masker": None})
    detector = build_grounded_sam(only_boxes, labels, pick_device(device), told.get("precision", "auto")).detector
    assert detector is not None
    return detector


def _looked_at(
    images: Sequence[tuple[StoredImage, TrueImage]], detector: Detector, presence: Presence, megapixels: float
) -> list[list[tuple[str, bool, float]]]:
    """Of each image each thing named: its words, whether it is there, and the best score of a second look at its boxes.

    The score is `_NOT_FOUND` where there is no box.
    """
    texts = [[Text(image.key_json.texts[number]) for number in image.texts] for image, _ in images]
    found = [_detections(image) for image, _ in images]
    pixels = [decode_image(image.data, max_megapixels=megapixels).pixels for image, _ in images]
    answers = []
    rows = zip(images, texts, found, presence.scores(detector, pixels, texts, found), strict=True)
    for (_, true), own, boxes, scores in rows:
        named = []
        for number, text in enumerate(own):
            known = true.text(number, text.content)
            of_text = boxes.text_index == number
            answered = [Found((tuple(span),), 0.0) for span in boxes.spans[of_text].tolist()]
            for phrase in known.phrases if known is not None else ():
                touching = [each.shares(phrase.span) > 0 for each in answered]
                best = scores[of_text][touching].max(initial=_NOT_FOUND)
                named.append((plain(text.content[slice(*phrase.span)]), bool(phrase.things), float(best)))
        answers.append(named)
    return answers


def _detections(image: StoredImage) -> Detections:
    """What a detector found, texts counted as the image's own."""
    found = [each for each in image.phrases if each.score != UNKNOWN_SCORE]
    return Detections(
        boxes=np.array([each.box for each in found], np.float32).reshape(-1, 4),
        scores=np.array([each.score for each in found], np.float32),
        spans=np.array([(each.start, each.end) for each in found], np.int64).reshape(-1, 2),
        text_index=np.array([image.texts.index(each.text_index) for each in found], np.int64),
    )


def _learn(words: npt.NDArray[np.str_], there: Flags, scores: Floats, most: float) -> tuple[float, dict[str, float]]:
    """The threshold of all phrases, and those of single ones."""
    absent = {word: scores[~there & (words == word)] for word in np.unique(words).tolist()}
    own = {word: _least(of, most) for word, of in absent.items() if len(of) >= _ENOUGH}
    return _least(scores[~there], most), own


def _least(absent: Floats, most: float) -> float:
    """The least threshold that no more than a share of scores is over."""
    ranked: list[float] = [*sorted(absent.tolist(), reverse=True), -1.0]
    return min(max(ranked[int(most * len(absent))], -1.0), 0.999)


def _kept(learnt: tuple[float, Mapping[str, float]], words: npt.NDArray[np.str_], scores: Floats) -> Flags:
    limits = np.array([learnt[1].get(word, learnt[0]) for word in words.tolist()])
    return np.asarray(scores > limits)
