"""Features in shards: written, read back, and every way in which `verify` must find them wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest
from shard_data import LAYOUT, make_dataset, make_sample, members_of, tar_of, write_shard

from patchmint.errors import ShardError
from patchmint.interfaces import FeatureSpec
from patchmint.shards.codec import encode_array
from patchmint.shards.manifest import read_manifest
from patchmint.shards.reader import iter_samples
from patchmint.shards.verify import verify, verify_tars
from patchmint.storage import open_storage

FEATURES = FeatureSpec(
    encoder="toy",
    connector="sti",
    layers=((3,), (1,), (2,)),
    select_feature="cls_patch",
    pool="before",
    grid=(2, 3),
    leading=1,
    trailing=2,
    channels=5,
)
WITH = LAYOUT.model_copy(update={"features": FEATURES})


def featured(ordinal, **changes):
    numbers = np.random.default_rng(ordinal).normal(size=(9, 5)).astype(np.float16)
    return replace(make_sample(ordinal), **{"features": numbers, **changes})


def dataset(folder, damage=bytes):
    make_dataset(folder, [[featured(0), featured(1)]], layout=WITH, damage={0: damage})
    return open_storage(str(folder))


def changed(ending, change):
    """Damage: one member of the first sample is changed before its shard is hashed."""

    def damage(tar):
        members = [(name, change(data) if name == f"s0000.{ending}" else data) for name, data in members_of(tar)]
        return tar_of((name, data) for name, data in members if data is not None)

    return damage


def test_they_come_back_with_what_they_are(tmp_path):
    storage = dataset(tmp_path)
    assert list(verify(storage)) == []
    for ordinal, sample in enumerate(iter_samples(storage, "shards/000000.tar")):
        assert list(sample.members)[-1] == "features.npy"
        assert sample.document.features == FEATURES
        assert sample.features.dtype == np.float16
        np.testing.assert_array_equal(sample.features, featured(ordinal).features)
    manifest = read_manifest(storage)
    assert manifest.layout.features == FEATURES
    assert manifest.members[-1].model_dump() == {"ending": "features.npy", "dtype": "float16", "shape": ("9", "5")}
    assert list(verify_tars(storage, ["shards/000000.tar"])) == []


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        (LAYOUT, {}, "has arrays"),
        (WITH, {"features": None}, "has arrays"),
        (WITH, {"features": np.zeros((8, 5), np.float16)}, r"shape \(8, 5\), it must be \(9, 5\)"),
        (WITH, {"features": np.zeros((9, 5), np.float32)}, "float32, it must be float16"),
        (WITH, {"features": np.full((9, 5), np.inf, np.float16)}, "aren't finite"),
    ],
)
def test_wrong_ones_are_not_written(layout, changes, message):
    with pytest.raises(ShardError, match=message):
        write_shard([featured(0, **changes)], layout)


def told(features):
    """The same document with other features in it."""
    return lambda data: json.dumps(json.loads(data) | {"features_json": features}).encode()


@pytest.mark.parametrize(
    ("ending", "change", "code", "alone"),
    [
        ("features.npy", lambda _: encode_array(np.zeros((9, 4), np.float16)), "array-shape", True),
        ("features.npy", lambda _: encode_array(np.zeros((9, 5), np.float64)), "array-dtype", True),
        ("features.npy", lambda _: encode_array(np.full((9, 5), np.nan, np.float16)), "features-values", True),
        ("features.npy", lambda _: None, "members-missing", True),
        ("json", told(FEATURES.model_copy(update={"connector": "dci"}).model_dump_json()), "document-features", False),
        ("json", told("{}"), "document-features", True),
        ("json", told('{"encoder": 3}'), "document-features", True),
    ],
)
def test_verify_names_each_fault(tmp_path, ending, change, code, alone):
    """`alone`: it shows without the manifest too."""
    storage = dataset(tmp_path, changed(ending, change))
    found = list(verify(storage))
    assert code in {finding.code for finding in found}
    assert {finding.key for finding in found if finding.code == code} == {"s0000"}
    lone = {finding.code for finding in verify_tars(storage, ["shards/000000.tar"])}
    assert bool(lone) == alone
