"""A sample's texts and images, or what is wrong with them: what a build rejects, and a dry run foresees."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from patchmint.errors import (
    ImageDecodeError,
    ImageMissingError,
    ImageTooLargeError,
    ImageUnreadableError,
    InputError,
    TextError,
)
from patchmint.geometry.rle import decode_mask, encode_masks
from patchmint.images.decode import DecodedImage
from patchmint.samples import Fault, ImageRef, SourceSample
from patchmint.types import Box, Instance, Rle, Size, Text


@dataclass(frozen=True)
class ReadImage:
    """An image of a sample.

    Attributes:
        number: among the sample's images.
        data: the file's bytes.
        image: the same, decoded.
        texts: those that label it; of a document there may be none.
    """

    number: int
    data: bytes
    image: DecodedImage
    texts: list[Text]


@dataclass(frozen=True)
class ReadSample:
    """A sample that the models can be asked about.

    Attributes:
        images: at least one, in order; a picture's only one.
        dropped: what is wrong with the document's other images, by number.
    """

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
    drawn: Collection[str] = (),
    drop: bool = False,
) -> ReadSample | Fault:
    """Check a sample's texts, read its images and decode them.

    Args:
        sample: of a source.
        read: gives an image file's bytes from its number and reference, as `Source.read_image`.
        decode: `decode_image` with its limit.
        drawn: as for `with_instances`.
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
        found = ref if isinstance(ref, Fault) else _read_image(sample, texts, number, ref, read, decode, drawn)
        if isinstance(found, ReadImage):
            images.append(found)
        elif drop:
            dropped[number] = found
        else:
            return found
    return ReadSample(tuple(images), dropped) if images else dropped[0]


def _read_image(
    sample: SourceSample,
    texts: Sequence[Text],
    number: int,
    ref: ImageRef,
    read: Callable[[int, ImageRef], bytes],
    decode: Callable[[bytes], DecodedImage],
    drawn: Collection[str],
) -> ReadImage | Fault:
    where, path = "read", ref.path
    try:
        data = read(number, ref)
        where = "decode"
        image = decode(data)
        labelling = with_instances(texts, sample, image, drawn)
        if sample.image_texts:
            labelling = [labelling[text] for text in sample.image_texts[number]]
        return ReadImage(number, data, image, labelling)
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
    except InputError as error:
        return Fault(where, "mask-misfit", f"{path}: {error}")


def with_instances(
    texts: Sequence[Text], sample: SourceSample, image: DecodedImage, drawn: Collection[str]
) -> list[Text]:
    """The texts with what annotators drew, turned as the image was; boxes without an area are left out.

    Args:
        texts: all of the sample's, in order.
        sample: what its source says.
        image: the sample's, upright.
        drawn: what of it counts: "boxes", "masks"; of an instance with both, the mask.

    Raises:
        InputError: a mask isn't of the image's size.
    """
    if not drawn:
        return list(texts)
    return [
        replace(text, instances=tuple(_upright(each, image, drawn) for each in said.instances if _counts(each, drawn)))
        for text, said in zip(texts, sample.texts, strict=True)
    ]


def _counts(instance: Instance, drawn: Collection[str]) -> bool:
    left, top, right, bottom = instance.box
    return (instance.mask is not None and "masks" in drawn) or ("boxes" in drawn and left < right and top < bottom)


def _upright(instance: Instance, image: DecodedImage, drawn: Collection[str]) -> Instance:
    kept = instance if "masks" in drawn else replace(instance, mask=None)
    return upright_instance(kept, image.orientation, image.size)


def upright_instance(instance: Instance, orientation: int, size: Size) -> Instance:
    """An instance of the image as it is stored, in the upright image; arguments and errors as of `upright_mask`."""
    mask = upright_mask(instance.mask, orientation, size) if instance.mask else None
    return replace(instance, box=_turned(instance.box, orientation, size), mask=mask)


def upright_mask(mask: Rle, orientation: int, size: Size) -> Rle:
    """A mask of the image as it is stored, in the upright image.

    Args:
        mask: of the stored pixels.
        orientation: EXIF's, 1..8.
        size: (height, width) of the upright image.

    Raises:
        InputError: it isn't of the image's size, or is damaged.
    """
    stored = size if orientation < 5 else size[::-1]
    if tuple(mask["size"]) != stored:
        raise InputError(
            "its annotators' masks are {} x {} pixels (height x width), and the image is {} x {}: it was resized, or "
            "the annotations are of another one".format(*mask["size"], *stored)
        )
    if orientation == 1:
        return mask
    pixels = decode_mask(mask)
    if orientation >= 5:
        pixels = pixels.T
    rows, columns = (-1 if orientation in those else 1 for those in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return encode_masks(np.ascontiguousarray(pixels[None, ::rows, ::columns]))[0]


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
