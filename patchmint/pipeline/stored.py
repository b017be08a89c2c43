"""An annotated image as it goes into a shard."""

from __future__ import annotations

from patchmint.pipeline.annotate import AnnotatedImage
from patchmint.pipeline.decode import DecodedImage
from patchmint.samples import PlannedSample
from patchmint.shards.sample import ShardSample, phrases_of
from patchmint.shards.schema import ImageDocument


def stored_sample(planned: PlannedSample, data: bytes, image: DecodedImage, annotated: AnnotatedImage) -> ShardSample:
    """Put together what one sample's members are made of.

    Args:
        planned: the sample's place and source.
        data: the image file's bytes.
        image: the same, decoded from those bytes.
        annotated: what its texts became.
    """
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
    )
