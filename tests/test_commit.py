"""The commit protocol: killed, stopped and raced at every step, on a folder and on a real S3-protocol server."""

import json
import os
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import obstore
import pytest
from builds import exit_code, fork
from flaky_proxy import Fault, conditional_put

from patchmint.errors import NotFoundError, ShardError, StorageError
from patchmint.shards.commit import Attempt, committed_units, find_record, publish, read_record, read_records, sweep
from patchmint.shards.paths import canonical_paths, record_path
from patchmint.shards.records import CommitRecord, FileRecord
from patchmint.storage import open_storage
from patchmint.storage.interface import NewFile
from patchmint.storage.local import LocalStorage

# Children of one script are forked instead of started anew: hundreds of kills would take minutes otherwise. Each does
# its work after the fork, so that none inherits obstore's threads.


def build(storage, unit, run, tag):
    """What a worker does; the bytes tell who wrote them."""
    attempt = Attempt(storage, unit, run)
    try:
        for canonical in canonical_paths(unit):
            with attempt.new_file(canonical) as file:
                file.write(f"{canonical} by {tag}".encode())
                file.write(bytes(100))
        return attempt.commit(planned=3, written=2, rejects={"image-missing": 1}, plan_digest="d")
    except StorageError:
        if unit in committed_units(storage):
            return False
        raise
    finally:
        attempt.drop()


def go_on(storage, unit, run, tag):
    """What another driver does that finds the output: finish what is committed, do the rest, sweep."""
    record = find_record(storage, unit)
    if record is None:
        build(storage, unit, run, tag)
    else:
        publish(storage, record)
    sweep(storage, None)


def problems(storage, unit, tags, *, ended):
    """What is wrong with a unit's files, at any moment or in the end."""
    found = {entry.path: entry.size for entry in storage.list()}
    record = find_record(storage, unit)
    published = [path for path in canonical_paths(unit) if path in found]
    if record is None:
        return [f"published without a record: {published}"] if published else []
    wrong = []
    by = {storage.read(path).rstrip(b"\0").decode().rpartition(" ")[2] for path in published}
    if not by <= tags or len(by) > 1:
        wrong.append(f"mixed bytes of {by}")
    for path, file in record.files.items():
        here = path if path in found else file.path
        if here not in found or sha256(storage.read(here)).hexdigest() != file.sha256:
            wrong.append(f"{path} is lost or not the record's")
    if ended and set(found) != {*canonical_paths(unit), record_path(unit)}:
        wrong.append(f"in the end there is {sorted(found)}")
    if ended and storage.is_local:
        files = {str(path.relative_to(storage.uri)) for path in Path(storage.uri).rglob("*")}
        if files != {*canonical_paths(unit), record_path(unit), "commits", "shards", "sidecars", "rejects"}:
            wrong.append(f"in the end the folder holds {sorted(files)}")
    return wrong


STEPS = {
    "local": [
        *[(os, name) for name in ("fsync", "link", "rename", "unlink", "mkdir", "rmdir")],
        (Path, "open"),
        (NewFile, "write"),
    ],
    "s3": [(obstore, name) for name in ("put", "head", "get", "list", "copy", "delete")],
}


def interrupt(steps, number, sent):
    """Send this process a signal before its step of that number, which is also after the one before."""
    count = 0

    def wrap(original):
        def step(*args, **options):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), sent)
            return original(*args, **options)

        return step

    for owner, name in steps:
        setattr(owner, name, wrap(getattr(owner, name)))


def check(storage, tags, *, ended):
    wrong = problems(storage, 3, tags, ended=ended)
    assert not wrong, wrong


