"""What holds for every storage, on real folders and over real HTTP; and what only folders have."""

import errno
import io
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import builds
import pytest

from patchmint.errors import NotFoundError, PlaceError, StorageError
from patchmint.storage import Entry, creates_conditionally, open_storage, syncs_names
from patchmint.storage.interface import TEMPORARY


def write_big(storage, path):
    with storage.new_file(path) as file:
        for _ in range(100):
            file.write(bytes(100_000))


def test_a_file_comes_back_as_written(storage):
    storage.write("a/b.bin", b"0123456789")
    assert storage.exists("a/b.bin")
    for path, data in (("a/b.bin", b"0123456789"), ("a/b.bin", b"new"), ("empty", b"")):
        storage.write(path, data)
        assert (storage.read(path), storage.size(path)) == (data, len(data))


def test_ranges_are_exact_or_refused(storage):
    storage.write("file", b"0123456789")
    assert storage.read_range("file", 2, 3) == b"234"
    assert storage.read_range("file", 0, 10) == b"0123456789"
    assert storage.read_range("file", 10, 0) == b""
    for start, length in [(8, 3), (20, 1), (11, 0)]:
        with pytest.raises(StorageError, match=r"file"):
            storage.read_range("file", start, length)
    with pytest.raises(StorageError, match="from 0 up"):
        storage.read_range("file", -1, 3)
    for length in (0, 1):
        with pytest.raises(NotFoundError):
            storage.read_range("nothing", 0, length)


def test_what_is_not_there_is_not_found(storage):
    storage.write("folder/file", b"1")
    for use in (storage.read, storage.size, storage.open, lambda path: storage.move(path, "there")):
        for path in ("nothing", "folder/nothing"):
            with pytest.raises(NotFoundError, match="there is no such"):
                use(path)
    with pytest.raises(StorageError):
        storage.read("folder")
    assert not any(storage.exists(path) for path in ("nothing", "folder", "folder/file/below"))
    assert list(storage.list("nothing")) == []
    storage.delete(["nothing", "folder/nothing"])


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a/.", "a\0b"])
def test_paths_stay_inside(storage, path):
    uses = [
        *(storage.read, storage.size, storage.exists, storage.open),
        lambda path: storage.read_range(path, 0, 1),
        lambda path: storage.write(path, b""),
        lambda path: storage.create(path, b""),
        lambda path: storage.move(path, "x"),
        lambda path: storage.delete([path]),
        lambda path: storage.new_file(path).__enter__(),
        *([] if path in ("", "a/") else [lambda path: list(storage.list(path))]),
    ]
    for use in uses:
        with pytest.raises(StorageError, match="not a path inside"):
            use(path)


ODD_NAMES = ["a b.jpg", "ü/ß 图.png", "x#y?z%20.txt", "a%b", "~t", "a*b", 'q"r', "[1].jpg", "{2}.jpg", "a+b&c=d"]


def test_names_with_odd_characters(storage):
    for name in ODD_NAMES:
        storage.write(name, name.encode())
    assert [entry.path for entry in storage.list()] == sorted(ODD_NAMES)
    for name in ODD_NAMES:
        assert storage.read(name) == name.encode()
    storage.move(ODD_NAMES[0], "moved " + ODD_NAMES[1])
    assert storage.read("moved " + ODD_NAMES[1]) == ODD_NAMES[0].encode()
    storage.delete(ODD_NAMES)
    assert [entry.path for entry in storage.list()] == ["moved " + ODD_NAMES[1]]


def test_listing_is_sorted_by_whole_paths(storage):
    names = ["b", "a/c", "a-b/x", "a.txt", "a/b/c", "A", "a0", "ab/z"]
    for size, name in enumerate(names):
        storage.write(name, bytes(size))
    assert list(storage.list()) == sorted(Entry(name, size) for size, name in enumerate(names))
    for folder in ("a", "a/"):
        assert [entry.path for entry in storage.list(folder)] == ["a/b/c", "a/c"]
    assert [list(storage.folders(folder)) for folder in ("a", "a/b", "b", "c")] == [["b"], [], [], []]


