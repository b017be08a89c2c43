"""Pictures of what a demo's shards say, with the truth drawn in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from patchmint.demo.dataset import Truth
from patchmint.demo.score import judged_samples, sample_placement
from patchmint.errors import InputError, ShardError
from patchmint.geometry import Placement
from patchmint.geometry.rle import decode_mask
from patchmint.images.decode import decode_image
from patchmint.judging.judge import touched_patches
from patchmint.judging.metrics import f1_and_iou
from patchmint.judging.truth import TrueImage, TrueText
from patchmint.pictures.overlay import draw_overlay
from patchmint.shards.codec import Array
from patchmint.shards.reader import StoredSample
from patchmint.storage import Storage
from patchmint.types import Rle

_MAX_SIDE = 640


def write_overlays(storage: Storage, truth: Truth, folder: Path, count: int, progress: Callable[[int], None]) -> None:
    """Draw the first scenes, a picture a text: FOLDER/KEY-T.png.

    Args:
        storage: of a finished build.
        truth: of its scenes.
        folder: where to; made if need be.
        count: how many scenes.
        progress: called with the number of scenes drawn so far.

    Raises:
        InputError: a picture can't be written.
        ShardError, StorageError, ImageError: a sample can't be read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (sample, scene) in enumerate(islice(judged_samples(storage, truth), count), start=1):
            for index, picture in enumerate(overlays(sample, scene)):
                picture.save(folder / f"{sample.key}-{index}.png")
            progress(number)
    except OSError as error:
        raise InputError(
            f"can't write overlays into {folder}: {error.strerror or error}; choose another OUT"
        ) from error


def overlays(sample: StoredSample, scene: TrueImage) -> Iterator[Image.Image]:
    """Draw a sample's texts: the photo, and patches and boxes as labelled beside what is truly there, a box a thing.

    Raises:
        ShardError, ImageError: the sample can't be read.
    """
    document, selector, coverage = sample.document, sample.selector, sample.coverage
    image, placement = decode_image(sample.image).pixels, sample_placement(sample)
    if selector is None:
        raise ShardError(f"sample {sample.key!r} has no labels; delete the data set and run the demo again")
    for index, text in enumerate(scene.texts):
        picture = draw_overlay(
            image,
            placement=placement,
            selector=selector[index],
            coverage=coverage[index] if coverage is not None else None,
            phrases=[found.phrase for found in document.phrases if found.text_index == index],
            truths=_named_things(scene, text),
            beside=True,
            caption=text.content,
            title=_title(selector[index], text, placement),
            notice=document.notice,
            fit=document.grid.fit,
            max_side=_MAX_SIDE,
        )
        yield Image.fromarray(picture)


def _named_things(scene: TrueImage, text: TrueText) -> list[Rle]:
    """What is seen of each thing that the text names."""
    if text.mask is None:
        return []
    named = decode_mask(text.mask) != 0
    return [thing for thing in scene.objects if (named & (decode_mask(thing) != 0)).any()]


def _title(selector: Array, text: TrueText, placement: Placement) -> str:
    if text.mask is None:
        return f"nothing of this is there; {int(selector.sum())} patches labelled"
    f1, iou = f1_and_iou(selector > 0, touched_patches(text.mask, placement))
    return f"patches against the truth: F1 {f1:.2f}, IoU {iou:.2f}"