def interrupted(uri, kind, sent):
    """Interrupt a build at each of its steps in turn, and let another driver go on; returns the number of steps.

    After SIGKILL the same bytes are built again. After SIGSTOP the other driver builds bytes of its own, and then the
    stopped one continues.
    """
    other = "a" if sent == signal.SIGKILL else "b"
    for number in range(1, 1000):
        here = f"{uri}/{number}"

        def first(here=here, number=number):
            interrupt(STEPS[kind], number, sent)
            build(open_storage(here), 3, "run-a", "a")

        def second(here=here):
            storage = open_storage(here)
            check(storage, {"a"}, ended=False)
            go_on(storage, 3, "run-b", other)
            check(storage, {"a", other}, ended=False)

        def last(here=here):
            storage = open_storage(here)
            sweep(storage, None)
            check(storage, {"a", other}, ended=True)

        pid = fork(first)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFEXITED(status):
            assert os.waitstatus_to_exitcode(status) == 0, number
            return number - 1
        assert os.WIFSIGNALED(status) == (sent == signal.SIGKILL), (number, status)
        assert exit_code(fork(second)) == 0, number
        if sent == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
            assert exit_code(pid) == 0, number
        assert exit_code(fork(last)) == 0, number
    raise AssertionError("it never ends")


def raced(uri, turns):
    """Several processes at the same unit at the same time, many times; returns how many."""
    for turn in range(turns):
        here = f"{uri}/{turn}"
        ready, go = os.pipe()

        def racer(tag, here=here, ready=ready, go=go):
            os.close(go)
            storage = open_storage(here)
            os.read(ready, 1)
            os._exit(10 if build(storage, 3, f"run-{tag}", tag) else 0)

        pids = [fork(lambda tag=tag: racer(tag)) for tag in "abc"]
        os.close(go)
        codes = [exit_code(pid) for pid in pids]
        os.close(ready)
        assert sorted(codes) == [0, 0, 10], (turn, codes)
        winner = "abc"[codes.index(10)]
        looks = fork(lambda here=here, winner=winner: check(open_storage(here), {winner}, ended=True))
        assert exit_code(looks) == 0, turn
    return turns


def in_a_script(*args, env=os.environ):
    """Run one of the functions above in a process without threads."""
    command = [sys.executable, __file__, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | env)
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout)


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path, monkeypatch):
    if request.param == "local":
        return open_storage(tmp_path / "out")
    proxy, server = map(request.getfixturevalue, ("proxy", "server"))
    return open_storage(server.new_bucket(monkeypatch, proxy.port))


@pytest.mark.kill
@pytest.mark.parametrize("sent", ["SIGKILL", "SIGSTOP"])
def test_interrupted_at_every_step(tmp_path, sent):
    assert in_a_script("interrupted", str(tmp_path), "local", sent) > 40


@pytest.mark.kill
@pytest.mark.parametrize("sent", ["SIGKILL", "SIGSTOP"])
def test_interrupted_at_every_request(server, sent):
    assert in_a_script("interrupted", server.new_bucket(), "s3", sent, env=server.env()) > 15


def test_raced(tmp_path, server):
    assert in_a_script("raced", str(tmp_path), "local", "12") == 12
    assert in_a_script("raced", server.new_bucket(), "s3", "5", env=server.env()) == 5


def test_a_commit_publishes_and_cleans_up(storage):
    assert build(storage, 3, "run-a", "a")
    assert problems(storage, 3, {"a"}, ended=True) == []
    record = read_record(storage, 3)
    assert (record.unit, record.planned, record.written, record.rejects) == (3, 3, 2, {"image-missing": 1})
    assert record.files["shards/000003.tar"].sha256 == sha256(storage.read("shards/000003.tar")).hexdigest()
    assert not build(storage, 3, "run-b", "b")
    assert read_record(storage, 3) == record
    assert problems(storage, 3, {"a"}, ended=True) == []


def begun(storage, unit, run, name="shards/{:06}.tar"):
    attempt = Attempt(storage, unit, run)
    with attempt.new_file(name.format(unit)) as file:
        file.write(b"begun")
    return attempt


