"""Samples of other readers, decoded as `StageDataset` does it."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from shard_data import stored
from training_data import RICH, cut, finished, samples

from patchmint.errors import ConfigError, InputError, ShardError
from patchmint.training import SampleDecoder, StageDataset, shard_urls


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """Nine samples; the second unit has written none."""
    four, five = cut(samples(9, layout=RICH), 4, 5)
    return finished(tmp_path_factory.mktemp("rich") / "set", [four, [], five], layout=RICH)


def raw(folder):
    """As webdataset gives them; itself it is tried in `make conformance`, because it leaves tars open, which warns."""
    return [{"__key__": sample.key, "__url__": "", **sample.members} for sample in stored(folder)]


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_it_gives_what_a_stage_dataset_gives(rich):
    found = list(map(SampleDecoder(rich), raw(rich)))
    wanted = list(StageDataset(rich, 1, shuffle=False, text="first"))
    assert len(found) == len(wanted) == 9
    for row, sample in zip(found, wanted, strict=True):
        assert (row["key"], row["text"], row["text_index"]) == (sample.key, sample.text, 0)
        arrays = {name: value for name, value in vars(sample.images[0]).items() if torch.is_tensor(value)}
        assert {name for name, value in row.items() if isinstance(value, np.ndarray)} == arrays.keys()
        for name, value in arrays.items():
            assert row[name].dtype == value.numpy().dtype
            assert np.array_equal(row[name], value), name
    (turns,) = {json.dumps(row["conversation"]) for row in found if row["key"] == "s0001"}
    assert set(json.loads(turns)[0]) == {"role", "content"}


def test_what_readers_have_decoded(rich):
    decode = pickle.loads(pickle.dumps(SampleDecoder(rich)))
    sample = raw(rich)[0]
    parsed = sample | {
        "jpg": {"bytes": sample["jpg"], "path": "s0000.jpg"},
        "json": json.loads(sample["json"]),
        "txt": sample["txt"].decode(),
    }
    arrays = StageDataset(rich, 1, shuffle=False, text="first")[0]
    parsed |= {"vqgan.npy": arrays.codes.tolist(), "another": object()}
    assert same(decode(parsed), decode(sample))
    with pytest.raises(InputError, match=r"'jpg' came as Image, .* datasets.Image\(decode=False\)"):
        decode(sample | {"jpg": Image.new("RGB", (40, 30))})
    with pytest.raises(ShardError, match="vqgan"):
        decode({name: data for name, data in sample.items() if name != "vqgan.npy"})


def test_texts_and_images_on_demand(rich):
    sample = raw(rich)[1]
    first, last = json.loads(sample["json"])["texts"]
    decode = SampleDecoder(rich, images=False, text="random")
    found = [decode(sample) for _ in range(40)]
    assert {row["text"] for row in found} == {first, last}
    assert "pixels" not in found[0]
    with pytest.raises(ConfigError, match="random or first"):
        SampleDecoder(rich, text="all")


def test_tars_that_there_are(rich):
    assert shard_urls(rich) == [f"{rich}/shards/{name}.tar" for name in ("000000", "000002")]
    with pytest.raises(ConfigError, match=r"no dataset\.json"):
        shard_urls(rich / "shards")
