"""What people see of a build while it goes on: also within a unit, and from outside."""

import io
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import builds
import pytest

from patchmint import logs
from patchmint.cli.status import _shown
from patchmint.jobs import progress as shown
from patchmint.jobs.status import BuildStatus, status
from patchmint.pipeline.driver.contracts import Progress
from patchmint.pipeline.driver.runs import RunLog, read_run
from patchmint.pipeline.orders import UnitResult, Working
from patchmint.shards.lease import Lease
from patchmint.storage import open_storage


@pytest.fixture
def build(tmp_path):
    """A build of one unit at work, which takes seven seconds, and its output."""
    source = builds.make_input(tmp_path / "in", [f"thing number {place}" for place in range(12)], damaged=(2,))
    config = builds.make_config(tmp_path / "config.yaml", source, tmp_path / "out", 12)
    yield builds.start(config, tmp_path / "out", "--runner.batch-size=1", STAND_IN_SLEEP="0.6"), tmp_path / "out"
    builds.end_all()


def test_a_unit_is_seen_to_go_on_by_the_log_and_by_status(build):
    build, out = build
    assert builds.wait_until(lambda: builds.in_work(out))
    watched = builds.patchmint("status", out, "--watch", "--json").stdout.splitlines()
    said = builds.ended(build, 0)
    states = [json.loads(line) for line in watched]
    assert states[0]["units_done"] == 0
    assert 0 < states[0]["in_work"] < states[0]["left"] == 12
    assert states[0]["seconds_left"] >= 0
    assert [state["state"] for state in states[:-1]] == ["building"] * (len(states) - 1)
    assert (states[-1]["state"], states[-1]["in_work"], states[-1]["written"]) == ("finished", 0, 11)
    told = [int(number) for number in re.findall(r"^(\d+) of 12 samples, 0 of 1 units: ", said, re.MULTILINE)]
    assert len(told) >= 2
    assert told == sorted(told)
    assert 0 < told[-1] < 12


