"""Indexes in the user's cache: whole or not there, one for each state of a data set, whoever else builds."""

import os
import shutil
import time

import pytest
from inspect_data import edit_json
from shard_data import commit_unit, make_dataset, make_sample, renamed, write_plan, write_shard

from patchmint.datasets.dataset import open_dataset
from patchmint.errors import InputError
from patchmint.inspection.cache import open_index


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHMINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indexes"


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(make_dataset(tmp_path / "d", [[make_sample(0)], [make_sample(1)]]))


def load(folder):
    return (folder / "a").read_text()


def writes(text):
    return lambda folder: (folder / "a").write_text(text)


def test_made_once(dataset, cache):
    for name, text, found in (("n-1", "one", "one"), ("n-1", "two", "one"), ("m-1", "three", "three")):
        assert open_index(dataset, name, writes(text), load) == found
    assert open_index(dataset, "n-1", writes("four"), load, anew=True) == "four"
    assert len(list(cache.glob("*/*"))) == 2


def test_one_that_was_finished_in_the_meantime_is_kept(dataset, cache):
    inodes = []

    def slow(folder):
        assert open_index(dataset, "n-1", writes("fast"), load) == "fast"
        inodes.extend(path.stat().st_ino for path in cache.glob("*/n-1-*"))
        (folder / "a").write_text("slow")

    assert open_index(dataset, "n-1", slow, load) == "fast"
    assert [path.stat().st_ino for path in cache.glob("*/*")] == inodes


def test_one_that_was_finished_while_it_was_looked_for_is_kept(dataset):
    """It is damaged when it is read, and whole again when it would be deleted."""
    open_index(dataset, "n-1", writes("one"), load)
    tried = []

    def slow(folder):
        tried.append(folder)
        if len(tried) == 1:
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "a").write_text("fast")
            raise ValueError("damaged")
        return load(folder)

    assert open_index(dataset, "n-1", writes("slow"), slow) == "fast"


def test_of_earlier_states_nothing_is_left(tmp_path, cache):
    folder = tmp_path / "d"
    write_plan(folder, {0: 1, 1: 1})
    commit_unit(folder, 0, [make_sample(0)], [])
    open_index(open_dataset(folder), "n-1", writes("one"), load)
    commit_unit(folder, 1, [make_sample(1)], [])
    assert open_index(open_dataset(folder), "n-1", writes("two"), load) == "two"
    assert len(list(cache.glob("*/*"))) == 1


def test_every_change_is_a_new_state(tmp_path):
    """Of dataset.json; of a table's size; of its time, since its size may be the same."""
    folder = make_dataset(tmp_path / "d", [[make_sample(0)], [make_sample(1)]])
    texts = iter("abcdefg")

    def state():
        return open_index(open_dataset(folder), "n-1", writes(next(texts)), load)

    manifest, sidecar = folder / "dataset.json", folder / "sidecars/000001.parquet"
    assert state() == "a"
    manifest.write_bytes(manifest.read_bytes().replace(b'"patchmint": "0"', b'"patchmint": "1"'))
    assert state() == "b"
    times = sidecar.stat().st_atime_ns, sidecar.stat().st_mtime_ns
    with sidecar.open("ab") as file:
        file.write(b" ")
    os.utime(sidecar, ns=times)
    assert state() == "c"
    os.utime(sidecar, ns=(times[0], times[1] + 1))
    assert state() == "d"
    assert open_index(open_dataset(folder), "n-1", writes("no"), load) == "d"


def test_a_table_of_the_same_size_on_a_store(tmp_path, monkeypatch):
    """A store tells no times that could be trusted: the list of shards has the table's checksum."""
    folder = make_dataset(tmp_path / "d", [[make_sample(0)]])
    monkeypatch.setattr("patchmint.inspection.cache._times", lambda _: [])
    assert open_index(open_dataset(folder), "n-1", writes("a"), load) == "a"
    edit_json(folder / "shards.json", lambda listed: listed["units"][0].update(table_sha256="0" * 64))
    assert open_index(open_dataset(folder), "n-1", writes("b"), load) == "b"


def test_a_lone_tar_that_was_replaced(tmp_path):
    tar = tmp_path / "d" / "lone.tar"
    tar.parent.mkdir()
    for key in "ab":
        tar.write_bytes(write_shard([renamed(make_sample(0), key)])[0])
        os.utime(tar, ns=(0, ord(key)))
        assert open_index(open_dataset(tar), "n-1", writes(key), load) == key


def test_what_killed_builders_left_is_swept_after_a_day(dataset, cache):
    for age_h, name in ((25, ".growing-old"), (23, ".growing-young")):
        (cache / "0" / name).mkdir(parents=True)
        (cache / "0" / name / "a").write_text("half")
        moment = time.time() - age_h * 3600
        os.utime(cache / "0" / name, (moment, moment))
    open_index(dataset, "n-1", writes("one"), load)
    assert [path.name for path in (cache / "0").iterdir()] == [".growing-young"]


def test_one_that_can_never_be_read(dataset, cache):
    made = []
    with pytest.raises(InputError, match="although it was just made"):
        open_index(dataset, "n-1", made.append, load)
    assert len(made) == 1


def test_a_cache_that_cannot_be_written(dataset, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="set PATCHMINT_CACHE"):
        open_index(dataset, "n-1", writes("one"), load)


def test_what_building_raises_leaves_nothing(dataset, cache):
    def fail(folder):
        writes("half")(folder)
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        open_index(dataset, "n-1", fail, load)
    assert not [path for path in cache.rglob("*") if path.is_file()]
