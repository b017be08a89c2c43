"""Faults of one machine: its reads fail, its temporary folder is full. Another may do the unit."""

import errno
import os
import tempfile

import builds
import pytest

from patchmint.errors import ImageMissingError, ImageUnreadableError, PlaceError
from patchmint.pipeline.orders import Failed
from patchmint.pipeline.sources import base
from patchmint.pipeline.worker.prepare import Witness
from patchmint.samples import ImageRef
from patchmint.storage import open_storage
from patchmint.storage.failures import explain
from patchmint.storage.local import LocalStorage

TEXTS = [f"thing number {number}" for number in range(14)]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(builds.STAND_IN)
    source = builds.make_input(tmp_path / "in", TEXTS)
    return builds.make_config(tmp_path / "config.json", source, tmp_path / "out")


def pool_that_moves(moved, seen, began=lambda: None):
    """A pool whose next try at a unit that failed is on another machine: `moved` makes it so."""

    class Pool(builds.SameProcess):
        def start(self, workers):
            began()
            super().start(workers)

        def wait(self, seconds):
            events = super().wait(seconds)
            for event in events:
                if isinstance(event, Failed):
                    seen.append(event)
                    moved()
            return events

    return Pool


class Mount:
    """Reads of images fail while `fails` says so."""

    def __init__(self, monkeypatch, fails):
        self.fails, self.reads = fails, 0
        real = LocalStorage.read

        def read(storage, path):
            self.reads += path.endswith(".jpg")
            if path.endswith(".jpg") and self.fails(self.reads, path):
                error = OSError(errno.EIO, os.strerror(errno.EIO))
                raise explain("read", path, error) from error
            return real(storage, path)

        monkeypatch.setattr(LocalStorage, "read", read)
        monkeypatch.setattr(base, "_RESTS", (0, 0))


@pytest.mark.parametrize("sound", [0, 7])
def test_a_mount_that_fails_costs_no_sample(config, tmp_path, monkeypatch, sound):
    builds.build_here(config, tmp_path / "undisturbed")
    mount = Mount(monkeypatch, lambda reads, path: reads > sound)
    seen = []

    def move():
        mount.fails = lambda *_: False

    builds.build_here(config, tmp_path / "out", {"output.samples_per_shard": 14}, pool_that_moves(move, seen))
    monkeypatch.undo()
    (failed,) = seen
    assert (failed.place, failed.transient) == (True, True)
    assert "which it has read before" in failed.message if sound else "8 images in a row" in failed.message
    assert sum(record["rejects"] != {} for record in builds.committed(tmp_path / "out").values()) == 0


def test_one_file_that_cannot_be_read_is_a_reject(config, tmp_path, monkeypatch):
    Mount(monkeypatch, lambda reads, path: path == "003.jpg")
    report = builds.build_here(config, tmp_path / "out")
    assert (report.written, report.rejects) == (13, {"image-unreadable": 1})


def test_a_witness_that_is_gone_says_nothing():
    there = {"a": b"1"}

    def read(ref):
        if ref.path == "gone":
            raise ImageMissingError
        if ref.path not in there:
            raise ImageUnreadableError
        return there[ref.path]

    witness = Witness(read)
    assert witness.read(ImageRef("a")) == b"1"
    for _ in range(20):
        with pytest.raises(ImageUnreadableError):
            witness.read(ImageRef("b"))
    there["gone"] = b""
    del there["a"]
    with pytest.raises(PlaceError, match="not even 'a', which it has read before"):
        witness.read(ImageRef("b"))


def test_a_full_temporary_folder_is_the_fault_of_its_machine(config, tmp_path, server, monkeypatch):
    builds.build_here(config, tmp_path / "out")
    uri = server.new_bucket(monkeypatch)
    seen = []
    with builds.small_disk(tmp_path / "disk"):
        (tmp_path / "disk" / "fill").write_bytes(bytes((1 << 20) - 8192))

        def begin():
            monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))

        def move():
            monkeypatch.setattr(tempfile, "tempdir", None)

        builds.build_here(config, uri, pool=pool_that_moves(move, seen, begin))
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["fill"]
    (failed,) = seen
    assert (failed.place, failed.transient) == (True, True)
    assert "TMPDIR moves it): the disk is full" in failed.message
    tar = "shards/000000.tar"
    assert open_storage(uri).read(tar) == (tmp_path / "out" / tar).read_bytes()


def test_a_spool_has_no_name_that_a_kill_could_leave(tmp_path, server, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    storage = open_storage(server.new_bucket(monkeypatch))
    with storage.new_file("big") as file:
        file.write(bytes(3 << 20))
        assert list(tmp_path.iterdir()) == []
    assert storage.size("big") == 3 << 20
