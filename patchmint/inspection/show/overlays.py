"""The overlay of a stored image, as `patchmint label` draws it of a labelled one."""

from __future__ import annotations

from patchmint.datasets.dataset import Dataset
from patchmint.errors import InputError
from patchmint.images.decode import decode_image
from patchmint.inspection.show.labels import phrases_of_text, text_labels
from patchmint.pictures.overlay import draw_overlay
from patchmint.shards.reader import StoredImage
from patchmint.types import RgbImage


def image_overlay(dataset: Dataset, image: StoredImage, text: int) -> RgbImage:
    """Draw what is stored of one text: patches, phrases and boxes on the image.

    Args:
        dataset: the image's.
        image: it.
        text: number of one of the texts that label it.

    Returns:
        HWC uint8 RGB.

    Raises:
        InputError: the data set has no labels.
        ImageError: the image can't be decoded, or has more pixels than the build allowed.
        ShardError: the sample is damaged.
    """
    if image.selector is None:
        raise InputError(f"sample {image.name!r} has no labels to draw; `patchmint extend` adds them to a data set")
    kept, coverage = text_labels(image, text)
    return draw_overlay(
        decode_image(image.data, max_megapixels=dataset.max_megapixels).pixels,
        placement=dataset.placement(image),
        selector=kept,
        coverage=coverage,
        phrases=[found.phrase for found in phrases_of_text(image, text)],
        caption=image.key_json.texts[text],
        title=image.name,
        notice=image.key_json.notice,
        fit=image.grid.fit,
    )
