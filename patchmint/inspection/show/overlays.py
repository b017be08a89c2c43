"""The overlay of a stored sample, as `patchmint label` draws it of a labelled one."""

from __future__ import annotations

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.placement import sample_placement
from patchmint.errors import InputError
from patchmint.images.decode import decode_image
from patchmint.inspection.show.labels import text_labels
from patchmint.pictures.overlay import draw_overlay
from patchmint.shards.manifest import image_limit
from patchmint.shards.reader import StoredSample
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
        raise InputError(f"sample {sample.key!r} has no labels to draw: its data set was built with `labels: null`")
    kept, coverage = text_labels(sample, text)
    return draw_overlay(
        decode_image(sample.image, max_megapixels=image_limit(dataset.manifest)).pixels,
        placement=sample_placement(dataset, document),
        selector=kept,
        coverage=coverage,
        phrases=[found.phrase for found in document.phrases if found.text_index == text],
        caption=document.texts[text],
        title=sample.key,
        notice=document.notice,
        fit=document.grid.fit,
    )
