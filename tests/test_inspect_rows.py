"""Tables of a data set that aren't what the format says are one clear error, whatever is wrong with them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_data import make_dataset, make_reject, make_sample

from patchmint.errors import ShardError
from patchmint.inspection.opening import open_dataset
from patchmint.inspection.rows import iter_rejects, iter_tables, read_table
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