def test_a_unit_without_a_written_sample_has_no_shard(storage):
    attempt = begun(storage, 3, "run-a", "rejects/000003.parquet")
    assert attempt.commit(planned=1, written=0, rejects={"text-empty": 1}, plan_digest="d")
    attempt.drop()
    assert [entry.path for entry in storage.list()] == ["commits/000003.json", "rejects/000003.parquet"]


def test_only_counts_that_close_and_the_units_own_names(tmp_path):
    attempt = Attempt(open_storage(tmp_path), 3, "run-a")
    with pytest.raises(ValueError, match="planned isn't written plus rejects"):
        attempt.commit(planned=3, written=1, rejects={"text-empty": 1}, plan_digest="d")
    for name in ("shards/000004.tar", "dataset.json", "../x", "commits/000003.json"):
        with pytest.raises(ValueError, match="a file of unit 3"):
            attempt.new_file(name).__enter__()
    with pytest.raises(ValueError, match="isn't a run id"):
        Attempt(open_storage(tmp_path), 3, "Run/A")


def test_a_dropped_attempt_leaves_nothing(storage):
    attempt = begun(storage, 3, "run-a")
    attempt.drop()
    attempt.drop()
    assert list(storage.list()) == []


def test_a_swept_attempt_without_a_record_says_so(storage):
    attempt = begun(storage, 3, "run-a")
    sweep(storage, "run-a")
    with pytest.raises(NotFoundError, match=r"deleted while it was at work.* run the build again"):
        attempt.commit(planned=1, written=1, rejects={}, plan_digest="d")
    assert committed_units(storage) == set()
    attempt.drop()


@pytest.mark.parametrize("storage", ["s3"], indirect=True)
def test_a_lost_reply_to_the_record(storage, proxy):
    proxy.faults.append(Fault(conditional_put, "swallow", 1))
    assert build(storage, 3, "run-a", "a")
    assert problems(storage, 3, {"a"}, ended=True) == []
    assert proxy.faults[0].times == 0


@pytest.mark.parametrize("storage", ["s3"], indirect=True)
def test_files_outlive_a_store_that_fails_at_the_record(storage, proxy, monkeypatch):
    """The record arrived, no reply came, and the store is down: what the record names must not be dropped."""
    monkeypatch.setattr("patchmint.storage.patience.PATIENCE", 0.3)
    broken = []

    def from_the_lost_reply_on(method, path, headers):
        broken.append(conditional_put(method, path, headers))
        return any(broken)

    down = Fault(from_the_lost_reply_on, "refuse", 10**6)
    proxy.faults += [Fault(conditional_put, "swallow", 1), down]
    attempt = begun(storage, 3, "run-a")
    with pytest.raises(StorageError):
        attempt.commit(planned=1, written=1, rejects={}, plan_digest="d")
    with pytest.raises(StorageError):
        attempt.drop()
    down.times = 0
    attempt.drop()
    publish(storage, read_record(storage, 3))
    assert storage.read("shards/000003.tar") == b"begun"


@pytest.mark.parametrize("winner", ["a", "b"])
def test_a_record_is_read_back_where_creating_it_fails(tmp_path, monkeypatch, winner):
    create = LocalStorage.create

    def failing(self, path, data):
        with monkeypatch.context() as patch:
            patch.setattr(LocalStorage, "create", create)
            if winner == "a":
                self.create(path, data)
            else:
                build(self, 3, "run-b", "b")
        raise StorageError("no reply")

    storage = open_storage(tmp_path)
    monkeypatch.setattr(LocalStorage, "create", failing)
    assert build(storage, 3, "run-a", "a") == (winner == "a")
    assert problems(storage, 3, {winner}, ended=True) == []


