"""The lease: who waits, who is turned away, who takes over; with real processes."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from patchmint.errors import BusyError, StorageError
from patchmint.shards.lease import INTERVAL, LEASE, PATIENCE, Lease, read_lease, silence
from patchmint.storage import open_storage
from patchmint.storage.local import LocalStorage

# What would wait for ever ends here.
pytestmark = pytest.mark.timeout(60)

_HOLD = """
import sys, time
from patchmint.shards.lease import Lease
from patchmint.storage import open_storage
lease = Lease.acquire(open_storage(sys.argv[1]), "run-held", interval=0.05, patience=0.5)
print("held", flush=True)
while not lease.lost.wait(0.05):
    pass
print("lost", flush=True)
lease.release()
"""


@pytest.fixture
def hold():
    """Starts a driver of its own process that holds the lease until it loses it."""
    started = []

    def start(storage):
        process = subprocess.Popen([sys.executable, "-c", _HOLD, storage.uri], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.send_signal(signal.SIGCONT)
        process.communicate()


@pytest.fixture
def folder(tmp_path):
    return open_storage(tmp_path)


def acquire(storage, run, warnings=None, patience=1.0):
    warn = ([] if warnings is None else warnings).append
    return Lease.acquire(storage, run, patience=patience, interval=0.05, warn=warn)


def taken_over(storage, patience):
    """Take the lease over and give it back; the warnings."""
    warnings = []
    acquire(storage, "run-b", warnings, patience).release()
    return warnings


def write(storage, holder, **changes):
    storage.write(LEASE, holder.model_copy(update=changes).model_dump_json().encode())


def test_it_is_taken_shown_and_given_back(storage):
    assert read_lease(storage) is None
    warnings = []
    lease = acquire(storage, "run-a", warnings)
    shown = read_lease(storage)
    assert (shown.run, shown.pid) == ("run-a", os.getpid())
    lease.release()
    assert not lease.lost.is_set()
    assert list(storage.list()) == []
    assert warnings == []
    lease.release()


def test_it_beats(storage):
    lease = acquire(storage, "run-a")
    beats = set()
    while len(beats) < 3:
        shown = read_lease(storage)
        beats.add(shown.beat)
        assert shown.model_copy(update={"beat": 0, "at": lease.record.at}) == lease.record
        assert silence(storage, shown, look=500).seconds < PATIENCE
    lease.release()


def test_a_second_driver_is_turned_away(storage, hold):
    held = hold(storage)
    warnings = []
    # A patience that would outlast this test: what turns it away is the beat.
    with pytest.raises(BusyError) as caught:
        acquire(storage, "run-b", warnings, patience=500)
    assert f"pid {held.pid} on {os.uname().nodename} (run run-held)" in str(caught.value)
    assert f"patchmint status {storage.uri}" in str(caught.value)
    assert "watching for up to 500 s" in warnings[0]
    assert read_lease(storage).run == "run-held"


def test_a_dead_drivers_lease_is_taken_at_once(storage, hold):
    held = hold(storage)
    # Not waited for: its parent hasn't noticed its end yet.
    held.kill()
    os.waitid(os.P_PID, held.pid, os.WEXITED | os.WNOWAIT)
    assert read_lease(storage) is None
    (warning,) = taken_over(storage, patience=0.5)
    assert warning.startswith(f"the driver with pid {held.pid} on {os.uname().nodename} (")
    assert warning.endswith(f"is dead; taking over {storage.uri}")


def test_a_stopped_driver_loses_it_and_notices(storage, hold):
    held = hold(storage)
    held.send_signal(signal.SIGSTOP)
    warnings = []
    lease = acquire(storage, "run-b", warnings)
    assert len(warnings) == 2
    held.send_signal(signal.SIGCONT)
    assert held.stdout.readline() == "lost\n"
    held.wait(20)
    assert read_lease(storage).run == "run-b", "the loser mustn't delete it"
    lease.release()
    assert not lease.lost.is_set()


def test_the_holder_notices_that_it_was_deleted(storage):
    lease = acquire(storage, "run-a")
    # A beat under way may write it once more.
    while not lease.lost.wait(0.05):
        storage.delete([LEASE])
    lease.release()


def elsewhere(storage, **changes):
    """A lease whose holder isn't on this machine, as far as can be told."""
    lease = acquire(storage, "run-a")
    lease.release()
    holder = lease.record.model_copy(update={"machine": "elsewhere", **changes})
    write(storage, holder)
    return holder


