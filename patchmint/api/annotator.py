"""The front door for single images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice, zip_longest
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from patchmint.annotate.models import AnnotationModels, cpu_batch_size
from patchmint.annotate.preflight import check_explained, warn_of_models
from patchmint.api.annotation import Annotation, DocumentAnnotation
from patchmint.compute.devices import pick_device
from patchmint.compute.threads import limit_threads
from patchmint.config import AnnotatorConfig
from patchmint.errors import ConfigError, InputError
from patchmint.geometry.rle import box_of, encode_masks, from_coco
from patchmint.images.decode import DecodedImage, decode_image
from patchmint.interfaces import Explanation
from patchmint.labelers.explain import explain
from patchmint.labelers.grounded_sam import GroundedSam
from patchmint.labelers.tiled import TiledSegmenter
from patchmint.types import Instance, Text, as_texts

ImageSource = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8] | DecodedImage
TextSource = str | Text

_ABSENT: Any = object()
_Input = tuple[DecodedImage, list[Text]]


class Annotator:
    """Labels and tokenises single images.

    Example:
        >>> annotator = Annotator.from_preset("official")
        >>> annotation = annotator.annotate("photo.jpg", "a cat on a sofa")
        >>> annotation.selector.shape
        (1, 24, 24)
    """

    def __init__(self, config: AnnotatorConfig, device: str = "auto") -> None:
        """Load the models.

        torch in this process then uses no more CPU threads than OMP_NUM_THREADS, or a container's quota, allows.

        Args:
            config: the settings.
            device: "cpu", "cuda", "cuda:N", or "auto" = a GPU if there is one.

        Raises:
            ConfigError: a setting doesn't fit the models, or there is no such device.
            WeightsError: a checkpoint is missing or can't be used; the message says how to get it.
            PluginError: an outside model is missing or broken.
        """
        if config.labels is not None and config.labels.from_stored:
            raise ConfigError("labels.masks: stored needs a data set that is extended; single images have none")
        self.config = config
        self.device = pick_device(device)
        limit_threads()
        warn_of_models(config, stacklevel=3)
        self._models = AnnotationModels.load(config, self.device)

    @classmethod
    def from_preset(cls, models: str, *, device: str = "auto", **settings: Any) -> Annotator:
        """Load a models preset, with the default settings or others.

        Args:
            models: "official", "small", "demo" or "untrained-tiny".
            device: where to run.
            **settings: the other keys of the config: `labels`, `grid`, `tokens`, `features`.

        Raises:
            ConfigError, WeightsError, PluginError: as for the constructor.
        """
        return cls(AnnotatorConfig.parse({"models": models, **settings}), device)

    @classmethod
    def from_config(cls, settings: Mapping[str, Any], *, device: str = "auto") -> Annotator:
        """Load what a config mapping (as in a YAML file) names: `models`, `labels`, `grid`, `tokens`, `features`.

        Without `models` it loads the demo's, which know drawn shapes only.

        Raises:
            ConfigError, WeightsError, PluginError: as for the constructor.
        """
        return cls(AnnotatorConfig.parse(settings), device)

    def annotate(
        self,
        image: ImageSource,
        text: TextSource | Sequence[TextSource],
        *,
        boxes: Any = None,
        masks: Any = None,
        max_megapixels: float = 100,
    ) -> Annotation:
        """Annotate one image.

        Args:
            image: path, bytes of a file, PIL image, HWC uint8 RGB array, or what `decode_image` made of one.
            text: one text, or a list of texts. For phrases of your own pass `Text(content, phrases=...)` or
                `Text.from_phrases([...])`.
            boxes: your own, instead of the detector's: (N, 4), XYXY in pixels of the upright image. Of several texts a
                list with those of each; None or an empty one = to be found.
            masks: your own, which count instead of boxes: (N, H, W), bool or uint8, or N COCO RLEs, of the upright
                image's size. Of several texts as `boxes`.
            max_megapixels: larger images are refused.

        Returns:
            Labels and codes. A text that names nothing in the image gets an all-zero grid, which is no error. Boxes and
            masks of your own have the score -1.

        Raises:
            ImageError: the image can't be read or is too large.
            TextError: there is no text, one is blank, or a box isn't one.
            InputError: boxes or masks aren't of these shapes, don't fit the image or the number of texts, or the
                models are a segmenter plug-in.
        """
        decoded, texts = _taken(image, text, max_megapixels)
        several = not isinstance(text, str | Text)
        texts = _with_own(texts, boxes if several else [boxes], masks if several else [masks])
        return self._annotate([(decoded, texts)])[0]

    def explain(
        self, image: ImageSource, text: TextSource | Sequence[TextSource], *, max_megapixels: float = 100
    ) -> list[Explanation]:
        """Say why each phrase has boxes in an image, or none; of a text that names no phrases, the whole text.

        It takes the detector and the masker as long as `annotate`.

        Args:
            image: as for `annotate`.
            text: as for `annotate`.
            max_megapixels: as for `annotate`.

        Returns:
            An explanation a phrase, texts in order.

        Raises:
            ImageError, TextError: as for `annotate`.
            InputError: no labels were asked for, or a segmenter makes them, without a detector.
        """
        decoded, texts = _taken(image, text, max_megapixels)
        check_explained(self.config)
        assert isinstance(self._models.segmenter, GroundedSam | TiledSegmenter)
        return explain(self._models.segmenter, decoded.pixels, texts)

    def annotate_batch(
        self,
        images: Iterable[ImageSource],
        texts: Iterable[TextSource | Sequence[TextSource]],
        *,
        batch_size: int | None = None,
        max_megapixels: float = 100,
    ) -> list[Annotation]:
        """Annotate many images. The results are those of `annotate` for each image, but for the rounding of floats.

        Args:
            images: of any sizes, each in any form that `annotate` takes. They are read as they are needed.
            texts: for each image one text or a list of texts.
            batch_size: images that the models take at once. None: 8 to 32, by the size of the models' inputs.
            max_megapixels: larger images are refused.

        Returns:
            One annotation an image, in order. Each keeps its decoded image; `patchmint.build` is for more images than
            fit into memory.

        Raises:
            ImageError: an image can't be read or is too large; `index` and the message say which.
            TextError: an image has no text, or a blank one; `index` and the message say which image.
            InputError: there aren't as many images as texts.
            ConfigError: `batch_size` is less than 1.
        """
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        size = batch_size or cpu_batch_size(self._models)
        inputs, annotations = _all_taken(images, texts, max_megapixels), list[Annotation]()
        while batch := list(islice(inputs, size)):
            annotations += self._annotate(batch)
        return annotations

    def annotate_document(
        self,
        parts: Iterable[TextSource | ImageSource],
        texts: Literal["all", "neighbours"] = "all",
        *,
        max_megapixels: float = 100,
    ) -> DocumentAnnotation:
        """Annotate a document of several images.

        Args:
            parts: texts and images in their order; images in any form that `annotate` takes, but paths as `Path`: a
                string is a text.
            texts: which of them label an image: "all", as in MaVEn a question guides every image, or "neighbours", the
                nearest before and after it. Builds have the same choice (`source.image_texts`).
            max_megapixels: larger images are refused.

        Returns:
            One annotation an image, in order.

        Raises:
            ImageError: an image can't be read or is too large; `index` and the message say which.
            TextError: there is no text, or a blank one.
            InputError: there is no image.
            ConfigError: `texts` is neither.
        """
        if texts not in ("all", "neighbours"):
            raise ConfigError(f'texts must be "all" or "neighbours", not {texts!r}')
        said: list[TextSource] = []
        images: list[ImageSource] = []
        before: list[int] = []
        for part in parts:
            if isinstance(part, str | Text):
                said.append(part)
            else:
                images.append(part)
                before.append(len(said))
        if not images:
            raise InputError("the document has no image; give paths as `Path`: a string is a text")
        found = as_texts(said)
        numbers = range(len(found))
        own = [tuple(numbers if texts == "all" else numbers[max(0, at - 1) : at + 1]) for at in before]
        annotated = self.annotate_batch(
            images, [[found[number] for number in each] for each in own], max_megapixels=max_megapixels
        )
        return DocumentAnnotation(tuple(found), tuple(annotated), tuple(own))

    def _annotate(self, inputs: Sequence[_Input]) -> list[Annotation]:
        if self.config.models.segmenter and any(text.instances for _, texts in inputs for text in texts):
            raise InputError(f"the segmenter {self.config.models.segmenter} takes no boxes or masks of your own")
        annotated = self._models.annotate([image.pixels for image, _ in inputs], [texts for _, texts in inputs])
        return [Annotation(*taken, made, self.config) for taken, made in zip(inputs, annotated, strict=True)]


def _taken(image: ImageSource, text: TextSource | Sequence[TextSource], max_megapixels: float) -> _Input:
    decoded = image if isinstance(image, DecodedImage) else decode_image(image, max_megapixels=max_megapixels)
    if decoded.dark:
        message = "the image is nearly black: of its 16 bits only the lowest are in use; scale its values to 16 bits"
        warnings.warn(message, stacklevel=3)
    return decoded, as_texts(text)


def _with_own(texts: Sequence[Text], boxes: Any, masks: Any) -> list[Text]:
    """The texts with boxes and masks of the user's own; see `Annotator.annotate`."""
    for name, given in (("boxes", boxes), ("masks", masks)):
        if given is not None and len(given) != len(texts):
            raise InputError(f"there are {len(texts)} texts and {name} of {len(given)}; give a list with those of each")
    nothing = [None] * len(texts)
    own = zip(texts, nothing if boxes is None else boxes, nothing if masks is None else masks, strict=True)
    return [
        text
        if its_boxes is None and its_masks is None
        else replace(text, instances=_own_boxes(its_boxes) if its_masks is None else _own_masks(its_masks))
        for text, its_boxes, its_masks in own
    ]