def test_files_outlive_a_record_that_may_still_arrive(tmp_path, monkeypatch):
    late = []

    def delayed(self, path, data):
        late.append((path, data))
        raise StorageError("no reply")

    storage = open_storage(tmp_path)
    attempt = begun(storage, 3, "run-a")
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "create", delayed)
        with pytest.raises(StorageError, match="no reply"):
            attempt.commit(planned=1, written=1, rejects={}, plan_digest="d")
    attempt.drop()
    storage.write(*late[0])
    publish(storage, read_record(storage, 3))
    assert storage.read("shards/000003.tar") == b"begun"


def unpublished(storage, unit, run, monkeypatch):
    """Commit a unit, but stop before publishing."""

    def stop(storage, record):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("patchmint.shards.commit.publish", stop)
        with pytest.raises(KeyboardInterrupt):
            build(storage, unit, run, "a")
    return read_record(storage, unit)


def test_publishing_again_changes_nothing(storage, monkeypatch):
    record = unpublished(storage, 3, "run-a", monkeypatch)
    assert not storage.exists("shards/000003.tar")
    for _ in range(2):
        publish(storage, record)
        assert problems(storage, 3, {"a"}, ended=True) == []
    sweep(storage, None)
    publish(storage, record)
    assert problems(storage, 3, {"a"}, ended=True) == []


def test_publishing_finds_lost_and_foreign_files(storage):
    build(storage, 3, "run-a", "a")
    record = read_record(storage, 3)
    storage.write("sidecars/000003.parquet", b"of another size")
    with pytest.raises(ShardError, match=r"has 15 bytes instead of .*delete commits/000003.json and build again"):
        publish(storage, record)
    storage.delete(["sidecars/000003.parquet"])
    with pytest.raises(ShardError, match="isn't there"):
        publish(storage, record)
    # What the message says works, also where the new attempt has fewer files.
    storage.delete([record_path(3)])
    attempt = begun(storage, 3, "run-b", "rejects/000003.parquet")
    assert attempt.commit(planned=1, written=0, rejects={"text-empty": 1}, plan_digest="d")
    assert [entry.path for entry in storage.list()] == ["commits/000003.json", "rejects/000003.parquet"]
    assert storage.read("rejects/000003.parquet") == b"begun"


def attempts(storage):
    return {entry.path.split("/")[1] for entry in storage.list("attempts")}


def test_sweeping_every_run(storage, monkeypatch):
    loser = begun(storage, 1, "run-a")
    build(storage, 1, "run-b", "b")
    record = unpublished(storage, 2, "run-a", monkeypatch)
    live = begun(storage, 3, "run-a")
    storage.write("attempts/a-note/of-a-person", b"?")
    sweep(storage, None)
    assert attempts(storage) == {live.id, "a-note"}
    assert problems(storage, 1, {"b"}, ended=False) == []
    assert sha256(storage.read("shards/000002.tar")).hexdigest() == record.files["shards/000002.tar"].sha256
    assert not loser.commit(planned=1, written=1, rejects={}, plan_digest="d")
    assert live.commit(planned=1, written=1, rejects={}, plan_digest="d")


def test_sweeping_one_run(storage, monkeypatch):
    record = unpublished(storage, 1, "run-a", monkeypatch)
    loser = begun(storage, 1, "run-b")
    begun(storage, 2, "run-a")
    other = begun(storage, 2, "run-b")
    prefixed = begun(storage, 2, "run-a-1")
    sweep(storage, "run-a")
    assert attempts(storage) == {other.id, prefixed.id, loser.id}
    assert sha256(storage.read("shards/000001.tar")).hexdigest() == record.files["shards/000001.tar"].sha256


def test_a_loser_whose_files_were_swept_has_lost(tmp_path):
    storage = open_storage(tmp_path)
    attempt = Attempt(storage, 3, "run-a")
    writing = attempt.new_file("shards/000003.tar")
    file = writing.__enter__()
    file.write(b"1")
    build(storage, 3, "run-b", "b")
    sweep(storage, None)
    with pytest.raises(NotFoundError):
        writing.__exit__(None, None, None)
    attempt.drop()
    late = begun(storage, 3, "run-a")
    sweep(storage, None)
    assert not late.commit(planned=1, written=1, rejects={}, plan_digest="d")
    late.drop()
    assert problems(storage, 3, {"b"}, ended=True) == []


