"""A verdict as a page: figures, reliability, parts, and pictures of the worst texts.

It needs nothing else: no script, no network; light and dark as the reader's system.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import SampleReader
from patchmint.errors import ImageError
from patchmint.geometry.rle import encode_masks
from patchmint.images.decode import decode_image
from patchmint.judging.figures import FIGURES
from patchmint.judging.judge import Verdict
from patchmint.judging.truth import ImageName, TrueThing, Truth
from patchmint.pictures.overlay import draw_overlay
from patchmint.shards.reader import StoredImage
from patchmint.types import Rle, Size

_MAX_SIDE = 480
_QUALITY = 85


def render_page(verdict: Verdict, dataset: Dataset, truth: Truth) -> str:
    """The page; whatever texts are, they are escaped.

    Args:
        verdict: of the data set.
        dataset: from which the worst samples are read again.
        truth: which is drawn in.

    Raises:
        ShardError, StorageError: a sample can't be read.
    """
    reader = SampleReader([dataset])
    pictures = []
    for bad in verdict.worst:
        image = reader.sample(bad.index).images[bad.image]
        pictures.append(_picture(image, bad.text, truth, dataset.max_megapixels))
    environment = Environment(
        loader=PackageLoader("patchmint.judging"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("judge.html").render(verdict=verdict, meanings=FIGURES, pictures=pictures)


def _picture(image: StoredImage, text: int, truth: Truth, max_megapixels: float) -> str:
    """A text's labels with the truth drawn in, as a data URI; empty where the image can't be decoded."""
    told, number = image.key_json, image.texts[text]
    true = truth.of(ImageName.of(image))
    known = true.text(text, told.texts[number]) if true is not None else None
    try:
        pixels = decode_image(image.data, max_megapixels=max_megapixels).pixels
    except ImageError:
        return ""
    selector, coverage = image.selector, image.coverage
    placement = image.placement
    drawn = draw_overlay(
        pixels,
        placement=placement,
        selector=np.zeros(placement.shape, np.uint8) if selector is None else selector[text],
        coverage=coverage[text] if coverage is not None else None,
        phrases=[found.phrase for found in image.phrases if found.text_index == number],
        truths=_outlines(known.things if known is not None else (), (image.info.height, image.info.width)),
        caption=told.texts[number],
        notice=told.notice,
        fit=image.grid.fit,
        max_side=_MAX_SIDE,
    )
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _outlines(things: Sequence[TrueThing], size: Size) -> list[Rle]:
    """A mask of each thing; that of its box where no other is known."""
    return [thing.mask or _filled(thing, size) for thing in things]


def _filled(thing: TrueThing, size: Size) -> Rle:
    filled = np.zeros((1, *size), np.bool_)
    left, top, right, bottom = (max(round(side), 0) for side in thing.box)
    filled[0, top:bottom, left:right] = True
    return encode_masks(filled)[0]
