"""Uploads that were cut: what a killed process leaves hidden in a store, and `patchmint doctor --sweep`."""

import os
import signal
import subprocess
import sys

import builds
import pytest
from flaky_proxy import KINDS, Fault

from patchmint.errors import StorageError
from patchmint.jobs.sweep import find_leftovers
from patchmint.shards.lease import Lease
from patchmint.storage import open_storage
from patchmint.storage.uploads import Uploads

DEAD, ALIVE = "run-dead-000001-0123456789abcdef", "run-live-000002-0123456789abcdef"
PATHS = [f"attempts/{DEAD}/shards-000001.tar", f"attempts/{ALIVE}/shards-000002.tar", "plan.parquet", "mine/file"]

_UPLOAD = """
import sys
from contextlib import ExitStack
from patchmint.storage import open_storage
with ExitStack() as files:
    for path in sys.argv[2:]:
        files.enter_context(open_storage(sys.argv[1]).new_file(path)).write(bytes(9 << 20))
"""


@pytest.fixture
def cut(server, proxy, monkeypatch):
    """An output to which uploads were under way when their processes were killed."""
    uri = server.new_bucket(monkeypatch, proxy.port)
    proxy.faults = [Fault(KINDS["part"], "hold", 10**6)]
    command = [sys.executable, "-c", _UPLOAD, uri]
    started = [subprocess.Popen([*command, path]) for path in PATHS]
    try:
        assert builds.wait_until(lambda: len({path.split("?")[0] for _, path in proxy.seen if "part" in path}) == 4)
    finally:
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.wait()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    return uri


def test_what_killed_uploads_leave_is_listed_and_aborted_and_nothing_else(cut):
    storage = open_storage(cut)
    assert list(storage.list()) == []
    lease = Lease.acquire(storage, "run-live")
    found = find_leftovers(cut)
    assert ([upload.path for upload in found.uploads], found.live) == (PATHS[:1], 2)
    lease.release()
    said = builds.patchmint("doctor", "--sweep", "--out", cut, rc=1).stdout
    assert "3 unfinished uploads in s3://" in said
    assert "Abort them" in said, "nobody has answered, so nothing is done"
    found = builds.asked("doctor", "--sweep", "--out", cut, "--json", "--yes")
    assert ([upload["path"] for upload in found["uploads"]], found["aborted"]) == (PATHS[:3], True)
    assert [upload.path for upload in Uploads(storage).list([""])] == ["mine/file"]


def test_an_upload_that_fails_leaves_nothing(server, proxy, monkeypatch):
    uri = server.new_bucket(monkeypatch, proxy.port)
    proxy.faults = [Fault(lambda method, path, _: "partNumber=2" in path, "refuse", 10**6, 403, "AccessDenied")]

    def upload():
        with open_storage(uri).new_file("big") as file:
            file.write(os.urandom(20 << 20))

    with pytest.raises(StorageError, match="403"):
        upload()
    assert Uploads(open_storage(uri)).list([""]) == []


def test_where_uploads_cannot_be_listed_the_remedy_is_named(tmp_path, monkeypatch):
    with pytest.raises(StorageError, match="a folder has none"):
        Uploads(open_storage(tmp_path))
    with pytest.raises(StorageError, match="AbortIncompleteMultipartUpload"):
        Uploads(open_storage("gs://bucket/out"))
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StorageError, match=r"pip install 'patchmint\[s3\]'"):
        Uploads(open_storage("s3://bucket/out"))
    assert "--sweep needs to know where" in builds.patchmint("doctor", "--sweep", rc=2).stderr
