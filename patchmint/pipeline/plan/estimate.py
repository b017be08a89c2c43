"""What a build would be, before it is one: samples, shards, disk, memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from patchmint.config.annotator import resolve_grid
from patchmint.config.build import CPU_BATCH_SIZES, BuildConfig
from patchmint.errors import ImageError, StorageError
from patchmint.features.plan import check_features
from patchmint.samples import WHOLE_FILE, ImageRef, SourceSample
from patchmint.shards.plan import ModelRecord

_LOOKED_AT = 200
_TYPICAL_SIZE = (480, 640)

_TAR_BYTES_A_MEMBER = 512 + 256
"""Its header, and half a block of padding."""
_NPY_HEADER = 128
_DOCUMENT = 800
"""Bytes of a sample's JSON without its texts."""
_PHRASES = 300
"""Bytes of the phrases that a text gets, in its JSON: three with their boxes and scores."""
_CODE_CELL_PX = 16
"""Side of what one VQGAN code stands for (f16)."""
_DECODED = 12
"""Bytes of pixels for a byte of a photograph's JPEG: 3 a pixel, at 2 bits a pixel in the file."""
_BATCHES_IN_MEMORY = 8
"""Four to choose like images from, two decoded ahead, one in work, one being written."""


@dataclass(frozen=True)
class DryRun:
    """What `--dry-run` tells.

    Attributes:
        samples: planned ones.
        faults: those of them whose source is at fault; they'd be rejected.
        units: shards, if at least one sample of each is good.
        texts: of all samples.
        images_looked_at: how many images' sizes were asked for.
        images_missing: how many of these aren't there or can't be read.
        image_bytes: all image files together, from the mean of those looked at; 0 if none could be.
        output_bytes: about what the shards would take, image files included.
        model_bytes: model files together; a worker holds about so much, on the GPU if it has one.
        buffer_bytes: about what a worker's decoded images take.
        batch_size: images that the models take at once; None = found by the workers, where they run on a GPU.
    """

    samples: int
    faults: int
    units: int
    texts: int
    images_looked_at: int
    images_missing: int
    image_bytes: int
    output_bytes: int
    model_bytes: int
    buffer_bytes: int
    batch_size: int | None


def estimate(
    samples: Iterable[SourceSample],
    config: BuildConfig,
    models: Mapping[str, ModelRecord],
    image_size: Callable[[ImageRef], int],
    progress: Callable[[int], None] | None = None,
) -> DryRun:
    """Read the source as `make_plan` does, and write nothing.

    Args:
        samples: of the source.
        config: the build.
        models: what `record_models` found.
        image_size: bytes of an image's file; asked for up to 200 images, the same each time.
        progress: called now and then with the number of samples read so far.
    """
    count = faults = texts = text_bytes = 0
    chosen: list[ImageRef] = []
    dice = random.Random(0)  # noqa: S311 (no secret: the same images are to be looked at each time)
    for sample in samples:
        count += 1
        texts += len(sample.texts)
        text_bytes += sum(len(text.content) for text in sample.texts)
        text_bytes += sum(len(turn.content) for turn in sample.conversation)
        if sample.fault is not None:
            faults += 1
        elif len(chosen) < _LOOKED_AT:
            chosen.append(sample.image)
        elif (place := dice.randrange(count - faults)) < _LOOKED_AT:  # reservoir sampling: each has the same chance
            chosen[place] = sample.image
        if progress is not None and count % config.output.samples_per_shard == 0:
            progress(count)
    sizes = [size for image in chosen if (size := _size(image, image_size)) is not None]
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    image_bytes = round(mean * (count - faults))
    return DryRun(
        samples=count,
        faults=faults,
        units=-(-count // config.output.samples_per_shard),
        texts=texts,
        images_looked_at=len(chosen),
        images_missing=len(chosen) - len(sizes),
        image_bytes=image_bytes,
        output_bytes=image_bytes + 2 * text_bytes + _added_bytes(config, count - faults, texts),
        model_bytes=sum(record.size for record in models.values()),
        buffer_bytes=round(mean * _DECODED * _BATCHES_IN_MEMORY * (config.runner.batch_size or CPU_BATCH_SIZES[0])),
        batch_size=config.runner.batch_size,
    )


def _size(image: ImageRef, image_size: Callable[[ImageRef], int]) -> int | None:
    if image.length != WHOLE_FILE:
        return image.length
    try:
        return image_size(image)
    except (ImageError, StorageError):
        return None


def _added_bytes(config: BuildConfig, samples: int, texts: int) -> int:
    """What the shards hold besides images and texts."""
    fixed = _DOCUMENT + 3 * _TAR_BYTES_A_MEMBER
    each_text = 0
    if config.labels is not None:
        fixed += 2 * (_NPY_HEADER + _TAR_BYTES_A_MEMBER)
        each_text = 2 * _cells(config) + _PHRASES
    if config.features is not None:
        fixed += _NPY_HEADER + _TAR_BYTES_A_MEMBER + _feature_bytes(config)
    if config.tokens is not None:
        fixed += _NPY_HEADER + _TAR_BYTES_A_MEMBER + 2 * (config.tokens.size // _CODE_CELL_PX) ** 2
    return samples * fixed + texts * each_text


def _cells(config: BuildConfig) -> int:
    grid = resolve_grid(config.grid)
    return grid.rows * grid.cols * len(grid.place(_TYPICAL_SIZE).views)


def _feature_bytes(config: BuildConfig) -> int:
    assert config.features is not None
    grid = resolve_grid(config.grid)
    spec = check_features(config.models, config.features, grid)
    return 2 * spec.tokens * spec.channels * len(grid.place(_TYPICAL_SIZE).views)