def test_a_holder_elsewhere_is_watched_by_its_beat_alone(folder):
    holder = elsewhere(folder, pid=2**22 + 1, beat=7)
    assert read_lease(folder) == holder, "a process id means nothing on another machine"
    assert len(taken_over(folder, patience=0.3)) == 2
    holder = elsewhere(folder, pid=os.getpid())
    done = threading.Event()

    def beat():
        count = 0
        while not done.wait(0.02):
            count += 1
            write(folder, holder, beat=count)

    with ThreadPoolExecutor() as threads:
        beating = threads.submit(beat)
        try:
            with pytest.raises(BusyError):
                acquire(folder, "run-c", patience=500)
        finally:
            done.set()
        beating.result()


@pytest.mark.parametrize("minutes", [-3, 3])
def test_a_holder_elsewhere_is_silent_if_no_beat_comes_whatever_its_clock_says(folder, minutes):
    holder = elsewhere(folder, at=datetime.now(UTC) + timedelta(minutes=minutes))
    found = silence(folder, holder, look=0.3)
    assert found.is_long
    assert found.seconds == pytest.approx(180 if minutes < 0 else 0.3, abs=20)
    with ThreadPoolExecutor() as threads:
        watching = threads.submit(silence, folder, holder, look=5)
        while not watching.done():
            holder = holder.model_copy(update={"beat": holder.beat + 1})
            write(folder, holder)
        assert not watching.result().is_long
    folder.delete([LEASE])
    assert not silence(folder, holder, look=20).is_long, "it was given back"


def test_a_process_id_that_was_given_again_is_not_the_holder(folder):
    lease = acquire(folder, "run-a")
    lease.release()
    write(folder, lease.record, started=lease.record.started - 1)
    assert len(taken_over(folder, patience=5)) == 1, "it was taken at once"
    write(folder, lease.record)
    assert read_lease(folder) == lease.record
    write(folder, lease.record, machine="")
    assert read_lease(folder) is not None, "a machine that tells nothing about itself is no machine"


def test_a_lease_given_back_while_watched_is_taken(folder):
    elsewhere(folder)
    watched = threading.Event()
    with ThreadPoolExecutor() as threads:
        taken = threads.submit(Lease.acquire, folder, "run-b", patience=5, warn=lambda _: watched.set())
        assert watched.wait(20)
        folder.delete([LEASE])
    assert taken.result().record.run == "run-b"
    taken.result().release()


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"run": 3}'])
def test_a_damaged_lease_is_taken_over_after_a_while(folder, data):
    folder.write(LEASE, data)
    assert read_lease(folder) is None
    warnings = taken_over(folder, patience=0.2)
    assert [line.partition(" has ")[0].partition(" is ")[0] for line in warnings] == ["another driver"] * 2


def test_a_rival_that_takes_over_a_moment_later_has_it(folder, monkeypatch):
    rival = elsewhere(folder).model_copy(update={"run": "run-rival", "token": "rival"})
    original = LocalStorage.write

    def write_then_rival(self, path, data):
        original(self, path, data)
        original(self, path, rival.model_dump_json().encode())

    monkeypatch.setattr(LocalStorage, "write", write_then_rival)
    with pytest.raises(BusyError, match="run-rival"):
        acquire(folder, "run-b", patience=0.2)
    assert read_lease(folder) == rival


def test_of_several_that_take_over_one_stays(folder):
    elsewhere(folder)
    held, turned_away, barrier = [], [], threading.Barrier(4)

    def take(number):
        barrier.wait(20)
        try:
            held.append(Lease.acquire(folder, f"run-{number}", patience=0.5, interval=2))
        except BusyError as error:
            turned_away.append(error)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(take, range(4)))
    shown = read_lease(folder)
    assert len(held) + len(turned_away) == 4
    # Whoever believed for a moment to have it finds out at the next beat.
    for lease in held:
        assert lease.record.token == shown.token or lease.lost.wait(20)
    assert sum(not lease.lost.is_set() for lease in held) == 1
    for lease in held:
        lease.release()


def test_a_failing_storage_is_no_lost_lease(folder, monkeypatch):
    lease = acquire(folder, "run-a")
    failed = threading.Event()

    def fail(self, path):
        failed.set()
        raise StorageError("down")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "read", fail)
        assert failed.wait(20)
        failed.clear()
        assert failed.wait(20)
    before = read_lease(folder)
    while (now := read_lease(folder)) is None or now.beat == before.beat:
        pass
    assert not lease.lost.is_set()
    lease.release()


def test_the_usual_patience_outlasts_several_beats():
    assert PATIENCE >= 3 * INTERVAL
