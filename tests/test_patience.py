"""How long passing faults are waited out: on a mount, before a store has answered, and where a process is to end."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
from flaky_proxy import Fault

from patchmint.errors import StorageError
from patchmint.storage import open_storage, patience


@pytest.fixture
def stale(monkeypatch):
    """Makes the next links fail, with ESTALE unless it is told otherwise."""
    link, left = os.link, []

    def flaky(*args, **options):
        if left:
            number = left.pop()
            raise OSError(number, os.strerror(number))
        link(*args, **options)

    monkeypatch.setattr(os, "link", flaky)
    return lambda times, number=errno.ESTALE: left.extend([number] * times)


def test_a_mount_that_fails_for_a_moment_is_waited_for_if_asked(tmp_path, stale):
    stale(3)
    assert open_storage(tmp_path, outage_seconds=20).create("record", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["record"]
    stale(1)
    with pytest.raises(StorageError, match="Stale file handle"):
        open_storage(tmp_path).create("other", b"1")
    stale(1, errno.EIO)
    with pytest.raises(StorageError, match="Input/output error"):
        open_storage(tmp_path, outage_seconds=20).create("other", b"1")


def test_a_store_that_has_never_answered_is_not_waited_for_long(server, monkeypatch):
    uri = server.new_bucket(monkeypatch)
    monkeypatch.setattr(patience, "PATIENCE", 0.3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(StorageError, match="check the address"):
        open_storage(uri, outage_seconds=3600).read("x")
    assert time.monotonic() - began < 60


def test_what_is_waited_for_is_told_once_and_then_that_it_is_over(monkeypatch, caplog):
    monkeypatch.setattr(patience, "_SAID_AFTER", 0.1)
    seen = []

    def fail(until):
        seen.append(patience.trouble())
        if time.monotonic() < until:
            raise TimeoutError(errno.ETIMEDOUT, "timed out")
        return "done"

    mount = patience.Patience(20, has_answered=True)
    for _ in range(2):
        until = time.monotonic() + 0.5
        assert mount.repeated("the mount", lambda until=until: fail(until)) == "done"
    assert (seen[0], seen[1], patience.trouble()) == ("", "the mount can't be used (no answer) for 0 s", "")
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 4
    assert caplog.messages[0].startswith("the mount can't be used (no answer); trying again for ")
    assert caplog.messages[1] == "the mount can be used again"


def test_after_a_wait_in_vain_the_next_is_brief_until_there_is_an_answer(monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
    storage = patience.Patience(0.5, has_answered=True)

    def waited():
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            storage.repeated("the mount", _time_out)
        return time.monotonic() - began

    assert waited() > 0.5
    assert waited() < 0.3
    with pytest.raises(FileNotFoundError):
        storage.repeated("the mount", lambda: os.stat("/nowhere/at/all"))  # noqa: PTH116
    assert waited() > 0.5


def _time_out():
    raise TimeoutError(errno.ETIMEDOUT, "timed out")


_WAIT = """
import signal, sys
from patchmint.storage import open_storage, patience
signal.signal(signal.SIGTERM, lambda *_: patience.hurry())
patience.PATIENCE = 0.2
storage = open_storage(sys.argv[1], outage_seconds=3600)
storage.exists("x")
print("ready", flush=True)
sys.stdin.readline()
storage.exists("x")
"""


def test_a_process_that_is_to_end_waits_no_longer(server, proxy, monkeypatch):
    uri = server.new_bucket(monkeypatch, proxy.port)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", _WAIT, uri], text=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        fault = Fault(lambda *_: True, "refuse", 10**6)
        proxy.faults = [fault]
        process.stdin.write("\n")
        process.stdin.flush()
        while fault.times > 10**6 - 5:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert "StorageError: can't look for s3://" in process.communicate(timeout=60)[1]
