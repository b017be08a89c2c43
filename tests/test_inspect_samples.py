"""Samples at given positions, from a folder and from a store."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import s3_server
from shard_data import make_dataset, make_sample

from patchmint.datasets.dataset import Shard, open_dataset
from patchmint.datasets.reader import iter_stored
from patchmint.errors import InputError, ShardError
from patchmint.storage import open_storage


@pytest.fixture
def folder(tmp_path):
    return make_dataset(tmp_path / "d", [[make_sample(0), make_sample(1)], [], [make_sample(2)], [make_sample(3)]])


def uploaded(folder, uri):
    storage = open_storage(uri)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.write(path.relative_to(folder).as_posix(), path.read_bytes())
    return uri


def test_chosen_members_of_chosen_samples(folder):
    told = []
    dataset = open_dataset(folder)
    for chosen in ([0, 1, 2, 3], [1], [0, 3], []):
        found = list(iter_stored(dataset, chosen, ["txt", "json", "nothing"], lambda *step: told.append(step)))
        assert [(index, sample.key) for index, sample in found] == [(index, f"s{index:04}") for index in chosen]
        assert all(sorted(sample.members) == ["json", "txt"] for _, sample in found)
    assert told[:4] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(InputError, match="4 samples"):
        list(iter_stored(dataset, [4], ["txt"]))


def test_a_sidecar_with_another_key(folder, monkeypatch):
    path = folder / "shards/000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, table.schema.field(0), pa.array(["s0000", "other"])), path)
    words = r"shards/000000\.tar of .* has sample 's0001' where its sidecar has 'other'"
    with s3_server() as server:
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        for uri in (folder, uploaded(folder, server.new_bucket())):
            dataset = open_dataset(uri)
            assert len(list(iter_stored(dataset, [0, 2], ["txt"]))) == 2
            with pytest.raises(ShardError, match=words):
                list(iter_stored(dataset, [0, 1], ["txt"]))


def test_no_search_for_each_shard(tmp_path, monkeypatch):
    """Ten thousand shards are ten thousand steps: comparing each with all before it would be fifty million."""
    dataset = open_dataset(make_dataset(tmp_path / "d", [[make_sample(n)] for n in range(12)]))
    compared = []
    equal = Shard.__eq__
    monkeypatch.setattr(Shard, "__eq__", lambda self, other: compared.append(1) or equal(self, other))
    assert len(list(iter_stored(dataset, range(12), ["txt"]))) == 12
    assert len(compared) <= 24
