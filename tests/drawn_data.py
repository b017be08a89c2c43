"""A small finished data set with instances, for the tests of exports and corrections: masks of all kinds, two grids."""

from dataclasses import replace

import numpy as np
from shard_data import LAYOUT, configure, make_dataset, make_sample

from patchmint.annotate.models import AnnotationModels, ModelAnswers
from patchmint.config.grids import stored_grids
from patchmint.geometry.rle import RleMasks, box_of, encode_masks
from patchmint.interfaces import Instances
from patchmint.samples import SourceText
from patchmint.shards.layout import FurtherGridLayout
from patchmint.shards.sample import FurtherLabels, phrases_of
from patchmint.types import Text

GRIDS = [{"rows": 4, "cols": 6, "patch_px": 14, "fit": "squash"}, "qwen3-vl"]
TEXTS = ("a cat & a Black  dog", "the cat")
SPANS = ((0, (2, 5)), (0, (10, 20)), (1, (4, 7)), (0, (2, 5)))
"""Of each sample's instances, in the order in which it gets them: a cat, a black dog, a cat, a cat."""
SIZE = (30, 40)


def drawn_dataset(folder, count, per_shard=20):
    """Pictures of 40 x 30 pixels with 0 to 3 instances; the first and the third are the same cat, in two texts."""
    (_, first), (name, second) = stored_grids({"grids": GRIDS}).items()
    further = FurtherGridLayout.of(second, name=name)
    layout = LAYOUT.model_copy(update={"instances": True, "further_grids": (further,)})
    models = AnnotationModels(None, None, None, first, 0.1, further_grids={name: second}, keeps_masks=True)
    made = [_sample(ordinal, layout, models) for ordinal in range(count)]
    make_dataset(folder, [made[at : at + per_shard] for at in range(0, count, per_shard)], layout=layout)
    return configure(folder, grids=GRIDS, limits={"max_image_megapixels": 1}, output={})


def _sample(ordinal, layout, models):
    rng = np.random.default_rng(ordinal)
    masks = [encode_masks(blob(rng)[None])[0] for _ in range(ordinal % 4)]
    if len(masks) > 2:
        masks[2] = masks[0]
    found = sorted(zip(SPANS, masks, strict=False), key=lambda each: each[0][0])
    scores = np.array([(7 - place) / 8 for place in range(len(found))], np.float32)
    instances = Instances(
        SIZE,
        RleMasks([mask for _, mask in found]),
        np.array([text for (text, _), _ in found], np.int64),
        scores,
        np.array([box_of(mask) for _, mask in found], np.float32).reshape(-1, 4),
        np.array([span for (_, span), _ in found], np.int64).reshape(-1, 2),
    )
    told = models.label(ModelAnswers(instances, None, None), SIZE, len(TEXTS))
    sample = make_sample(ordinal, layout=layout.model_copy(update={"further_grids": ()}), phrases=False)
    source = replace(sample.planned.sample, texts=tuple(map(SourceText, TEXTS)))
    return replace(
        sample,
        planned=replace(sample.planned, sample=source),
        phrases=phrases_of(instances, list(map(Text, TEXTS))),
        placement=told.placement,
        selector=told.labels.selector,
        coverage=told.labels.coverage,
        further={
            grid: FurtherLabels(len(placed.views), placed, labels.selector, labels.coverage)
            for grid, (placed, labels) in told.further.items()
        },
        masks=told.masks,
    )


def blob(rng):
    """A spot with holes and loose pixels, so that a tool which traces outlines can't give it back."""
    rows, cols = np.mgrid[: SIZE[0], : SIZE[1]]
    top, left, radius = rng.integers(5, 25), rng.integers(5, 35), rng.integers(4, 12)
    spot = (rows - top) ** 2 + (cols - left) ** 2 < radius**2
    return ((spot & (rng.random(SIZE) < 0.9)) | (rng.random(SIZE) < 0.002)).astype(np.uint8)
