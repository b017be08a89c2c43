"""A sample's texts and images, or what is wrong with them: what a build rejects, and a dry run foresees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from patchmint.errors import (
    ImageDecodeError,
    ImageMissingError,
    ImageTooLargeError,
    ImageUnreadableError,
    TextError,
)
from patchmint.images.decode import DecodedImage
from patchmint.samples import Box, Fault, ImageRef, SourceSample
from patchmint.types import Size, Text


@dataclass(frozen=True)
class ReadImage:
    """An image of a sample.

    Attributes:
        number: among the sample's images.
        data: the file's bytes.
        image: the same, decoded.
    """

    number: int
    data: bytes
    image: DecodedImage


@dataclass(frozen=True)
class ReadSample:
    """A sample that the models can be asked about.

    Attributes:
        texts: at least one of them says something.
        images: at least one, in order; a picture's only one.
        dropped: what is wrong with the document's other images, by number.
    """

    texts: list[Text]
    images: tuple[ReadImage, ...]
    dropped: Mapping[int, Fault]


def check_texts(sample: SourceSample) -> list[Text] | Fault:
    """The texts as models take them, or why a sample is rejected before its image is looked at."""
    if sample.fault is not None:
        return sample.fault
    try:
        texts = [text.to_text() for text in sample.texts]
    except TextError as error:
        return Fault("text", "text-invalid", str(error))
    if not any(text.content.strip() for text in texts):
        return Fault("text", "text-empty", "none of the sample's texts says anything")
    return texts


def read_sample(
    sample: SourceSample,
    read: Callable[[int, ImageRef], bytes],
    decode: Callable[[bytes], DecodedImage],
    *,
    drop: bool = False,
) -> ReadSample | Fault:
    """Check a sample's texts, read its images and decode them.

    Args:
        sample: of a source.
        read: gives an image file's bytes from its number and reference, as `Source.read_image`.
        decode: `decode_image` with its limit.
        drop: do without the bad images of a document that has good ones.

    Returns:
        What was read; or the sample's fault, its first bad image's where that rejects it.

    Raises:
        StorageError: reading failed; another try may do.
    """
    texts = check_texts(sample)
    if isinstance(texts, Fault):
        return texts
    images: list[ReadImage] = []
    dropped: dict[int, Fault] = {}
    for number, ref in enumerate(sample.images):
        found = ref if isinstance(ref, Fault) else _read_image(number, ref, read, decode)
        if isinstance(found, ReadImage):
            images.append(found)
        elif drop:
            dropped[number] = found
        else:
            return found
    return ReadSample(texts, tuple(images), dropped) if images else dropped[0]


def _read_image(
    number: int, ref: ImageRef, read: Callable[[int, ImageRef], bytes], decode: Callable[[bytes], DecodedImage]
) -> ReadImage | Fault:
    where, path = "read", ref.path
    try:
        data = read(number, ref)
        where = "decode"
        return ReadImage(number, data, decode(data))
    except ImageUnreadableError as error:
        return Fault(where, "image-unreadable", str(error))
    except MemoryError:
        return Fault(where, "out-of-memory", f"{path}: there isn't enough memory to decode it")
    except ImageMissingError as error:
        return Fault(where, "image-missing", str(error))
    except ImageTooLargeError as error:
        return Fault(where, "image-too-large", f"{path}: {error}")
    except ImageDecodeError as error:
        return Fault(where, "image-damaged", f"{path}: {error}")


def with_boxes(texts: Sequence[Text], sample: SourceSample, image: DecodedImage) -> list[Text]:
    """The texts with their annotators' boxes, which are turned as the image was; boxes without an area are left out.

    Args:
        texts: all of the sample's, in order.
        sample: what its source says.
        image: the sample's, upright.
    """
    return [
        replace(text, boxes=tuple(_turned(box, image.orientation, image.size) for box in said.boxes if _is_wide(box)))
        for text, said in zip(texts, sample.texts, strict=True)
    ]


def _is_wide(box: Box) -> bool:
    return box[0] < box[2] and box[1] < box[3]


def _turned(box: Box, orientation: int, size: Size) -> Box:
    """A box of the image as it is stored, in the upright image, of which `size` is (height, width)."""
    height, width = size
    left, top, right, bottom = box
    if orientation >= 5:  # first mirrored at the diagonal
        left, top, right, bottom = top, left, bottom, right
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom
