"""The same detector asked again: of the image flipped, at another scale, and with the text put in another way.

What it finds each time is compared with the stored boxes (`patchmint.judging.evidence`). A label that hangs on one way
of asking is one to doubt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from PIL import Image

from patchmint.annotate.models import AnnotationModels
from patchmint.config import AnnotatorConfig
from patchmint.images.decode import decode_image
from patchmint.judging.evidence import Boxes, Heard
from patchmint.judging.plant import Label
from patchmint.shards.reader import StoredImage
from patchmint.types import RgbImage, Text

SCALE = 0.75


class Passes:
    """Asks a detector three times.

    Args:
        models: with a segmenter.
        max_megapixels: larger images aren't decoded.
    """

    def __init__(self, models: AnnotationModels, max_megapixels: float = 100) -> None:
        self._models, self._max_megapixels = models, max_megapixels

    @classmethod
    def load(cls, config: AnnotatorConfig, max_megapixels: float = 100, device: str = "cpu") -> Self:
        """Load the detector that labels were made with, without its masker.

        Args:
            config: what the labels were made with.
            max_megapixels: as for the constructor.
            device: where the detector runs.

        Raises:
            WeightsError, PluginError: as `AnnotationModels.load`.
        """
        assert config.labels is not None
        labels = config.labels.model_copy(update={"instances": False, "mask_area": None, "clip_to_box": False})
        models = config.models.model_copy(update={"masker": None})
        update = {"labels": labels, "models": models, "tokens": None, "features": None}
        return cls(AnnotationModels.load(config.model_copy(update=update), device), max_megapixels)

    def again(self, images: Sequence[StoredImage], found: Sequence[Mapping[int, Sequence[Label]]]) -> list[Heard]:
        """What they find in each image, by the numbers of its texts.

        Args:
            images: with their files, and KEY.json.
            found: in each, by the numbers of its texts.

        Raises:
            ImageError, ShardError: an image can't be read.
        """
        pixels = [decode_image(image.data, max_megapixels=self._max_megapixels).pixels for image in images]
        texts = [[_as_built(image, text) for text in image.texts] for image in images]
        others = [
            [_otherwise(text, of[number]) for number, text in zip(image.texts, own, strict=True)]
            for image, own, of in zip(images, texts, found, strict=True)
        ]
        passes = [
            self._found([np.ascontiguousarray(each[:, ::-1]) for each in pixels], texts, pixels, flipped=True),
            self._found([_scaled(each) for each in pixels], texts, pixels),
            self._found(pixels, others, pixels),
        ]
        return [
            {text: tuple(each[number][row] for each in passes) for row, text in enumerate(image.texts)}
            for number, image in enumerate(images)
        ]

    def _found(
        self,
        shown: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        images: Sequence[RgbImage],
        *,
        flipped: bool = False,
    ) -> list[list[Boxes]]:
        """Boxes in pixels of the images themselves, of each text."""
        answers = []
        for answer, view, image, own in zip(self._models.ask(shown, texts), shown, images, texts, strict=True):
            assert answer.instances is not None
            boxes = answer.instances.boxes.astype(np.float64)
            if flipped:
                boxes[:, [0, 2]] = view.shape[1] - boxes[:, [2, 0]]
            boxes *= np.tile(np.array(image.shape[1::-1]) / view.shape[1::-1], 2)
            found = list(zip(map(tuple, boxes.tolist()), answer.instances.scores.tolist(), strict=True))
            of = answer.instances.text_index.tolist()
            answers.append([tuple(f for f, t in zip(found, of, strict=True) if t == text) for text in range(len(own))])
        return answers


def _as_built(image: StoredImage, text: int) -> Text:
    told = image.key_json
    return Text(told.texts[text], told.annotators[text].spans if text < len(told.annotators) else ())


def _otherwise(text: Text, found: Sequence[Label]) -> Text:
    """The text with nothing but what was found named; the whole text, where phrases were named before."""
    spans = sorted({(each.phrase.start, each.phrase.end) for each in found})
    return Text(text.content) if text.phrases else Text(text.content, tuple(spans))


def _scaled(image: RgbImage) -> RgbImage:
    height, width = (max(round(SCALE * side), 1) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
