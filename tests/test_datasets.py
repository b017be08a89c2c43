"""Data sets opened for reading: rows, samples, and one clear error where a table isn't what the format says."""

import io
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_data import make_dataset, make_reject, make_sample, on_a_store, write_shard

from patchmint.datasets.dataset import Shard, open_dataset
from patchmint.datasets.ledger import iter_rejects
from patchmint.datasets.reader import SampleReader, SampleRef, iter_stored, sample_at
from patchmint.datasets.rows import iter_tables, read_table, with_extents
from patchmint.errors import InputError, ShardError
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
    replaced(folder / "sidecars" / "000000.parquet", "key", column)
    dataset = open_dataset(folder)
    with pytest.raises(ShardError, match=r"000000.parquet.*run `patchmint inspect verify`"):
        read_table(dataset, dataset.shards[0], ["key"])
    with pytest.raises(ShardError, match=r"000000.parquet"):
        list(iter_tables(dataset, ["key"]))


def test_nulls_inside_of_lists(folder):
    replaced(folder / "sidecars" / "000000.parquet", "texts", pa.array([["a", None], ["b"]]))
    dataset = open_dataset(folder)
    with pytest.raises(ShardError, match="'texts' isn't what the format says"):
        read_table(dataset, dataset.shards[0], ["texts"])


def test_a_column_twice(folder):
    path = folder / "sidecars" / "000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("key", table["key"]), path)
    dataset = open_dataset(folder)
    with pytest.raises(ShardError, match="'key' isn't what the format says"):
        read_table(dataset, dataset.shards[0], ["key"])


def test_fewer_rows_and_no_parquet_at_all(folder):
    path = folder / "sidecars" / "000000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 1), path)
    dataset = open_dataset(folder)
    with pytest.raises(ShardError, match="has 1 rows, not 2"):
        read_table(dataset, dataset.shards[0], ["key"])
    path.write_bytes(b"PAR1")
    with pytest.raises(ShardError, match="isn't a patchmint table"):
        read_table(dataset, dataset.shards[0])
    (folder / "rejects" / "000002.parquet").write_bytes(b"")
    with pytest.raises(ShardError, match="isn't a patchmint table"):
        list(iter_rejects(dataset))


@pytest.mark.parametrize(
    ("offset", "size"),
    [(-1, 512), (0, 0), (0, -1), (0, 10**12), (0, 2**63 - 1), (2**63 - 1, 512), (2**63 - 1, 2**63 - 1), (512, None)],
)
def test_places_outside_of_the_tar(folder, monkeypatch, offset, size):
    """Of a hostile sidecar: one error, from whatever needs places."""
    monkeypatch.setenv("PATCHMINT_CACHE", str(folder.parent / "cache"))
    whole = open_dataset(folder).shards[0].size
    path = folder / "sidecars/000000.parquet"
    table = pq.read_table(path)
    places = {"offset": [0, offset], "size": [table["size"][0].as_py(), whole if size is None else size]}
    for name, values in places.items():
        replaced(path, name, pa.array(values, pa.int64()))
    dataset = open_dataset(folder)
    words = r"sidecars/000000\.parquet of .* sample 1 at byte .*inspect verify"
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


@pytest.fixture
def several(tmp_path):
    return make_dataset(tmp_path / "d", [[make_sample(0), make_sample(1)], [], [make_sample(2)], [make_sample(3)]])


def test_chosen_members_of_chosen_samples(several):
    told = []
    dataset = open_dataset(several)
    for chosen in ([0, 1, 2, 3], [1], [0, 3], []):
        found = list(iter_stored(dataset, chosen, ["txt", "json", "nothing"], lambda *step: told.append(step)))
        assert [(index, sample.key) for index, sample in found] == [(index, f"s{index:04}") for index in chosen]
        assert all(sorted(sample.members) == ["json", "txt"] for _, sample in found)
    assert told[:4] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(InputError, match="4 samples"):
        list(iter_stored(dataset, [4], ["txt"]))


def test_a_sidecar_with_another_key(several):
    path = several / "sidecars/000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, table.schema.field(0), pa.array(["s0000", "other"])), path)
    words = r"shards/000000\.tar of .* has sample 's0001' where its sidecar has 'other'"
    with on_a_store(several) as uri:
        for place in (several, uri):
            dataset = open_dataset(place)
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


def test_a_copy_of_the_shards_alone(tmp_path, several):
    """With shards.json it is as good as the whole; without, sidecars tell how many samples there are."""
    whole = open_dataset(several)
    for listed in (True, False):
        alone = shutil.copytree(several, tmp_path / str(listed))
        (alone / "plan.parquet").unlink()
        shutil.rmtree(alone / "commits")
        if not listed:
            (alone / "shards.json").unlink()
        found = open_dataset(alone)
        assert (found.finished, found.samples, found.unbuilt) == (True, 4, 0)
        assert [shard.tar for shard in found.shards if shard.samples] == [s.tar for s in whole.shards if s.samples]
        for index in range(4):
            assert sample_at(found, index).members == sample_at(whole, index).members
        (alone / "sidecars/000002.parquet").unlink()
        with pytest.raises(ShardError, match=r"lacks sidecars/000002\.parquet"):
            open_dataset(alone)
        (alone / "shards/000002.tar").unlink()
        with pytest.raises(ShardError, match=r"lacks|the files of .* make 3 samples, its dataset\.json says 4"):
            open_dataset(alone)


def test_a_lone_tar_has_its_sidecar(tmp_path, several, monkeypatch):
    monkeypatch.chdir(several / "shards")
    for uri in (several / "shards/000000.tar", "000000.tar", (several / "shards/000000.tar").as_uri()):
        opened = open_dataset(uri)
        assert opened.scanned is None
        assert (opened.shards[0].tar, opened.shards[0].sidecar) == ("shards/000000.tar", "sidecars/000000.parquet")
        assert sample_at(opened, 0).members == sample_at(open_dataset(several), 0).members
    copied = [shutil.copy(several / path, tmp_path) for path in ("shards/000000.tar", "sidecars/000000.parquet")]
    assert open_dataset(copied[0]).shards[0].sidecar == "000000.parquet"
    shutil.rmtree(several / "sidecars")
    assert open_dataset("000000.tar").scanned.num_rows == 2


def test_extents_read_ahead_lead_to_the_same_samples(several):
    dataset = open_dataset(several)
    refs = [SampleRef(number, 0, index) for index in (3, 0, 2, 1) for number in (0, 1)]
    here, ahead = SampleReader([dataset] * 2), SampleReader([with_extents(dataset)] * 2, ["txt"])
    for (one, sample), (other, part) in zip(here.read(refs), ahead.read(refs), strict=True):
        assert one == other
        assert part.members == {"txt": sample.members["txt"]}
        assert here.describe(one) == ahead.describe(one)
        assert ahead.locate(one).key is None
        assert here.locate(one).key == sample.key == part.key
