"""Checkpoints in a store: one download for all processes of a machine, also where one is killed amid it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import builds
import pytest
import torch
from flaky_proxy import KINDS, Fault

from patchmint.errors import PlaceError, WeightsMissingError
from patchmint.pipeline.plan import models
from patchmint.storage import cache, open_storage
from patchmint.weights import fetch
from patchmint.weights.checksums import sha256_of
from patchmint.weights.loading import load_named
from patchmint.weights.store import locate

SIZE, CHUNK = 1 << 20, 1 << 15

_FETCH = f"""
import sys
from patchmint.weights import fetch
fetch._CHUNK = {CHUNK}
print(fetch.fetched(sys.argv[1]))
"""


@pytest.fixture
def stored(server, proxy, monkeypatch, tmp_path):
    """An object's URI, reached through the proxy, and its bytes."""
    monkeypatch.setenv("PATCHMINT_CACHE", str(tmp_path / "cache"))
    uri, data = server.new_bucket(monkeypatch, proxy.port), os.urandom(SIZE)
    open_storage(uri).write("model.pth", data)
    return f"{uri}/model.pth", data


@pytest.fixture
def ranges(proxy):
    """First bytes and lengths of what is read."""
    found = []

    def noted(method, path, headers):
        if KINDS["get"](method, path, headers) and (match := re.fullmatch(r"bytes=(\d+)-(\d+)", headers["Range"])):
            found.append((int(match[1]), int(match[2]) - int(match[1]) + 1))
        return False

    proxy.faults.append(Fault(noted, "pass"))
    return found


def start(uri):
    command = [sys.executable, "-c", _FETCH, uri]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_eight_processes_one_reads_the_store_once(stored, ranges, tmp_path):
    uri, data = stored
    paths = {process.communicate(timeout=120)[0] for process in [start(uri) for _ in range(8)]}
    (path,) = (Path(line.strip()) for line in paths)
    assert path.read_bytes() == data
    assert sorted(ranges) == [(begin, CHUNK) for begin in range(0, SIZE, CHUNK)]
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.pth", "model.pth.pulled.json"]


def test_where_the_one_that_fetches_is_killed_another_goes_on(stored, ranges, proxy):
    uri, data = stored
    late = Fault(lambda *request: KINDS["get"](*request) and len(ranges) > 12, "hold", 10**6)
    proxy.faults.append(late)
    first = start(uri)
    assert builds.wait_until(lambda: late.times < 10**6)
    others = [start(uri) for _ in range(2)]
    said = others[0].stderr.readline()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    late.times = 0
    (path,) = {process.communicate(timeout=120)[0] for process in others}
    assert said == "waiting for another process that is pulling model.pth\n"
    assert Path(path.strip()).read_bytes() == data
    again = len(ranges) - len(set(ranges))
    assert again <= 2 * fetch._THREADS, "what had come was fetched again"
    assert {begin for begin, _ in ranges} == set(range(0, SIZE, CHUNK))


def test_another_that_brings_nothing_is_not_waited_for_without_end(stored, tmp_path, monkeypatch):
    uri, _ = stored
    monkeypatch.setattr(cache, "_STILL_SECONDS", 0.3)
    kept = fetch.fetched(uri)
    kept.unlink()
    said = []
    with (
        cache.claimed(kept.with_name("model.pth.part"), said.append),
        pytest.raises(PlaceError, match=r"another process has had .*model.pth.part open for 0 s and brings nothing"),
    ):
        fetch.fetched(uri)
    assert fetch.fetched(uri) == kept


def test_an_object_that_changes_is_another_file(stored):
    uri, data = stored
    first = locate(uri)
    open_storage(uri.rpartition("/")[0]).write("model.pth", data[::-1])
    second = locate(uri)
    assert (first.read_bytes(), second.read_bytes()) == (data, data[::-1])


def test_a_model_is_loaded_from_a_store_and_hashed_once(stored, tmp_path, monkeypatch):
    uri, _ = stored
    path = tmp_path / "toy.pth"
    torch.save({"weight": torch.arange(5)}, path)
    open_storage(uri.rpartition("/")[0]).write("toy.pth", path.read_bytes())
    uri = uri.replace("model", "toy")
    assert load_named(uri).tensors["weight"].tolist() == [0, 1, 2, 3, 4]
    expected = sha256_of(path)
    monkeypatch.setattr(models, "sha256_of", None)
    record = models._file_record("masker", uri, locate(uri))
    assert (record.sha256, record.size) == (expected, path.stat().st_size)


def test_what_is_not_there_is_named(stored):
    uri = stored[0].replace("model", "none")
    with pytest.raises(WeightsMissingError, match=f"no weights at {uri}") as caught:
        locate(uri)
    assert caught.value.names == (uri,)
