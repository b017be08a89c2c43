"""Instances in shards: what a build found, with masks, from which labels are made again without a model."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from builds import make_config, make_input, patchmint, run
from pycocotools import mask as coco_mask
from shard_data import DOCUMENTS, make_document, stored, write_shard

from patchmint.datasets.verify import verify_all
from patchmint.errors import ShardError
from patchmint.geometry.rle import encode_masks, to_coco
from patchmint.images.decode import decode_image
from patchmint.shards.manifest import read_manifest
from patchmint.shards.reader import group_members, iter_members
from patchmint.shards.sample import instances_of, phrases_of
from patchmint.shards.verify import verify
from patchmint.shards.verify_tar import check_own
from patchmint.storage import open_storage
from patchmint.training.webdataset import SampleDecoder
from patchmint.types import Text

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode, with NumPy 2

TEXTS = ["a cat", "a sofa and a cat", "nothing"]
QWEN = {"rows": 6, "cols": 9, "patch_px": 14, "fit": "pad"}


def build(folder, name, **changes):
    config = make_config(folder / f"{name}.yaml", folder / "in", folder / name, 2, **changes)
    run(config, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Three pictures with a box each, and their instances."""
    folder = tmp_path_factory.mktemp("instances")
    make_input(folder / "in", TEXTS)
    return build(folder, "base", labels={"instances": True})


def faults(folder):
    return [finding.code for finding in verify(open_storage(str(folder)), decode=lambda data: decode_image(data).size)]


def test_instances_are_the_phrases_with_their_masks(base):
    assert faults(base) == []
    for sample in stored(base):
        assert list(sample.members)[3:6] == ["selector.npy", "coverage.npy", "instances.json"]
        (image,) = sample.images
        assert len(image.instances) == len(image.phrases) == 1
        for found, phrase in zip(image.instances, image.phrases, strict=True):
            assert found.is_of(phrase)
            mask = coco_mask.decode(found.mask.model_dump())
            assert mask.shape == (image.info.height, image.info.width)
            left, top, right, bottom = (int(edge) for edge in found.box)
            assert mask[top:bottom, left:right].all()
            assert mask.sum() == (bottom - top) * (right - left)


def test_training_passes_over_instances_that_a_reader_decoded(base):
    sample = stored(base)[0]
    decoded = sample.members | {"__key__": sample.key, "instances.json": json.loads(sample.members["instances.json"])}
    assert np.array_equal(SampleDecoder(base, images=False)(decoded)["selector"][0], sample.selector[0])


def test_verify_finds_what_is_wrong_with_them(base):
    sample = stored(base)[0]
    layout = read_manifest(open_storage(str(base))).layout
    (found,) = json.loads(json.loads(sample.members["instances.json"])["instances_json"])
    height, width = found["mask"]["size"]
    half = np.zeros((1, height, width), bool)
    half[0, :9, :9] = True

    def problems(*instances, deep=True):
        told = json.dumps({"instances_json": json.dumps(instances)}).encode()
        changed = replace(sample, members=sample.members | {"instances.json": told})
        return [code for code, _ in check_own(changed, layout, deep=deep)]

    assert problems(found) == []
    assert problems() == problems(found | {"score": 0.25}) == problems(found, found) == ["instances-phrases"]
    assert problems(found | {"mask": {"size": [height, width], "counts": "0"}}) == ["instances-form"]
    assert problems(found | {"mask": {"size": [2, 2], "counts": "4"}}) == ["instances-mask"]
    smaller = found | {"mask": to_coco(encode_masks(half)[0])}
    assert problems(smaller) == ["instances-coverage"]
    assert problems(smaller, deep=False) == []


def test_each_image_of_a_document_has_its_own():
    layout = DOCUMENTS.model_copy(update={"instances": True})
    document = make_document(0, images=3, layout=layout)
    masks = [encode_masks(np.arange(1200).reshape(1, 30, 40) < 100 * (n + 1)) for n in range(3)]
    made = replace(document, images=tuple(replace(image, masks=masks[n]) for n, image in enumerate(document.images)))
    tar, _ = write_shard([made], layout)
    (sample,) = group_members(iter_members(io.BytesIO(tar), "tar"), "tar")
    assert list(sample.members)[11:14] == [f"{n}.instances.json" for n in range(3)]
    assert list(check_own(sample, layout)) == []
    for n, image in enumerate(sample.images):
        (found,) = image.instances
        assert (found.text_index, found.mask.rle) == (1, masks[n][0])
        again = instances_of(image)
        assert again.text_index.tolist() == [image.texts.index(1)]
        assert phrases_of(again, [Text(sample.key_json.texts[text]) for text in image.texts]) == tuple(
            phrase.model_copy(update={"text_index": image.texts.index(1), "image": 0}) for phrase in image.phrases
        )
    for broken in (document, replace(made, images=(*made.images[:2], replace(made.images[2], masks=())))):
        with pytest.raises(ShardError, match="masks"):
            write_shard([broken], layout)


def test_labels_of_another_grid_and_threshold_are_those_of_a_build(base, tmp_path):
    """The same bytes, without a model."""
    options = ("--grid.rows", 6, "--grid.cols", 9, "--grid.patch-px", 14, "--grid.fit", "pad")
    made = tmp_path / "made"
    patchmint("extend", base, "--from-instances", *options, "--labels.min-coverage", 0.4)
    patchmint("compact", base, made, "--columns", "labels")
    built = build(base.parent, "built", grid=QWEN, labels={"instances": True, "min_coverage": 0.4})
    tars = [sorted((folder / "shards").glob("*.tar")) for folder in (made, built)]
    assert [tar.read_bytes() for tar in tars[0]] == [tar.read_bytes() for tar in tars[1]] != []
    manifests = [read_manifest(open_storage(str(folder))) for folder in (made, built, base)]
    assert manifests[0].layout == manifests[1].layout != manifests[2].layout
    assert manifests[0].models["segmenter"] == manifests[2].models["segmenter"]
    assert faults(made) == list(verify_all(open_storage(str(base)))) == []


def test_what_instances_cannot_answer_is_refused(base, tmp_path):
    done = patchmint("extend", base, "--from-instances", "--labels.box-threshold", 0.5, rc=2)
    assert "labels.box_threshold" in done.stderr
    bare = build(base.parent, "bare")
    assert all("instances.json" not in sample.members for sample in stored(bare))
    done = patchmint("extend", bare, "--from-instances", rc=2)
    assert "labels.instances: true" in done.stderr
