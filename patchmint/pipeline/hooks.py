"""What a model may have besides its protocol's methods (`patchmint.types`), for the sake of speed."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from patchmint.compute.spans import span
from patchmint.types import RgbImage, Size


@runtime_checkable
class PrefersLikeSizes(Protocol):
    """What a segmenter may have besides: it is faster where the images of a batch are alike."""

    def batch_key(self, size: Size) -> Hashable:
        """Images with equal keys are best put into one batch.

        Args:
            size: (height, width) of an image.
        """
        ...


@runtime_checkable
class PreparesImages(Protocol):
    """What any model may have besides: work on an image that can be done ahead, on the CPU.

    Its method for images (`segment`, `tokenize`, `encode`) then takes a keyword `prepared`: what `prepare` made of each
    image, in order, or None where nothing was done ahead.
    """

    def prepare(self, image: RgbImage) -> object:
        """Do that work. A build calls this in several threads at once, while the model is at work.

        Args:
            image: any size; not to be changed.

        Returns:
            What the model wants: best a uint8 array, or a tuple or list of them. It is kept until the image's turn
            comes, and the bytes of arrays count towards what may wait.
        """
        ...


@dataclass(frozen=True)
class ModelInputs:
    """What the models made of one image ahead; None for a model that has no `prepare`."""

    segmenter: object = None
    tokenizer: object = None
    encoder: object = None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays in it."""
        return _nbytes((self.segmenter, self.tokenizer, self.encoder))


def prepared_by(model: object, image: RgbImage) -> object:
    """What a model's `prepare` makes of an image; None if it has none."""
    if not isinstance(model, PreparesImages):
        return None
    with span("prepare"):
        return model.prepare(image)


def handed(model: object, prepared: list[object]) -> dict[str, Any]:
    """The keyword by which a model gets what its `prepare` made of images; none if it has no `prepare`."""
    return {"prepared": prepared} if isinstance(model, PreparesImages) else {}


def _nbytes(prepared: object) -> int:
    if isinstance(prepared, tuple | list):
        return sum(map(_nbytes, prepared))
    return int(getattr(prepared, "nbytes", 0))
