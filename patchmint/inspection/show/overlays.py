"""A stored sample's grid on its image, and its overlay, as `patchmint label` draws it of a labelled one."""

from __future__ import annotations

from patchmint.datasets.dataset import Dataset
from patchmint.errors import ConfigError, InputError, ShardError
from patchmint.geometry import Fit, PatchGrid, Placement
from patchmint.images.decode import decode_image
from patchmint.inspection.show.labels import phrases_of_text, text_labels
from patchmint.pictures.overlay import draw_overlay
from patchmint.shards.reader import StoredSample
from patchmint.shards.schema import SampleDocument
from patchmint.types import RgbImage


def sample_overlay(dataset: Dataset, sample: StoredSample, text: int) -> RgbImage:
    """Draw what is stored of one text: patches, phrases and boxes on the image.

    Args:
        dataset: the sample's.
        sample: it.
        text: which of its texts, from 0 on.

    Returns:
        HWC uint8 RGB.

    Raises:
        InputError: the data set has no labels.
        ImageError: the image can't be decoded, or has more pixels than the build allowed.
        ShardError: the sample is damaged.
    """
    document = sample.document
    if sample.selector is None:
        raise InputError(f"sample {sample.key!r} has no labels to draw; `patchmint extend` adds them to a data set")
    kept, coverage = text_labels(sample, text)
    return draw_overlay(
        decode_image(sample.image, max_megapixels=dataset.max_megapixels).pixels,
        placement=sample_placement(dataset, document),
        selector=kept,
        coverage=coverage,
        phrases=[found.phrase for found in phrases_of_text(document, text)],
        caption=document.texts[text],
        title=sample.key,
        notice=document.notice,
        fit=document.grid.fit,
    )


def sample_placement(dataset: Dataset, document: SampleDocument) -> Placement:
    """Lay the data set's grid on a sample's image.

    The document tells it where it depends on the image, else the build's settings do. Without them (a lone tar, an
    unfinished build) it is the document's, and in format 1 of `anyres` the first view only.

    Raises:
        ShardError: the document, or dataset.json, names no grid of ours.
    """
    size = (document.image.height, document.image.width)
    if document.placement is not None:
        return document.placement
    if dataset.manifest is not None:
        return dataset.grid.place(size)
    grid = document.grid
    try:
        fit = Fit.SQUASH if grid.fit == Fit.ANYRES else Fit(grid.fit)
        return PatchGrid(grid.rows, grid.cols, grid.patch_px, fit).place(size)
    except (ConfigError, ValueError) as error:
        raise ShardError(f"sample {document.key!r} has a grid that can't be used: {error}; run verify") from error
