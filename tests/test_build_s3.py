"""Whole builds to a real S3-protocol server: the same bytes as to a folder, through faults, and with two drivers."""

import hashlib
import os
import re
import signal
import time
from dataclasses import dataclass
from urllib.parse import unquote

import builds
import pytest
from flaky_proxy import KINDS, Fault, Kind, conditional_put, flaky_proxy, is_copy, of_method

from patchmint.pipeline.orders import Working
from patchmint.pipeline.pools import serve
from patchmint.shards.paths import PUBLISHED
from patchmint.storage import open_storage, patience

TEXTS = [f"thing number {number}" for number in range(23)]
DAMAGED = (4, 11)
REJECTS = {"image-damaged": 2}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A config, and the digests of a build into a folder that nothing disturbed."""
    folder = tmp_path_factory.mktemp("local")
    source = builds.make_input(folder / "in", TEXTS, DAMAGED)
    config = builds.make_config(folder / "config.json", source, folder / "out")
    builds.run(config, folder / "out")
    return config, builds.digests(folder / "out")


@pytest.fixture
def store(server, monkeypatch):
    """An empty bucket, and the environment that leads to it."""
    return server.new_bucket(monkeypatch)


def digests(uri):
    """As `builds.digests`, of a bucket."""
    storage = open_storage(uri)
    chosen = ("shards", "sidecars/", "rejects/", "plan", "dataset.json")
    paths = [entry.path for entry in storage.list() if entry.path.startswith(chosen)]
    return {path: hashlib.sha256(storage.read(path)).hexdigest() for path in paths}


def check(uri, expected):
    """The same bytes as in the folder, one record a unit, nothing left over; `verify` and `status` agree."""
    assert digests(uri) == expected
    storage = open_storage(uri)
    rest = {entry.path.split("/")[0] for entry in storage.list()}
    own = {"plan.parquet", "shards.json", "dataset.json", "README.md"}
    assert rest == {"shards", "sidecars", "rejects", "plan", "commits", "runs", *own}
    assert [entry.path for entry in storage.list("commits/")] == [f"commits/{unit:06d}.json" for unit in range(5)]
    assert builds.asked("inspect", "verify", uri, "--json")["findings"] == []
    status = builds.asked("status", uri, "--json")
    assert (status["planned"], status["written"], status["rejects"], status["left"]) == (23, 21, REJECTS, 0)


def is_first_look(method, path, headers):
    return method == "HEAD" and path.endswith("/plan.parquet")


def is_record(method, path, headers):
    return conditional_put(method, path, headers) and "/commits/" in path


def test_a_build_to_a_store_has_the_bytes_of_one_to_a_folder(local, store):
    config, expected = local
    builds.run(config, store)
    check(store, expected)
    before = digests(store)
    builds.run(config, store)
    assert digests(store) == before


def test_cut_connections_refusals_and_lost_replies_change_nothing(local, store, server, monkeypatch):
    config, expected = local
    with flaky_proxy(server.port) as proxy:
        proxy.faults = [
            Fault(is_record, "swallow", times=3),
            Fault(conditional_put, "refuse", times=2),
            Fault(is_copy, "refuse", times=2),
            Fault(is_copy, "swallow", times=1),
            Fault(of_method("PUT"), "cut", times=2),
            Fault(of_method("GET"), "cut", times=3),
            Fault(of_method("GET"), "refuse", times=3),
            Fault(of_method("HEAD"), "refuse", times=2),
        ]
        builds.run(config, store, AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}")
        assert [fault.times for fault in proxy.faults] == [0] * 8
    check(store, expected)


def test_statuses_that_pass_at_every_kind_of_request_make_no_unit_done_twice(local, store, server):
    config, expected = local
    kinds = [kind for name, kind in KINDS.items() if "part" not in name]  # the shards are too small for these
    kinds += [lambda method, path, _: method == "PUT" and path.endswith("/plan.parquet")]
    with flaky_proxy(server.port) as proxy:
        # of the worker that sets itself up: a refusal that isn't waited for, as trouble that lasts too long
        proxy.faults = [Fault(is_first_look, "refuse", 1, 400)]
        proxy.faults += [Fault(is_record, "refuse", 1, status) for status in (429, 408, 409, 425)]
        proxy.faults += [Fault(kind, "refuse", 1, 429) for kind in kinds]
        complaints = builds.run(config, store, AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}")
        assert {fault.times for fault in proxy.faults} == {0}
        attempts = {match[1] for _, path in proxy.seen if (match := re.search(r"/attempts/([^/%?]+)", path))}
    assert len(attempts) == 5
    assert "tried again" not in complaints
    assert complaints.count("a worker failed to start, and is replaced in 2 s: can't look for s3://") == 1
    check(store, expected)


@pytest.fixture
def through(server, proxy, monkeypatch):
    """An empty bucket that builds in this process reach through the proxy, and what brings them past it."""
    monkeypatch.syspath_prepend(builds.STAND_IN)
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)
    uri = server.new_bucket(monkeypatch, proxy.port)
    return uri, lambda: monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)


def of_room(name, room):
    return lambda method, path, headers: KINDS[name](method, path, headers) and room in unquote(path)


def attempts_at(proxy):
    """Of those that wrote something."""
    paths = [path for method, path in proxy.seen if method == "PUT"]
    return {match[1] for path in paths if (match := re.search(r"/attempts/([^/%?]+)", path))}


WALK = {
    "create": ["/.patchmint-tmp", "/plan.parquet", "/commits/", "/lease.json"],
    "put": ["/plan/", "/attempts/", "/runs/", "/shards.json", "/dataset.json"],
    "head": ["/plan.parquet", "/plan/", "/attempts/", "/shards/", "/rejects/"],
    "get": ["/.patchmint-tmp", "/plan.", "/plan.retry", "/plan/", "/commits/", "/shards/", "/saved/", "/lease.json"],
    "list": [f"prefix=out/{room}" for room in ("", "attempts", "commits", "saved", "plan", "rejects", *PUBLISHED[:2])],
    "copy": ["/shards/", "/sidecars/", "/rejects/"],
    "delete": ["?delete"],
}
"""Kinds of requests, and in which rooms of a build they come."""


def test_statuses_that_pass_at_each_kind_of_request_in_each_room_change_nothing(local, through, proxy):
    config, expected = local
    uri, past_the_proxy = through
    proxy.faults = [
        Fault(of_room(name, room), "refuse", 1, status)
        for name, rooms in WALK.items()
        for room in rooms
        for status in (429, 408, 409, 425)
    ]
    builds.build_here(config, uri)
    assert {fault.times for fault in proxy.faults} == {0}
    assert len(attempts_at(proxy)) == 5, "a unit was done twice"
    past_the_proxy()
    check(uri, expected)


@dataclass
class Outage:
    """Nothing is answered well for some seconds from the first request on that begins it."""

    begins: Kind
    seconds: float
    until: float = 0.0

    def __call__(self, method, path, headers):
        if not self.until and self.begins(method, path, headers):
            self.until = time.monotonic() + self.seconds
        return time.monotonic() < self.until


def test_outages_are_sat_out_for_as_long_as_the_setting_says(local, through, proxy, monkeypatch):
    config, expected = local
    uri, past_the_proxy = through
    monkeypatch.setattr(patience, "PATIENCE", 0.1)
    begins = [
        lambda method, path, headers: method == "PUT" and "000001.tar" in path,
        lambda method, path, headers: is_record(method, path, headers) and "000002" in path,
        lambda method, path, headers: is_copy(method, path, headers) and "000003" in path,
        lambda method, path, headers: method == "PUT" and "dataset.json" in path,
    ]
    proxy.faults = [Fault(Outage(begin, 1.0), "refuse", 10**6) for begin in begins]
    monkeypatch.setattr(serve, "_BEAT_SECONDS", 0.1)
    said = []
    pool = type("Pool", (builds.SameProcess,), {"tell": staticmethod(said.append)})
    builds.build_here(config, uri, {"limits.outage_seconds": 20}, pool)
    assert all(10**6 - fault.times > 3 for fault in proxy.faults)
    assert len(attempts_at(proxy)) == 5, "a unit was done twice"
    waits = [event for event in said if isinstance(event, Working) and event.waits_for]
    assert {(event.unit, event.samples) for event in waits} >= {(1, 5), (2, 5), (3, 5)}
    wait = re.compile(r"s3://\S+/commits/000002.json can't be used \(503\) for \d+ s")
    assert any(wait.fullmatch(event.waits_for) for event in waits if event.unit == 2)
    past_the_proxy()
    check(uri, expected)


def test_a_missing_bucket_ends_a_build_with_2(local, store):
    config, _ = local
    missing = store.replace("bucket", "no-such-bucket")
    assert f"can't write {missing}" in (said := builds.run(config, missing, rc=2))
    assert "the bucket doesn't exist; make it, or correct its name" in said
    assert "the bucket doesn't exist" in builds.run(config, store, "--source.uri", f"{missing}/in", rc=2)


@pytest.mark.kill
def test_a_killed_build_to_a_store_goes_on(local, store, tmp_path):
    config, expected = local
    build = builds.start(config, store, STAND_IN_SLEEP="0.3", TMPDIR=str(tmp_path))
    storage = open_storage(store)
    try:
        assert builds.wait_until(lambda: storage.exists("commits/000001.json"))
    finally:
        builds.slay(build)
        build.communicate()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    builds.run(config, store)
    check(store, expected)


@pytest.mark.kill
def test_a_stopped_build_to_a_store_saves_what_it_has_annotated(local, store):
    config, expected = local
    build = builds.start(config, store, "--runner.batch-size=1", STAND_IN_SLEEP="3")
    assert builds.wait_until(lambda: builds.in_work(store))
    build.send_signal(signal.SIGTERM)
    said = builds.ended(build, 128 + signal.SIGTERM)
    assert "annotated samples are saved for it" in said
    assert any(entry.path.startswith("saved/") for entry in open_storage(store).list())
    builds.run(config, store)
    check(store, expected)


@pytest.mark.kill
def test_a_driver_stopped_between_record_and_publishing_finds_its_work_done(local, store, server):
    config, expected = local
    storage = open_storage(store)
    with flaky_proxy(server.port) as proxy:
        # the first copy is forwarded but never answered: the record is there, and what it names not yet published
        proxy.faults = [Fault(is_copy, "hold", times=1)]
        first = builds.start(config, store, AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}")
        try:
            assert builds.wait_until(lambda: proxy.faults[0].times == 0)
            os.killpg(first.pid, signal.SIGSTOP)
            assert storage.exists("commits/000000.json")
            assert not storage.exists("shards/000000.tar")
            complaints = builds.run(config, store, patience=3)
            assert "taking over" in complaints
            check(store, expected)
            os.killpg(first.pid, signal.SIGCONT)
            assert "taken over" in builds.ended(first, rc=1)
        finally:
            builds.slay(first)
    check(store, expected)


def test_the_second_of_two_drivers_is_turned_away(local, store):
    config, expected = local
    first = builds.start(config, store, STAND_IN_SLEEP="0.4")
    storage = open_storage(store)
    try:
        assert builds.wait_until(lambda: storage.exists("lease.json"))
        complaints = builds.run(config, store, rc=1)
        assert f"pid {first.pid}" in complaints
        assert "patchmint status" in complaints
        builds.ended(first, rc=0)
    finally:
        builds.slay(first)
    check(store, expected)