def _own_boxes(given: Any) -> tuple[Instance, ...]:
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"boxes must be numbers (N, 4), XYXY in pixels: {error}") from error
    if array.size and (array.ndim != 2 or array.shape[1] != 4):
        raise InputError(f"boxes must be (N, 4), XYXY in pixels, not of shape {array.shape}")
    return tuple(Instance((left, top, right, bottom)) for left, top, right, bottom in array.reshape(-1, 4).tolist())


def _own_masks(given: Any) -> tuple[Instance, ...]:
    masks = encode_masks(given) if isinstance(given, np.ndarray) else [from_coco(mask) for mask in given]
    return tuple(Instance(box_of(mask), mask=mask) for mask in masks)


def _all_taken(
    images: Iterable[ImageSource], texts: Iterable[TextSource | Sequence[TextSource]], max_megapixels: float
) -> Iterator[_Input]:
    one_image = isinstance(images, str | bytes | os.PathLike | Image.Image | DecodedImage)
    if one_image or (isinstance(images, np.ndarray) and images.ndim != 4):
        raise InputError("annotate_batch takes a list of images, and this is one; pass it to `annotate`")
    if isinstance(texts, str | Text):
        raise InputError("annotate_batch takes one text or a list of texts for each image, and this is one text")
    for index, (image, text) in enumerate(zip_longest(images, texts, fillvalue=_ABSENT)):
        if image is _ABSENT or text is _ABSENT:
            more, fewer = ("texts", "images") if image is _ABSENT else ("images", "texts")
            raise InputError(f"there are more {more} than {fewer} ({index}); give one text or a list for each image")
        try:
            yield _taken(image, text, max_megapixels)
        except InputError as error:
            named = copy(error)
            named.args, named.index = (f"image {index}: {error}",), index
            raise named from error
