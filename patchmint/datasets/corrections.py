"""Corrected samples: labels of the instances as somebody has corrected them, made without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from patchmint.datasets.dataset import Dataset
from patchmint.labelers.patches import label_texts
from patchmint.shards.codec import encode_array
from patchmint.shards.endings import COVERAGE, DOCUMENT, INSTANCES, SELECTOR, on_grid
from patchmint.shards.reader import StoredSample
from patchmint.shards.sample import instances_of
from patchmint.shards.schema import FoundDocument, InstancesDocument, PhraseDocument

Found = Sequence[FoundDocument]


def with_instances(dataset: Dataset, sample: StoredSample, found: Sequence[Found]) -> StoredSample:
    """A sample with other instances, and with the labels on all grids that a build makes of these.

    `labels.mask_area` and `labels.clip_to_box` judge what models find; what people draw stays as it is.

    Args:
        dataset: whose; it has instances.
        sample: with KEY.json, instances, and all labels.
        found: the instances of each image.

    Raises:
        ShardError: a member is damaged.
    """
    assert dataset.manifest is not None
    assert dataset.manifest.layout.min_coverage is not None
    texts = sample.key_json.texts
    phrases = [
        [
            PhraseDocument(**each.model_dump(exclude={"mask"}), text=texts[each.text_index][each.start : each.end])
            for each in of_image
        ]
        for of_image in found
    ]
    members = dict(sample.members)
    members[DOCUMENT] = sample.key_json.with_phrases(phrases).to_bytes()
    for image, own, drawn in zip(sample.images, phrases, found, strict=True):
        masks = [each.mask.rle for each in drawn]
        members[image.ending_of(INSTANCES)] = InstancesDocument.of(own, masks).to_bytes()
    changed = replace(sample, members=members)
    for image in changed.images:
        instances = instances_of(image)
        for number, name in enumerate(dataset.grid_names):
            placed = dataset.on_grid(name), changed.on_grid(name) if number else changed
            placement = placed[0].placement(placed[1].images[image.number])
            labels = label_texts(instances, len(image.texts), placement, dataset.manifest.layout.min_coverage)
            for ending, array in ((SELECTOR, labels.selector), (COVERAGE, labels.coverage)):
                members[image.ending_of(on_grid(ending, name) if number else ending)] = encode_array(array)
    return replace(sample, members=members)