def test_create_succeeds_once(storage):
    assert [storage.create("x/record", data) for data in (b"first", b"second", b"first")] == [True, False, False]
    assert storage.read("x/record") == b"first"
    assert creates_conditionally(storage)
    assert [entry.path for entry in storage.list()] == ["x/record"]


def test_create_has_one_winner_of_many(storage):
    with ThreadPoolExecutor(8) as pool:
        for turn in range(10):
            won = list(pool.map(lambda number, turn=turn: storage.create(f"r/{turn}", b"%d" % number), range(8)))
            assert won.count(True) == 1
            assert storage.read(f"r/{turn}") == b"%d" % won.index(True)


def test_new_file_counts_and_hashes(storage):
    data = os.urandom(1 << 20)
    with storage.new_file("big/file") as file:
        for _ in range(9):
            assert file.write(memoryview(data)) == len(data)
        file.write(b"end")
        assert file.tell() == 9 * len(data) + 3
        file.flush()
    assert file.size == 9 * len(data) + 3
    assert file.sha256 == sha256(9 * data + b"end").hexdigest()
    assert storage.size("big/file") == file.size
    assert sha256(storage.read("big/file")).hexdigest() == file.sha256


def test_new_file_is_gone_after_an_exception(storage):
    def write_and_fail():
        with storage.new_file("some/file") as file:
            file.write(b"x" * 3_000_000)
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert list(storage.list()) == []
    if storage.is_local:
        assert not list(Path(storage.uri).rglob("*"))


def test_open_is_a_seekable_file(storage):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(20):
            info = tarfile.TarInfo(f"{number}.bin")
            info.size = 200_000
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    storage.write("x.tar", packed.getvalue())
    with storage.open("x.tar") as file:
        assert file.seekable()
        assert file.read(3) == b"0.b"
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            assert tar.getnames() == [f"{number}.bin" for number in range(20)]
            member = tar.extractfile("13.bin")
            assert member.read() == bytes([13]) * 200_000
        assert file.seek(-2, os.SEEK_END) == len(packed.getvalue()) - 2
        assert len(file.read()) == 2
        assert file.read() == b""
        assert file.seek(10**9) == 10**9
        assert file.read() == b""


def test_move_replaces_and_empties_the_source(storage):
    storage.write("a/b/from", b"new")
    storage.write("to", b"old")
    storage.move("a/b/from", "to")
    assert list(storage.list()) == [Entry("to", 3)]
    assert storage.read("to") == b"new"
    if storage.is_local:
        assert [path.name for path in Path(storage.uri).rglob("*")] == ["to"]


def test_temporary_files_are_hidden_and_swept(storage):
    storage.write("a/file", b"1")
    storage.write(f"a/{TEMPORARY}0123", b"of a killed process")
    assert [entry.path for entry in storage.list()] == ["a/file"]
    storage.delete_temporary()
    assert not storage.exists(f"a/{TEMPORARY}0123")
    assert storage.exists("a/file")


def test_it_travels_to_other_processes(storage):
    storage.write("file", b"1")
    packed = pickle.dumps(storage)
    assert b"testing" not in packed, "credentials"
    again = pickle.loads(packed)
    assert again.uri == storage.uri
    assert again.read("file") == b"1"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hdfs://name/folder", "begins with file://, s3://, gs://, az://"),
        ("https://bucket.s3.amazonaws.com/x?X-Amz-Signature=abc", "unknown kind"),
        ("s3://AKIAKEY:sec-ret@bucket/x", "credentials"),
        ("s3://bucket/x?token=sec-ret", r"'\?'"),
        ("s3://", "no bucket"),
        ("s3://bucket//x", "empty part"),
        ("gs://bucket/../x", r"'\.\.'"),
        ("file://host/folder", "names a host"),
        ("", "a path"),
        ("a\0b", "a path"),
    ],
)
def test_other_uris_are_refused(uri, message):
    with pytest.raises(StorageError, match=message) as caught:
        open_storage(uri)
    assert "sec-ret" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)


