"""The files of single samples: what is known of them, their photo, their masks, their codes drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import SampleReader, SampleRef
from patchmint.errors import ImageError, InputError, ShardError
from patchmint.images.decode import decode_image
from patchmint.inspection.gallery.documents import describe_image, describe_sample, script
from patchmint.inspection.gallery.edits import EditedReader, PendingEdits
from patchmint.inspection.gallery.remake import Remaker
from patchmint.inspection.gallery.thumbnails import jpeg, small
from patchmint.shards.reader import StoredImage
from patchmint.types import RgbImage

_FOLDER = 1000
# Samples of one folder of files.

_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image with what its files are made of.

    Attributes:
        position: its sample's in the gallery.
        number: in a document; None: it is a picture.
        described: for the page, until its files are made; where it can't be decoded, it says why.
        stored: it.
        pixels: None before it is decoded, and where it can't be.
    """

    position: int
    number: int | None
    described: dict[str, Any]
    stored: StoredImage = field(repr=False)
    pixels: RgbImage | None = field(default=None, repr=False)

    def file_name(self, kind: str, *text: int) -> str:
        """Path of one of its files; of masks with the place of the text among those that label it."""
        return file_name(kind, self.position, *(() if self.number is None else (self.number,)), *text)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sample with what its files are made of.

    Attributes:
        position: in the gallery.
        described: for the page; of a picture its only image's, too. Where it can't be read, it says why.
        images: none where it can't be read.
    """

    position: int
    described: dict[str, Any]
    images: tuple[PreparedImage, ...] = ()


def file_name(kind: str, position: int, *numbers: int) -> str:
    """Path of a sample's file: by number, since keys of tars that others wrote may be anything.

    Args:
        kind: samples, pictures, masks or decoded.
        position: in the gallery.
        numbers: the image of a document; of masks then the place of the text among those that label it.
    """
    name = "-".join((f"{position:06}", *map(str, numbers)))
    ending = {"samples": "js", "masks": "png"}.get(kind, "jpg")
    return f"{kind}/{position // _FOLDER:06}/{name}.{ending}"


class SampleFiles:
    """Makes the files of samples. Safe across threads."""

    def __init__(self, dataset: Dataset, size: int, remaker: Remaker, pending: PendingEdits | None = None) -> None:
        """Take what files are made of.

        Args:
            dataset: that has the samples.
            size: longest side of pictures in pixels.
            remaker: makes what isn't stored.
            pending: edits that samples are shown with; None: they are shown as stored.
        """
        self._edited = EditedReader(dataset, pending) if pending is not None else None
        self._dataset = dataset
        self._size = size
        self._remaker = remaker
        self._megapixels = dataset.max_megapixels
        self._reader = SampleReader([dataset])

    def read(self, position: int, index: int) -> Prepared:
        """Read a sample; what is wrong with it becomes words on its card. Its images aren't decoded.

        Args:
            position: in the gallery.
            index: in the data set.

        Raises:
            StorageError: its shard can't be read.
        """
        shard, row = self._dataset.place(index)
        known: dict[str, Any] = {"index": index, "shard": shard.tar, "row": row}
        try:
            known["key"] = self._reader.locate(SampleRef(0, 0, index)).key
            edited = self._edited.read(index) if self._edited is not None else None
            sample = edited.sample if edited is not None else self._reader.sample(index)
            described = known | describe_sample(sample)
            if edited is not None:
                described |= {"edits": len(edited.edits), "wrong": edited.wrong}
            views = [_nothing() | describe_image(self._dataset, image) for image in sample.images]
        except (ShardError, InputError) as error:
            return Prepared(position, {"key": str(index)} | known | _nothing() | {"problem": str(error)})
        if "sequence" in described:
            images = zip(sample.images, views, strict=True)
            described["images"] = views
            return Prepared(
                position, described, tuple(PreparedImage(position, one.number, view, one) for one, view in images)
            )
        described = views[0] | described
        return Prepared(position, described, (PreparedImage(position, None, described, sample.images[0]),))

    def decode(self, image: PreparedImage) -> PreparedImage:
        """Decode an image, and say what can be made of it; what is wrong with it becomes words on its card."""
        described = image.described
        try:
            pixels = decode_image(image.stored.data, max_megapixels=self._megapixels).pixels
        except (ImageError, ShardError) as error:
            described["problem"] = str(error)
            return image
        described["picture"] = True
        if self._remaker.masks_offer.available:
            described["masks"] = [bool(text["phrases"]) for text in described["texts"]]
        described["decoded"] = self._remaker.decoded_offer.available and described["codes"] is not None
        return replace(image, pixels=pixels)

    def script(self, prepared: Prepared) -> bytes:
        """What is known of the sample, for the page; its images have been decoded."""
        name = file_name("samples", prepared.position).removesuffix(".js")
        return script(name, prepared.described)

    def picture(self, image: PreparedImage) -> bytes:
        """The photo as JPEG."""
        assert image.pixels is not None
        height, width = image.pixels.shape[:2]
        return jpeg(image.pixels, small((height, width), self._size))

    def masks(self, batch: Sequence[PreparedImage]) -> list[list[bytes]]:
        """Masks of images that have some: for each a transparent PNG a text, empty for a text without phrases.

        Raises:
            WeightsError: the masker's weights can't be used.
        """
        images = [image.pixels for image in batch if image.pixels is not None]
        return self._remaker.masks(images, [image.stored for image in batch], self._size)

    def decoded(self, batch: Sequence[PreparedImage]) -> list[bytes]:
        """Codes of images that have some, drawn, as JPEG.

        Raises:
            WeightsError, PluginError: the tokenizer can't be loaded.
            InputError: the codes aren't the tokenizer's.
        """
        codes = [image.stored.codes for image in batch]
        sizes = [image.pixels.shape[:2] for image in batch if image.pixels is not None]
        drawn = self._remaker.decoded([grid for grid in codes if grid is not None], sizes)
        return [jpeg(pixels, (pixels.shape[0], pixels.shape[1])) for pixels in drawn]

    def of_batch(self, batch: Sequence[PreparedImage]) -> Iterator[tuple[str, bytes]]:
        """All files of some decoded images, with their paths; what can't be made of one becomes words on its card.

        Raises:
            WeightsError, PluginError: as for `masks` and `decoded`.
        """
        for image, pictures in _each(self.masks, [image for image in batch if any(image.described["masks"])]):
            if isinstance(pictures, str):
                _leave_out(image, "masks", [], f"its masks can't be made again: {pictures}")
                continue
            for text, picture in enumerate(pictures):
                if picture:
                    yield image.file_name("masks", text), picture
        for image, drawn in _each(self.decoded, [image for image in batch if image.described["decoded"]]):
            if isinstance(drawn, str):
                _leave_out(image, "decoded", False, f"its codes can't be drawn: {drawn}")
                continue
            yield image.file_name("decoded"), drawn
        for image in batch:
            if image.pixels is not None:
                yield image.file_name("pictures"), self.picture(image)


def _nothing() -> dict[str, Any]:
    """What can be shown of an image before it is decoded."""
    return {"picture": False, "masks": [], "decoded": False, "remarks": []}


def has_problem(described: dict[str, Any]) -> bool:
    """Whether something of a sample can't be shown."""
    views = described.get("images", [described])
    return any(view.get("problem") or view["remarks"] or (view.get("grid") or {}).get("problem") for view in views)


def _each(
    make: Callable[[Sequence[PreparedImage]], Sequence[_Made]], batch: Sequence[PreparedImage]
) -> Iterator[tuple[PreparedImage, _Made | str]]:
    """What is made of some images at once or, where one of them spoils that, of each by itself; or why it can't be."""
    if not batch:
        return
    try:
        yield from zip(batch, make(batch), strict=True)
    except (InputError, ShardError) as error:
        if len(batch) == 1:
            yield batch[0], str(error)
            return
        for image in batch:
            yield from _each(make, [image])


def _leave_out(image: PreparedImage, kind: str, nothing: object, remark: str) -> None:
    image.described[kind] = nothing
    image.described["remarks"].append(remark)
