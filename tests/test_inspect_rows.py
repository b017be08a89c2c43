"""Tables of a data set that aren't what the format says are one clear error, whatever is wrong with them."""

from __future__ import annotations

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_data import make_dataset, make_reject, make_sample, write_shard

from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.ledger import iter_rejects
from patchmint.datasets.reader import iter_stored, sample_at
from patchmint.datasets.rows import iter_tables, read_table
from patchmint.errors import ShardError
from patchmint.inspection.show.lookup import find_sample
from patchmint.shards.sidecar import SCHEMA


@pytest.fixture
def folder(tmp_path):
    units = [[make_sample(0), make_sample(1)], [make_sample(2)], []]
    return make_dataset(tmp_path / "d", units, {2: [make_reject(3)]})


def replaced(path, name, column):
    table = pq.read_table(path)
    place = table.column_names.index(name)
    pq.write_table(table.drop([name]) if column is None else table.set_column(place, name, column), path)


def test_rows(folder):
    dataset = open_dataset(folder)
    whole = [read_table(dataset, shard) for shard in dataset.shards]
    assert [table.num_rows for table in whole] == [2, 1, 0]
    assert [table.column_names for table in whole] == [SCHEMA.names] * 3
    told = []
    parts = list(iter_tables(dataset, ["texts", "key"], lambda done, total: told.append((done, total))))
    assert [table["key"].to_pylist() for _, table in parts] == [["s0000", "s0001"], ["s0002"]]
    assert told == [(1, 2), (2, 2)]
    assert [table["key"].to_pylist() for table in iter_rejects(dataset)] == [["s0003"]]


@pytest.mark.parametrize(
    "column",
    [None, pa.array([1, 2], pa.int64()), pa.array(["a", None]), pa.array([["a"], ["b"]])],
    ids=["absent", "other type", "null", "list"],
)
def test_columns_of_another_form(folder, column):
    replaced(folder / "shards" / "000000.parquet", "key", column)
    dataset = open_dataset(folder)
    with pytest.raises(ShardError, match=r"000000.parquet.*run `patchmint inspect verify`"):
        read_table(dataset, dataset.shards[0], ["key"])
    with pytest.raises(ShardError, match=r"000000.parquet"):
        list(iter_tables(dataset, ["key"]))


def test_nulls_inside_of_lists(folder):
    replaced(folder / "shards" / "000000.parquet", "texts", pa.array([["a", None], ["b"]]))
    dataset = open_dataset(folder)
    with pytest.raises(ShardError, match="'texts' isn't what the format says"):
        read_table(dataset, dataset.shards[0], ["texts"])


def test_a_column_twice(folder):
    path = folder / "shards" / "000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("key", table["key"]), path)
    dataset = open_dataset(folder)
    with pytest.raises(ShardError, match="'key' isn't what the format says"):
        read_table(dataset, dataset.shards[0], ["key"])


def test_fewer_rows_and_no_parquet_at_all(folder):
    path = folder / "shards" / "000000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 1), path)
    dataset = open_dataset(folder)
    with pytest.raises(ShardError, match="has 1 rows, not 2"):
        read_table(dataset, dataset.shards[0], ["key"])
    path.write_bytes(b"PAR1")
    with pytest.raises(ShardError, match="is no table of patchmint"):
        read_table(dataset, dataset.shards[0])
    (folder / "rejects" / "000002.parquet").write_bytes(b"")
    with pytest.raises(ShardError, match="is no table of patchmint"):
        list(iter_rejects(dataset))


@pytest.mark.parametrize(
    ("offset", "size"),
    [(-1, 512), (0, 0), (0, -1), (0, 10**12), (0, 2**63 - 1), (2**63 - 1, 512), (2**63 - 1, 2**63 - 1), (512, None)],
)
def test_places_outside_of_the_tar(folder, monkeypatch, offset, size):
    """Of a hostile sidecar: one error, from whatever needs places."""
    monkeypatch.setenv("PATCHMINT_CACHE", str(folder.parent / "cache"))
    whole = open_dataset(folder).shards[0].size
    path = folder / "shards/000000.parquet"
    table = pq.read_table(path)
    places = {"offset": [0, offset], "size": [table["size"][0].as_py(), whole if size is None else size]}
    for name, values in places.items():
        replaced(path, name, pa.array(values, pa.int64()))
    dataset = open_dataset(folder)
    words = r"shards/000000\.parquet of .* sample 1 at byte .*inspect verify"
    with pytest.raises(ShardError, match=words):
        sample_at(dataset, 1)
    with pytest.raises(ShardError, match=words):
        list(iter_stored(dataset, [1], ["json"]))
    with pytest.raises(ShardError, match=words):
        find_sample(dataset, "s0001")
    assert read_table(dataset, dataset.shards[0], ["key"]).num_rows == 2


def test_places_up_to_the_end(folder):
    tar = folder / "shards/000000.tar"
    sample = sample_at(open_dataset(folder), 1)
    tar.write_bytes(tar.read_bytes()[: sample.offset + sample.size])
    assert sample_at(open_dataset(folder), 1).key == sample.key


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_that_was_packed_again(tmp_path, kind):
    tar, _ = write_shard([make_sample(0), make_sample(1)])
    with tarfile.open(fileobj=io.BytesIO(tar)) as old, tarfile.open(tmp_path / "a.tar", "w", format=kind) as new:
        for member in old:
            member.mtime = 1.5 if member.name.startswith("s0001") else 0  # what no plain header can hold
            new.addfile(member, old.extractfile(member))
    if kind == tarfile.PAX_FORMAT:
        with pytest.raises(ShardError, match=r"a\.tar was packed again .* --format=ustar"):
            open_dataset(tmp_path / "a.tar")
    else:
        dataset = open_dataset(tmp_path / "a.tar")
        assert [sample_at(dataset, index).key for index in range(2)] == ["s0000", "s0001"]