def test_file_uris_and_paths_are_local(tmp_path, monkeypatch):
    (tmp_path / "a b#c").mkdir()
    (tmp_path / "a b#c" / "x").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    relative = open_storage("a b#c")
    monkeypatch.chdir("/")
    absolute = (f"file://{tmp_path}/a%20b#c", f"file://localhost{tmp_path}/a b#c")
    for storage in (relative, *map(open_storage, absolute)):
        assert storage.is_local
        assert storage.read("x") == b"1"


def test_gs_and_az_open_without_a_request(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    for uri in ("gs://bucket/x", "az://container/x"):
        storage = open_storage(uri)
        assert (storage.uri, storage.is_local) == (uri, False)
        assert b"c2VjcmV0" not in pickle.dumps(storage)


def test_opening_and_reading_make_no_folder(tmp_path):
    storage = open_storage(tmp_path / "out")
    assert list(storage.list()) == []
    assert not storage.exists("x")
    with pytest.raises(NotFoundError):
        storage.read("x")
    storage.delete(["x"])
    storage.delete_temporary()
    storage.delete_empty_folders("x")
    assert not (tmp_path / "out").exists()


def test_faults_of_the_file_system_are_explained(tmp_path):
    storage = open_storage(tmp_path)
    storage.write("file", b"1")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    for message, use, *arguments in (
        ("it is a folder; name a file", storage.size, "folder"),
        ("pipe or a device", storage.read, "pipe"),
        ("not a folder", storage.write, "file/below", b"1"),
        ("name is too long", storage.write, "x" * 300, b"1"),
        ("circle", storage.read, "circle"),
        ("folder", storage.write, "folder", b"1"),
    ):
        with pytest.raises(StorageError, match=message):
            use(*arguments)
    assert not list(tmp_path.rglob(f"*{TEMPORARY}*"))


_AS_NOBODY = """
import os, sys
from patchmint.errors import StorageError
from patchmint.storage import open_storage
os.setgid(65534), os.setuid(65534)
storage = open_storage(sys.argv[1])
for use in (lambda: storage.read("file"), lambda: storage.write("new", b""), lambda: list(storage.list())):
    try:
        use()
    except StorageError as error:
        print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_permission_errors_are_explained():
    with tempfile.TemporaryDirectory() as folder:
        closed = Path(folder) / "closed"
        closed.mkdir(0o700)
        Path(folder).chmod(0o755)
        (closed / "file").write_bytes(b"1")
        command = [sys.executable, "-c", _AS_NOBODY, str(closed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.count("permission denied; give this user access") == 3, done


def test_links_are_followed_and_circles_found(tmp_path):
    real, out = tmp_path / "real", tmp_path / "out"
    real.mkdir()
    out.mkdir()
    (real / "x").write_bytes(b"12")
    for name, target in (("linked", real), ("file", real / "x"), ("dangling", tmp_path / "nothing")):
        (out / name).symlink_to(target)
    assert list(open_storage(out).list()) == [Entry("file", 2), Entry("linked/x", 2)]
    (real / "back").symlink_to(out)
    with pytest.raises(StorageError, match="circle"):
        list(open_storage(out).list())


def test_create_without_hard_links_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=r"no hard links .* choose a folder on another file system"):
        open_storage(tmp_path).create("record", b"1")
    assert not list(tmp_path.rglob("*"))


def test_a_file_system_that_syncs_no_folders_is_used_and_named(tmp_path, monkeypatch):
    """As old CIFS and some FUSE: a folder's fsync says EINVAL, a file's works."""
    assert syncs_names(open_storage(tmp_path / "out"))
    sync = os.fsync

    def refuse(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    storage = open_storage(tmp_path / "out")
    assert not syncs_names(storage)
    assert [storage.create("a/record", data) for data in (b"1", b"2")] == [True, False]
    write_big(storage, "b/big")
    storage.move("b/big", "c/big")
    assert [entry.path for entry in storage.list()] == ["a/record", "c/big"]

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    for use in (lambda: storage.create("d", b"1"), lambda: syncs_names(storage)):
        with pytest.raises(StorageError, match="Input/output error"):
            use()


def test_a_link_whose_reply_was_lost_counts_as_made(tmp_path, monkeypatch):
    link = os.link

    def linked_but_says_it_exists(*args, **options):
        link(*args, **options)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", linked_but_says_it_exists)
    assert open_storage(tmp_path).create("record", b"1")


def test_writers_survive_a_sweep(tmp_path, monkeypatch):
    storage = open_storage(tmp_path)
    sync, sweeps = os.fsync, [3, 3]

    def sweep_meanwhile(descriptor):
        sync(descriptor)
        for turn, kind in enumerate(("c", "w")):
            if sweeps[turn] and (tmp_path / kind).exists():
                sweeps[turn] -= 1
                storage.delete_temporary()
                storage.delete_empty_folders(kind)

    monkeypatch.setattr(os, "fsync", sweep_meanwhile)
    assert storage.create("c/record", b"1")
    storage.write("w/file", b"2")
    assert sweeps == [0, 0]
    assert [entry.path for entry in storage.list()] == ["c/record", "w/file"]


def test_everything_is_synced_before_it_is_named(tmp_path, monkeypatch):
    steps = []

    def noted(name):
        original = getattr(os, name)

        def call(*args, **options):
            what = args[0]
            path = Path(f"/proc/self/fd/{what}").readlink() if isinstance(what, int) else Path(str(args[-1]))
            temporary = "temporary" if path.name.startswith(TEMPORARY) else str(path.relative_to(tmp_path))
            steps.append(f"{name} {temporary}")
            return original(*args, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "link", "rename", "unlink"):
        noted(name)
    storage = open_storage(tmp_path / "out")
    storage.create("r/record", b"1")
    link = next(step for step in steps if step.startswith("link"))
    assert steps == ["fsync .", "fsync out", "fsync temporary", link, "fsync out/r", "unlink temporary"]
    for use, expected in (
        (lambda: storage.write("r/file", b"1"), "fsync temporary, rename out/r/file, fsync out/r, unlink temporary"),
        (lambda: write_big(storage, "a/big"), "fsync out, fsync out/a/big, fsync out/a"),
        (lambda: storage.move("a/big", "s/big"), "fsync out, rename out/s/big, fsync out/s"),
    ):
        steps.clear()
        use()
        assert ", ".join(steps) == expected


def test_a_full_disk_is_named_and_left_clean(tmp_path):
    with builds.small_disk(tmp_path / "disk"):
        storage = open_storage(tmp_path / "disk" / "out")
        storage.write("kept", b"1")
        for path, use in (
            ("a/big", lambda path: write_big(storage, path)),
            ("whole", lambda path: storage.write(path, bytes(2_000_000))),
            ("record", lambda path: storage.create(path, bytes(2_000_000))),
        ):
            with pytest.raises(StorageError, match=rf"disk/out/{path}: the disk is full; free some space"):
                use(path)
        assert [path.name for path in (tmp_path / "disk" / "out").rglob("*")] == ["kept"]
        storage.write("whole", bytes(200_000))


def test_a_full_temporary_disk_is_named(tmp_path, server, monkeypatch):
    storage = open_storage(server.new_bucket(monkeypatch))
    with builds.small_disk(tmp_path / "disk"):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
        with pytest.raises(PlaceError, match=r"out/big .*TMPDIR moves it.*: the disk is full"):
            write_big(storage, "big")
        assert not list((tmp_path / "disk").iterdir())
    assert list(storage.list()) == []


def _write_beyond_the_limit(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
    storage, data = open_storage(folder), bytes(10**6)
    for use in (lambda: storage.write("x", data), lambda: storage.create("x", data), lambda: write_big(storage, "y")):
        with pytest.raises(StorageError, match=r"larger than .* a limit"):
            use()


def test_a_limit_of_file_sizes_is_named_and_left_clean(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_write_beyond_the_limit, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not list(tmp_path.rglob("*"))
