"""Exporting: samples in the data set's order, one in memory at a time."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import iter_stored
from patchmint.errors import InputError
from patchmint.images.decode import decode_image
from patchmint.inspection.export.formats import FORMATS, IMAGES, ExportedImage
from patchmint.inspection.find.search import Search, find_samples
from patchmint.shards.endings import DOCUMENT, IMAGE, INSTANCES
from patchmint.shards.manifest import image_limit
from patchmint.shards.reader import StoredImage, StoredSample
from patchmint.types import Progress

_ENDINGS = {"jpeg": "jpg", "tiff": "tif"}


def export(dataset: Dataset, out: Path, to: str, where: str = "", progress: Progress | None = None) -> int:
    """Write images and what was found in them for another tool.

    The folder has its name only once it is complete.

    Args:
        dataset: of ours, with labels.
        out: a folder that isn't there yet, or an empty one.
        to: a name of `FORMATS`.
        where: a condition in SQL over the sidecar's columns; empty: all samples but those marked wrong.
        progress: told after each sample.

    Returns:
        How many images were written.

    Raises:
        InputError: the folder holds something or can't be written, the data set has no labels, or the condition can't
            be used.
        ShardError, ImageError: a sample is damaged.
        StorageError: one can't be read.
    """
    if dataset.foreign or (dataset.manifest is not None and dataset.manifest.layout.min_coverage is None):
        raise InputError(f"{dataset.uri} has no labels, so nothing was found in its images that could be exported")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already; give another folder, or an empty one")
    positions = np.arange(dataset.samples)
    if where.strip() or dataset.has_edits:
        _, positions = find_samples(dataset, Search(where=where))
    part = out.with_name(f"{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        (part / IMAGES).mkdir(parents=True)
        count = 0
        with FORMATS[to](part) as written:
            limit = image_limit(dataset.manifest)
            for _, sample in iter_stored(dataset, positions, (IMAGE, DOCUMENT, INSTANCES), progress):
                for image, data in _exported(sample, limit):
                    (part / IMAGES / image.file).write_bytes(data)
                    written.add(image)
                    count += 1
        part.replace(out)
    except OSError as error:
        raise InputError(f"can't write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return count


def _exported(sample: StoredSample, max_megapixels: float) -> Iterator[tuple[ExportedImage, bytes]]:
    for image in sample.images:
        stem = f"{sample.key}.{image.number}" if sample.parts else sample.key
        data, ending = _upright(image, max_megapixels)
        found = image.instances
        yield (
            ExportedImage(
                file=f"{stem}.{ending}",
                key=sample.key,
                width=image.info.width,
                height=image.info.height,
                texts={number: sample.key_json.texts[number] for number in image.texts},
                phrases=image.phrases,
                masks=None if found is None else tuple(each.mask.rle for each in found),
                number=image.number,
            ),
            data,
        )


def _upright(image: StoredImage, max_megapixels: float) -> tuple[bytes, str]:
    """The image file as it is, and its ending; one that its EXIF turns as PNG, for tools that don't look there."""
    kind = image.info.format
    if image.info.orientation == 1:
        return image.data, _ENDINGS.get(kind, kind)
    file = io.BytesIO()
    Image.fromarray(decode_image(image.data, max_megapixels=max_megapixels).pixels).save(file, "PNG")
    return file.getvalue(), "png"