def test_lines_come_often_at_first_and_once_a_minute_in_the_end(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(shown, "time", SimpleNamespace(monotonic=lambda: now))
    lines = shown._Lines()
    progress = Progress(units=10, planned=10_000, workers_wanted=2)
    times, count = [], 0
    for step in range(20_000):
        now = step / 2
        progress.workers = 2 if now > 20 else 0
        progress.working = {0: Working(0, 0, int(max(0, now - 20)), 0, {}, "annotate")}
        lines.progress(progress, None)
        said = capsys.readouterr().err
        if said:
            times.append(now)
            count += 1
        if now == 15.5:
            assert said == ""
        elif said and now < 20:
            assert said == "loading models: 0 of 2 workers ready\n"
    assert times[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert times[-1] - times[-2] == 60
    assert count < 250


def test_rates_count_what_this_run_has_annotated_and_fall_when_nothing_comes(monkeypatch):
    now = 100.0
    monkeypatch.setattr(shown, "time", SimpleNamespace(monotonic=lambda: now))
    lines = shown._Lines()
    progress = Progress(units=2, planned=200, workers=1, workers_wanted=1)
    lines.progress(progress, None)
    assert lines.note(progress) == "first batch, 1 worker"
    progress.working = {0: Working(0, 0, samples=60, saved=40, rejects={"image-missing": 2}, doing="annotate/detect")}
    now = 110.0
    assert lines.note(progress) == "2.0 samples/s, 70 s left, 2 rejected, 1 worker (detect)"
    now = 200.0
    assert lines.note(progress) == "12 samples/min, 12 min left, 2 rejected, 1 worker (detect)"
    progress.workers_wanted = 3
    assert lines.note(progress).endswith(", 1 of 3 workers")
    progress.working = {}
    progress.add(UnitResult(0, 100, 98, {"image-missing": 2}, 1, saved=40))
    assert (progress.through, progress.annotated) == (100, 60)


def test_what_workers_wait_for_is_shown():
    progress = Progress(units=9, planned=900, workers=3, workers_wanted=3)
    progress.working = {worker: Working(worker, worker, 100, 0, {}, "commit") for worker in range(3)}
    assert shown._Lines().note(progress) == "first batch, 3 workers"
    for worker in (1, 2):
        progress.working[worker] = replace(progress.working[worker], waits_for="s3://x can't be used (503) for 40 s")
    assert shown._Lines().note(progress) == "first batch, 3 workers; 2 waiting: s3://x can't be used (503) for 40 s"


def test_status_says_how_many_workers_are_missing_and_where_there_is_trouble():
    names = ("units", "units_done", "planned", "written", "rejected", "left", "in_work", "beat_age", "result_age")
    counts = dict.fromkeys(names, 0)
    places = {"node7 cuda:3": {"deaths": 3, "hangs": 1, "aside": True}, "node8 cuda:0": {"deaths": 0, "aside": False}}
    run = {"progress": {"workers": 1, "workers_wanted": 8, "by_place": places}}
    found = BuildStatus("out", "building", **counts, rejects={}, absent={}, rate=0.0, seconds_left=-1.0, last_run=run)
    assert "workers" not in "".join(_shown("out", found).renderables)
    found = replace(found, driver={"run": "r", "host": "h", "pid": 1})
    shown = _shown("out", found).renderables
    assert "workers  1 of 8 that were asked for" in shown
    assert [line for line in shown if line.startswith("place")] == [
        "place    node7 cuda:3: 3 deaths (1 hung), put aside"
    ]


def test_planning_shows_its_rate_of_late(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(shown, "time", SimpleNamespace(monotonic=lambda: now))
    lines = shown._Lines()
    for now, samples in ((150.0, 1_000_000), (151.0, 1_000_100), (160.0, 1_000_600), (170.0, 1_000_600)):  # noqa: B007
        lines.planned(samples)
    assert capsys.readouterr().err.splitlines() == [
        "planning: 1000600 samples, 60.0 samples/s",
        "planning: 1000600 samples, 0 samples/min",
    ]


def test_status_says_how_far_planning_is(tmp_path):
    storage = open_storage(tmp_path)
    log = RunLog(storage, "run")
    log.write()
    log.planned(500)
    assert read_run(storage, "run")["read"] == 0
    log._written -= 10
    log.planned(700)
    lease = Lease.acquire(storage, "run")
    found = status(str(tmp_path))
    lease.release()
    assert found.state == "planning"
    assert "planning 700 samples of the source read so far" in _shown("out", found).renderables


def test_log_lines_are_shown_from_a_level_on_in_workers_too(tmp_path):
    source = builds.make_input(tmp_path / "in", ["a thing"])
    config = builds.make_config(tmp_path / "config.yaml", source, tmp_path / "out")

    def stderr(level, *options):
        return builds.patchmint(
            "--log-level", level, *options, "build", config, "--output.uri", tmp_path / level
        ).stderr

    said = {level: stderr(level) for level in ("warning", "debug")}
    order, worker = (
        "DEBUG patchmint.pipeline.driver.supervise: to worker 0: unit 000000",
        "INFO patchmint.pipeline.worker",
    )
    assert [order in said[level] for level in said] == [False, True]
    assert [worker in said[level] for level in said] == [False, True]
    assert "worker on cpu, precision auto, 1 threads, batches of 2" in said["debug"]

    lines = [json.loads(line) for line in stderr("info", "--log-format", "json").splitlines()]
    assert all({"time", "level", "event", "message", "pid"} <= line.keys() for line in lines)
    by_event = {line["event"]: line for line in lines}
    planned, unit, progress = (by_event[event] for event in ("planned", "unit", "progress"))
    assert (planned["samples"], planned["units"]) == (1, 1)
    assert (unit["unit"], unit["written"], unit["rejects"]) == ("000000", 1, {})
    assert (progress["samples"], progress["units_done"], progress["workers"]) == (1, 1, 1)
    assert len({line["run"] for line in (planned, unit, progress)}) == 1
    told = next(line for line in lines if line["message"].startswith("worker on cpu"))
    assert (told["level"], told["logger"]) == ("info", "patchmint.pipeline.worker.work")
    assert (told["run"], told["worker"], told["place"].split()[1]) == (unit["run"], 0, "cpu")
    assert told["pid"] != unit["pid"]


def test_a_stderr_of_objects_wraps_what_is_none(monkeypatch):
    stream = io.StringIO()
    wrapped = logs._ObjectPerLine(stream)
    print("half ", end="", file=wrapped)
    print("a line\n\n[1, 2]", file=wrapped)
    print('(Worker pid=12, ip=10.0.0.1) {"event": "log"}', file=wrapped)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line.get("message")) for line in lines] == [
        ("output", "half a line"),
        ("output", "[1, 2]"),
        ("log", None),
    ]
