"""What stands in an output: counted alike by the driver and by `status`, in steps that grow with its units only."""

import sys
import threading
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from shard_data import commit_unit, make_dataset, make_reject, make_sample, write_plan

from patchmint.cli import status as shown
from patchmint.datasets.ledger import Ledger, Tally
from patchmint.jobs import status as job
from patchmint.pipeline.driver.contracts import Progress
from patchmint.pipeline.driver.runs import RunLog
from patchmint.shards.commit import read_record
from patchmint.shards.lease import LEASE, Lease, silence
from patchmint.shards.paths import record_path
from patchmint.shards.plan import load_plans
from patchmint.shards.records import CommitRecord
from patchmint.storage import open_storage


def counted(storage):
    """Tally, and the same from all records."""
    ledger, tally = Ledger.read(storage), Tally.read(storage)
    left = sum(unit.samples for unit in ledger.left)
    whole = (len(ledger.units), len(ledger.records), ledger.planned, ledger.written, left, dict(ledger.rejects()))
    return (tally.units, tally.units_done, tally.planned, tally.written, tally.left, dict(tally.rejects)), whole


def test_status_counts_as_the_driver_does(tmp_path):
    storage = open_storage(tmp_path)
    assert counted(storage)[0] == (0, 0, 0, 0, 0, {})
    write_plan(tmp_path, {0: 2, 1: 3, 2: 1, 3: 5})
    commit_unit(tmp_path, 0, [make_sample(0), make_sample(1)], [])
    commit_unit(tmp_path, 1, [make_sample(2)], [make_reject(3), make_reject(4)])
    commit_unit(tmp_path, 2, [], [make_reject(5)])
    tally, whole = counted(storage)
    assert tally == whole == (4, 3, 11, 3, 5, {"image-missing": 3})
    for path, file in read_record(storage, 1).files.items():  # as between commit and publishing
        storage.move(path, file.path)
    assert counted(storage) == (tally, whole)


def test_a_finished_build_is_counted_without_its_records(tmp_path, monkeypatch):
    make_dataset(tmp_path, [[make_sample(0)], [make_sample(1)]], {1: [make_reject(2)]})
    storage = open_storage(tmp_path)
    tally, whole = counted(storage)
    assert tally == whole == (2, 2, 3, 2, 0, {"image-missing": 1})
    with monkeypatch.context() as patch:
        patch.setattr(CommitRecord, "parse", lambda *_: pytest.fail("it reads a record"))
        assert counted_quickly(storage) == tally
    (tmp_path / record_path(1)).unlink()  # as messages advise, to have a unit done again
    tally, whole = counted(storage)
    assert tally == whole == (2, 1, 3, 1, 2, {})


def counted_quickly(storage):
    tally = Tally.read(storage)
    return tally.units, tally.units_done, tally.planned, tally.written, tally.left, dict(tally.rejects)


def steps(action):
    """Lines of Python that an action runs, in all threads; each turn of a loop counts."""
    count = 0

    def step(frame, event, argument):
        nonlocal count
        count += 1
        return step

    before = sys.gettrace()
    sys.settrace(step)
    threading.settrace(step)
    try:
        action()
    finally:
        sys.settrace(before)
        threading.settrace(None)
    return count


def use_ledger(storage):
    ledger = Ledger.read(storage)
    ledger.check()
    assert not ledger.left
    assert ledger.written == 0
    assert Tally.read(storage).units_done == len(ledger.units)


def test_ten_times_the_units_take_ten_times_the_steps(tmp_path):
    taken = {}
    for units in (60, 600):
        folder = tmp_path / str(units)
        write_plan(folder, dict.fromkeys(range(units), 1))
        storage = open_storage(folder)
        (plan,) = load_plans(storage)
        (folder / "commits").mkdir()
        for unit in range(units):
            record = CommitRecord(
                unit=unit,
                attempt=f"run-{unit:06d}-{0:016x}",
                plan_digest=plan.digest,
                planned=1,
                written=0,
                texts=0,
                label_share=None,
                rejects={"image-missing": 1},
                files={},
                seconds=0.0,
                host="here",
            )
            (folder / record_path(unit)).write_bytes(record.to_json())
        taken[units] = steps(partial(use_ledger, storage))
    assert taken[600] < 12 * taken[60]


@pytest.fixture
def elsewhere(tmp_path):
    """A build whose driver runs on another machine; call it with the age of its last beat, in seconds."""
    write_plan(tmp_path, {0: 100, 1: 100})
    storage = open_storage(tmp_path)
    log = RunLog(storage, "run-a")
    log.building()
    log.work_ended(Progress(units=2, planned=200, samples=40, workers=1))
    log.write()
    lease = Lease.acquire(storage, "run-a")
    lease.release()

    def beat(age):
        at = datetime.now(UTC) - timedelta(seconds=age)
        holder = lease.record.model_copy(update={"machine": "elsewhere", "at": at})
        storage.write(LEASE, holder.model_dump_json().encode())
        return tmp_path

    return beat


def test_a_driver_that_was_killed_elsewhere_is_not_at_work_for_ever(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(job, "silence", partial(silence, look=0.2))
    alive = job.status(str(elsewhere(2)))
    assert alive.state == "building"
    assert 2 <= alive.beat_age < 20
    assert alive.beat_age <= alive.result_age < 60
    assert alive.seconds_left >= 0
    out = str(elsewhere(180))
    gone = job.status(out)
    assert (gone.state, gone.rate, gone.seconds_left) == ("stopped?", 0, -1)
    assert gone.driver["run"] == "run-a"
    assert gone.beat_age == pytest.approx(180, abs=20)
    shown.status(out, watch=True)
    said = capsys.readouterr().out
    assert "stopped?" in said
    assert "last sign of life 3 min ago" in said
    assert "run the build's command again" in said
