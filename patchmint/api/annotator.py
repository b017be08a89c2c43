"""The front door for single images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from patchmint.annotate.devices import pick_device
from patchmint.annotate.models import AnnotationModels
from patchmint.api.annotation import Annotation
from patchmint.config import UNTRAINED_NOTICE, AnnotatorConfig
from patchmint.errors import DemoWarning, UntrainedWarning
from patchmint.images.decode import DecodedImage, decode_image
from patchmint.types import Text, as_texts

ImageSource = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8] | DecodedImage
TextSource = str | Text


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

        Args:
            config: the settings.
            device: "cpu", "cuda", "cuda:N", or "auto" = a GPU if there is one.

        Raises:
            ConfigError: a setting doesn't fit the models, or there is no such device.
            WeightsError: a checkpoint is missing or can't be used; the message says how to get it.
            PluginError: an outside model is missing or broken.
        """
        self.config = config
        self.device = pick_device(device)
        if config.notice:
            category = UntrainedWarning if config.notice == UNTRAINED_NOTICE else DemoWarning
            warnings.warn(config.notice, category, stacklevel=3)
        self._models = AnnotationModels.load(config, self.device)

    @classmethod
    def from_preset(cls, models: str, *, device: str = "auto", **settings: Any) -> Annotator:
        """Load a models preset, with the default settings or others.

        Args:
            models: "official", "demo" or "untrained-tiny".
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
        self, image: ImageSource, text: TextSource | Sequence[TextSource], *, max_megapixels: float = 100
    ) -> Annotation:
        """Annotate one image.

        Args:
            image: path, bytes of a file, PIL image, HWC uint8 RGB array, or what `decode_image` made of one.
            text: one text, or a list of texts. For phrases of your own pass `Text(content, phrases=...)` or
                `Text.from_phrases([...])`.
            max_megapixels: larger images are refused.

        Returns:
            Labels and codes. A text that names nothing in the image gets an all-zero grid, which is no error.

        Raises:
            ImageError: the image can't be read or is too large.
            TextError: there is no text, or one is blank.
        """
        decoded = image if isinstance(image, DecodedImage) else decode_image(image, max_megapixels=max_megapixels)
        texts = as_texts(text)
        annotated = self._models.annotate([decoded.pixels], [texts])[0]
        return Annotation(decoded, texts, annotated, self.config)