def a_record(unit=3):
    attempt = f"run-a-{unit:06d}-0123456789abcdef"
    file = FileRecord(path=f"attempts/{attempt}/shards-{unit:06d}.tar", size=1, sha256="0" * 64)
    return CommitRecord(
        unit=unit,
        attempt=attempt,
        plan_digest="d",
        planned=2,
        written=1,
        texts=1,
        label_share=None,
        rejects={"text-empty": 1},
        files={f"shards/{unit:06d}.tar": file},
        seconds=0.5,
        host="h",
    )


def test_a_record_comes_back_from_its_json(tmp_path):
    storage = open_storage(tmp_path)
    storage.write(record_path(3), a_record().to_json())
    assert read_record(storage, 3) == a_record()


def changed(**fields):
    return json.dumps(json.loads(a_record().to_json()) | fields).encode()


WHOLE = json.loads(a_record().to_json())
FILE = WHOLE["files"]["shards/000003.tar"]
DAMAGES = {
    "another unit": changed(unit=4),
    "another unit's": a_record(2).to_json(),
    "counts": changed(planned=3),
    "negative": changed(planned=0, written=-1),
    "no attempt": changed(attempt="x"),
    "another's attempt": changed(attempt="run-a-000004-0123456789abcdef"),
    "missing": json.dumps({name: value for name, value in WHOLE.items() if name != "plan_digest"}).encode(),
    "unknown": changed(more=1),
    "text for a number": changed(planned="2"),
    "outside": changed(files={"shards/000003.tar": FILE | {"path": "../../etc/passwd"}}),
    "foreign": changed(files={"shards/000003.tar": FILE, "dataset.json": FILE}),
    "sum": changed(files={"shards/000003.tar": FILE | {"sha256": "x"}}),
    "infinite": changed(seconds="inf"),
    **{f"cut: {data}": data for data in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"unit": 3')},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named(tmp_path, damage):
    storage = open_storage(tmp_path)
    storage.write(record_path(3), DAMAGES[damage])
    said = "it is unit 2's" if damage == "another unit's" else ""
    with pytest.raises(ShardError, match=rf"commits/000003.json of .* is damaged .*{said}.*delete it and build again"):
        read_record(storage, 3)


def test_committed_units_come_from_one_listing(tmp_path, monkeypatch):
    (tmp_path / "commits").mkdir()
    others = [f"commits/{name}" for name in ("notes.txt", "12.json", "0000003.json", "000003.json.bak", "00000a.json")]
    for name in (*map(record_path, (*range(1500), 1_234_567)), *others):
        (tmp_path / name).write_bytes(b"")
    listings = []
    listed = LocalStorage.list
    monkeypatch.setattr(
        LocalStorage, "list", lambda self, prefix="": (listings.append(prefix), listed(self, prefix))[1]
    )
    monkeypatch.setattr(LocalStorage, "read", None)
    assert committed_units(open_storage(tmp_path)) == {*range(1500), 1_234_567}
    assert listings == ["commits"]


def test_many_records_are_read_in_order(storage):
    units = [5, 3, 9, 1]
    for unit in units:
        storage.write(record_path(unit), a_record(unit).to_json())
    assert [record.unit for record in read_records(storage, units)] == units
    assert read_records(storage, []) == []
    with pytest.raises(NotFoundError):
        read_records(storage, [5, 7])


if __name__ == "__main__":
    name, where, kind, argument = sys.argv[1:]
    if name == "interrupted":
        print(interrupted(where, kind, getattr(signal, argument)))
    else:
        print(raced(where, int(argument)))
