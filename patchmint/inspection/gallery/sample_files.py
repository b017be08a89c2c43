"""The files of single samples: what is known of them, their photo, their masks, their codes drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import SampleReader, SampleRef
from patchmint.errors import ImageError, InputError, ShardError
from patchmint.images.decode import decode_image
from patchmint.inspection.gallery.documents import describe_sample, script
from patchmint.inspection.gallery.remake import Remaker
from patchmint.inspection.gallery.thumbnails import jpeg, small
from patchmint.shards.reader import StoredSample
from patchmint.types import RgbImage

_FOLDER = 1000
# Samples of one folder of files.

_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sample with what its files are made of.

    Attributes:
        position: in the gallery.
        described: for the page; where the sample or its image can't be read, it says why.
        sample: None where it can't be read.
        pixels: the image; None where it can't be decoded.
    """

    position: int
    described: dict[str, Any]
    sample: StoredSample | None = field(default=None, repr=False)
    pixels: RgbImage | None = field(default=None, repr=False)


def file_name(kind: str, position: int, text: int = 0) -> str:
    """Path of a sample's file: by number, since keys of tars that others wrote may be anything."""
    name = f"{kind}/{position // _FOLDER:06}/{position:06}"
    return {"samples": f"{name}.js", "masks": f"{name}-{text}.png"}.get(kind, f"{name}.jpg")


class SampleFiles:
    """Makes the files of samples. Safe across threads."""

    def __init__(self, dataset: Dataset, size: int, remaker: Remaker) -> None:
        """Take what files are made of.

        Args:
            dataset: that has the samples.
            size: longest side of pictures in pixels.
            remaker: makes what isn't stored.
        """
        self._dataset = dataset
        self._size = size
        self._remaker = remaker
        self._megapixels = dataset.max_megapixels
        self._reader = SampleReader([dataset])

    def prepare(self, position: int, index: int) -> Prepared:
        """Read a sample and decode its image; what is wrong with either becomes words on its card.

        Args:
            position: in the gallery.
            index: in the data set.

        Raises:
            StorageError: its shard can't be read.
        """
        shard, row = self._dataset.place(index)
        known: dict[str, Any] = {
            "index": index,
            "shard": shard.tar,
            "row": row,
            "picture": False,
            "masks": [],
            "decoded": False,
            "remarks": [],
        }
        try:
            known["key"] = self._reader.locate(SampleRef(0, 0, index)).key
            sample = self._reader.sample(index)
            described = known | describe_sample(self._dataset, sample)
            codes = sample.codes
        except ShardError as error:
            return Prepared(position, {"key": str(index)} | known | {"problem": str(error)})
        try:
            pixels = decode_image(sample.image, max_megapixels=self._megapixels).pixels
        except (ImageError, ShardError) as error:
            return Prepared(position, described | {"problem": str(error)}, sample)
        described["picture"] = True
        if self._remaker.masks_offer.available:
            described["masks"] = [bool(text["phrases"]) for text in described["texts"]]
        described["decoded"] = self._remaker.decoded_offer.available and codes is not None
        return Prepared(position, described, sample, pixels)

    def script(self, prepared: Prepared) -> bytes:
        """What is known of the sample, for the page."""
        name = file_name("samples", prepared.position).removesuffix(".js")
        return script(name, prepared.described)

    def picture(self, prepared: Prepared) -> bytes:
        """The photo as JPEG."""
        assert prepared.pixels is not None
        height, width = prepared.pixels.shape[:2]
        return jpeg(prepared.pixels, small((height, width), self._size))

    def masks(self, batch: Sequence[Prepared]) -> list[list[bytes]]:
        """Masks of samples that have some: for each a transparent PNG a text, empty for a text without phrases.

        Raises:
            WeightsError: the masker's weights can't be used.
        """
        images = [prepared.pixels for prepared in batch if prepared.pixels is not None]
        documents = [prepared.sample.document for prepared in batch if prepared.sample is not None]
        return self._remaker.masks(images, documents, self._size)

    def decoded(self, batch: Sequence[Prepared]) -> list[bytes]:
        """Codes of samples that have some, drawn, as JPEG.

        Raises:
            WeightsError, PluginError: the tokenizer can't be loaded.
            InputError: the codes aren't the tokenizer's.
        """
        codes = [prepared.sample.codes for prepared in batch if prepared.sample is not None]
        sizes = [prepared.pixels.shape[:2] for prepared in batch if prepared.pixels is not None]
        drawn = self._remaker.decoded([grid for grid in codes if grid is not None], sizes)
        return [jpeg(pixels, (pixels.shape[0], pixels.shape[1])) for pixels in drawn]

    def of_batch(
        self, batch: Sequence[Prepared], problem: Callable[[str], None] | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """All files of some samples, with their paths; what can't be made of a sample becomes words on its card.

        Args:
            batch: the samples.
            problem: told the key of each sample of which something can't be shown.

        Raises:
            WeightsError, PluginError: as for `masks` and `decoded`.
        """
        masked = [prepared for prepared in batch if any(prepared.described["masks"])]
        for prepared, pictures in _each(self.masks, masked):
            if isinstance(pictures, str):
                _leave_out(prepared, "masks", [], f"its masks can't be made again: {pictures}")
                continue
            for text, picture in enumerate(pictures):
                if picture:
                    yield file_name("masks", prepared.position, text), picture
        coded = [prepared for prepared in batch if prepared.described["decoded"]]
        for prepared, drawn in _each(self.decoded, coded):
            if isinstance(drawn, str):
                _leave_out(prepared, "decoded", False, f"its codes can't be drawn: {drawn}")
                continue
            yield file_name("decoded", prepared.position), drawn
        for prepared in batch:
            yield file_name("samples", prepared.position), self.script(prepared)
            if prepared.pixels is not None:
                yield file_name("pictures", prepared.position), self.picture(prepared)
            if problem is not None and _has_problem(prepared.described):
                problem(prepared.described["key"])


def _each(
    make: Callable[[Sequence[Prepared]], Sequence[_Made]], batch: Sequence[Prepared]
) -> Iterator[tuple[Prepared, _Made | str]]:
    """What is made of some samples at once or, where one of them spoils that, of each by itself; or why it can't be."""
    if not batch:
        return
    try:
        yield from zip(batch, make(batch), strict=True)
    except (InputError, ShardError) as error:
        if len(batch) == 1:
            yield batch[0], str(error)
            return
        for prepared in batch:
            yield from _each(make, [prepared])


def _leave_out(prepared: Prepared, kind: str, nothing: object, remark: str) -> None:
    prepared.described[kind] = nothing
    prepared.described["remarks"].append(remark)


def _has_problem(described: dict[str, Any]) -> bool:
    return bool(described.get("problem") or described["remarks"] or (described.get("grid") or {}).get("problem"))
