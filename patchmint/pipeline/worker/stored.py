"""An annotated image as it goes into a shard."""

from __future__ import annotations

from dataclasses import replace

from patchmint.annotate.models import AnnotatedImage
from patchmint.images.decode import DecodedImage
from patchmint.samples import PlannedSample
from patchmint.shards.reader import StoredSample
from patchmint.shards.sample import ShardSample, phrases_of
from patchmint.shards.schema import ImageDocument


def stored_sample(
    planned: PlannedSample,
    data: bytes,
    image: DecodedImage,
    annotated: AnnotatedImage,
    extended: StoredSample | None = None,
) -> ShardSample:
    """Put together what one sample's members are made of.

    Args:
        planned: the sample's place and source.
        data: the image file's bytes.
        image: the same, decoded from those bytes.
        annotated: what its texts became.
        extended: the same sample in the data set that is extended: what wasn't made anew is carried over from it.

    Raises:
        ShardError: a member that is carried over is damaged.
    """
    made = _made(planned, data, image, annotated)
    if extended is None:
        return made
    return replace(
        made,
        phrases=made.phrases if made.selector is not None else extended.document.phrases,
        selector=made.selector if made.selector is not None else extended.selector,
        coverage=made.coverage if made.coverage is not None else extended.coverage,
        codes=made.codes if made.codes is not None else extended.codes,
        features=made.features if made.features is not None else extended.features,
    )


def _made(planned: PlannedSample, data: bytes, image: DecodedImage, annotated: AnnotatedImage) -> ShardSample:
    assert image.format != "array"  # it was decoded from a file's bytes
    height, width = image.size
    labels, found, tokens = annotated.labels, annotated.instances, annotated.tokens
    return ShardSample(
        planned=planned,
        data=data,
        image=ImageDocument(
            width=width, height=height, format=image.format, mode=image.mode, orientation=image.orientation
        ),
        views=len(annotated.placement.views),
        phrases=phrases_of(found, planned.sample.texts) if found is not None else (),
        selector=labels.selector if labels else None,
        coverage=labels.coverage if labels else None,
        codes=tokens.codes if tokens else None,
        features=annotated.features,
    )
