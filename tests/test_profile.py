"""Where a build's time goes: stages, totals, the timeline, and what `patchmint build --profile` says."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builds import asked, make_config, make_input, patchmint

from patchmint.annotate.models import AnnotationModels
from patchmint.compute import stages
from patchmint.compute.stages import DEVICE, MODELS, TimedStage, Timing, Total, stage, start_timing
from patchmint.config import AnnotatorConfig
from patchmint.jobs.build import profile_lines
from patchmint.pipeline.driver import runs
from patchmint.pipeline.driver.runs import Profile
from patchmint.pipeline.orders import STAGES, UnitResult, WorkerProfile
from patchmint.types import Text


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when a test says so; recording ends with the test."""
    now = [100.0]
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(stages.time, "time", lambda: now[0] + 1_000_000)
    yield now
    stages._active = None


def test_nobody_listens_and_nothing_is_made(monkeypatch):
    monkeypatch.setattr(stages, "_active", None)
    assert stage("a") is stage("b", torch.device("cpu"))
    with stage("a"), stage("b"):
        pass


def test_stages_add_up_by_path(clock):
    stopwatch = start_timing()
    for _ in range(2):
        with stage("annotate"):
            clock[0] += 1
            with stage("mask", torch.device("cpu")), stage("encode"):
                clock[0] += 2
            with stage("tokens"):
                clock[0] += 0.5
    record = stopwatch.drain()
    assert record.totals == {
        (MODELS, "annotate"): Total(7.0, 2),
        (MODELS, "annotate/mask"): Total(4.0, 2),
        (MODELS, "annotate/mask/encode"): Total(4.0, 2),
        (MODELS, "annotate/tokens"): Total(1.0, 2),
    }
    assert record.wall == 7.0
    assert record.events[0] == TimedStage("annotate/mask/encode", MODELS, 1_000_101.0, 2.0)
    clock[0] += 3
    assert stopwatch.drain() == Timing(3.0)


def test_a_stage_that_fails_is_counted_and_its_name_ends_with_it(clock):
    stopwatch = start_timing()
    with pytest.raises(KeyError), stage("annotate"), stage("detect"):
        raise KeyError
    with stage("commit"):
        pass
    assert {path for _, path in stopwatch.drain().totals} == {"annotate", "annotate/detect", "commit"}


def test_threads_have_rows_and_pools_have_totals(clock):
    stopwatch = start_timing()
    meet = threading.Barrier(2)

    def decode(_):
        with stage("decode"):
            meet.wait(20)

    with stage("wait"), ThreadPoolExecutor(2, thread_name_prefix="decode") as pool:
        list(pool.map(decode, range(2)))
    record = stopwatch.drain()
    assert record.totals["decode", "decode"].calls == 2
    assert {event.row for event in record.events} == {"decode_0", "decode_1", MODELS}
    assert (MODELS, "wait/decode") not in record.totals


def test_only_the_stages_that_somebody_wants_are_recorded(clock):
    stopwatch = start_timing(most_events=0, only=("annotate", "encode"))
    with stage("annotate"), stage("mask"), stage("encode", torch.device("cuda:1")):
        clock[0] += 2
        assert stopwatch.doing == "annotate/mask/encode"
    assert stopwatch.doing == ""
    assert stopwatch.drain().totals == {(MODELS, "annotate"): Total(2.0, 1), (MODELS, "annotate/encode"): Total(2.0, 1)}


def test_events_are_bounded_and_totals_are_not(clock):
    stopwatch = start_timing(most_events=3)
    for _ in range(5):
        with stage("wait"):
            pass
    first = stopwatch.drain()
    assert (len(first.events), first.dropped, first.totals[MODELS, "wait"].calls) == (3, 2, 5)
    with stage("wait"):
        pass
    again = stopwatch.drain()
    assert (len(again.events), again.dropped) == (0, 1)


class FakeEvent:
    """A CUDA event on a GPU that is `behind` seconds late, and does work only when it is let."""

    passed_until = float("inf")
    behind = 0.0
    now: list[float]

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream):
        assert stream == "the stream of cuda:1"
        self.at = self.now[0] + FakeEvent.behind

    def query(self):
        return self.at <= FakeEvent.passed_until

    def elapsed_time(self, other):
        assert self.query(), "it was read before it had passed"
        assert other.query(), "it was read before it had passed"
        return 1000 * (other.at - self.at)


def test_a_gpu_is_timed_by_its_own_clock_and_never_waited_for(clock, monkeypatch):
    synchronized = []
    monkeypatch.setattr(FakeEvent, "now", clock, raising=False)
    driver = SimpleNamespace(
        Event=FakeEvent, current_stream=lambda device: f"the stream of {device}", synchronize=synchronized.append
    )
    monkeypatch.setattr(stages, "_DeviceClock", partial(stages._DeviceClock, cuda=driver))
    stopwatch = start_timing("cuda:1")
    gpu = torch.device("cuda:1")
    clock[0] += 1
    monkeypatch.setattr(FakeEvent, "behind", 5.0)
    monkeypatch.setattr(FakeEvent, "passed_until", 108.0)
    with stage("annotate"):
        with stage("encode", gpu):
            clock[0] += 1  # begins at 101 + 5 on the GPU, ends at 107
        with stage("decode", gpu):
            clock[0] += 4  # ends at 111: not yet
    record = stopwatch.drain()
    assert record.totals == {(MODELS, "annotate"): Total(5.0, 1), (DEVICE, "annotate/encode"): Total(1.0, 1)}
    assert next(event for event in record.events if event.row == DEVICE).start == 1_000_106.0
    monkeypatch.setattr(FakeEvent, "passed_until", 1000.0)
    assert stopwatch.drain().totals == {(DEVICE, "annotate/decode"): Total(4.0, 1)}
    assert len(synchronized) == 1


def test_the_models_tell_their_parts(clock):
    config = AnnotatorConfig.parse({"models": "untrained-tiny", "labels": {"box_threshold": 0.0}})
    models, image = AnnotationModels.load(config, "cpu"), np.zeros((60, 90, 3), np.uint8)
    ready = models.prepare(image)
    stopwatch = start_timing()
    models.ask([image], [[Text("a cat")]], [ready])
    paths = {path for _, path in stopwatch.drain().totals}
    models.ask([image], [[Text("a cat")]])
    unprepared = {path for _, path in stopwatch.drain().totals}
    assert paths == {
        "detect",
        "detect/backbone",
        "detect/text",
        "detect/transformer",
        "mask",
        "mask/encode",
        "mask/decode",
        "tokens",
    }
    assert unprepared - paths == {"prepare"}


def result(pid, seconds, events=(), wall=10.0, samples=5):
    totals = {key: Total(value, 1) for key, value in seconds.items()}
    record = Timing(wall, totals, [TimedStage(path, row, start, 1.0) for path, row, start in events])
    return UnitResult(0, samples, samples, {}, 1, profile=WorkerProfile("here", pid, "cpu", 1000 + pid, 0, record))


def test_the_workers_of_a_run_are_put_together():
    profile = Profile()
    profile.add(result(7, {(MODELS, "annotate"): 8.0, (MODELS, "wait"): 1.0, ("decode", "decode"): 20.0}))
    profile.add(result(8, {(MODELS, "annotate"): 9.0, (MODELS, "annotate/mask"): 6.0}))
    profile.add(result(7, {(MODELS, "annotate"): 10.0}, wall=20.0))
    profile.add(UnitResult(1, 5, 5, {}, 1))  # of a worker that wasn't asked
    told = profile.summary()
    assert (told["wall"], told["samples"], told["device_side"], told["wait"]) == (40.0, 15, 0.675, 0.025)
    assert [(worker["worker"], worker["wall"], worker["peak_bytes"]) for worker in told["workers"]] == [
        (0, 30.0, 1007),
        (1, 10.0, 1008),
    ]
    stages = {(stage["thread"], stage["stage"]): stage for stage in told["stages"]}
    assert stages[MODELS, "annotate"] == {
        "thread": MODELS,
        "stage": "annotate",
        "seconds": 27.0,
        "share": 0.675,
        "calls": 3,
        "ms_per_sample": 1800.0,
    }
    json.dumps(told)


def test_stages_stand_in_their_order_below_the_one_around_them():
    events = [
        ("decode", "decode_1", 0.1),
        ("wait", MODELS, 0.0),
        ("annotate/detect", MODELS, 1.0),
        ("annotate/mask/encode", MODELS, 2.1),
        ("annotate/mask", MODELS, 2.0),
        ("annotate", MODELS, 0.9),
        ("write", "write_0", 3.0),
        ("commit", MODELS, 4.0),
    ]
    profile = Profile()
    profile.add(result(1, {(row.partition("_")[0], path): 1.0 for path, row, _ in events}, events))
    assert [(stage["thread"], stage["stage"]) for stage in profile.summary()["stages"]] == [
        (MODELS, "wait"),
        (MODELS, "annotate"),
        (MODELS, "annotate/detect"),
        (MODELS, "annotate/mask"),
        (MODELS, "annotate/mask/encode"),
        (MODELS, "commit"),
        ("decode", "decode"),
        ("write", "write"),
    ]


def test_the_timeline_has_a_process_a_worker_and_a_thread_a_row(monkeypatch):
    monkeypatch.setattr(runs, "_MOST_EVENTS", 3)
    profile = Profile()
    profile.add(result(7, {}, [("annotate/mask", MODELS, 12.5), ("decode", "decode_0", 12.0)]))
    profile.add(result(8, {}, [("wait", MODELS, 13.0), ("wait", MODELS, 14.0)]))
    trace = json.loads(profile.trace())
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [(event["name"], event["pid"], event["ts"], event["dur"]) for event in spans] == [
        ("mask", 0, 0.5e6, 1e6),
        ("decode", 0, 0.0, 1e6),
        ("wait", 1, 1e6, 1e6),
    ]
    assert len({(event["pid"], event["tid"]) for event in spans}) == 3
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert [names[event["pid"], event["tid"]] for event in spans] == [MODELS, "decode_0", MODELS]
    assert trace["otherData"]["events_left_out"] == 1
    assert trace["otherData"]["events"] == 3


def test_the_table_tells_stages_shares_and_memory():
    profile = Profile()
    profile.add(result(7, {(MODELS, "annotate"): 8.0, (MODELS, "annotate/tokens"): 2.0, ("decode", "decode"): 20.0}))
    text = "\n".join(profile_lines(profile.summary() | {"trace": "out/runs/x-trace.json"}))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert rows["annotate"] == ["8.00", "80.0%", "1", "1600.00"]
    assert rows["tokens"] == ["2.00", "20.0%", "1", "400.00"]
    assert rows["(between)"] == ["2.00", "20.0%", "400.00"], "a stage within another was counted twice"
    assert rows["decode"] == ["20.00", "200.0%", "1", "4000.00"]
    assert "device side 80.0% and wait 0.0% of 10.0 s wall (1 worker, 5 samples)" in text
    assert "out/runs/x-trace.json" in text


def test_build_profile_says_where_the_time_went(tmp_path):
    source, out = make_input(tmp_path / "in", [f"thing {place}" for place in range(12)]), tmp_path / "out"
    config = make_config(tmp_path / "config.yaml", source, out)
    report = asked("build", config, "--profile", "--json", "--runner.workers", "2")
    told = report["profile"]
    stages = {(stage["thread"], stage["stage"]): stage for stage in told["stages"]}
    assert {
        (MODELS, "wait"),
        (MODELS, "annotate"),
        (MODELS, "annotate/tokens"),
        (MODELS, "hold"),
        (MODELS, "commit"),
        ("decode", "read"),
        ("decode", "decode"),
        ("write", "label"),
        ("write", "write"),
    } == stages.keys()
    assert stages["write", "write"]["calls"] == told["samples"] == 12
    # a unit that was begun ahead, and that the other worker then got, is decoded in vain
    assert stages["decode", "decode"]["calls"] >= 12
    outermost = sum(stages[key]["seconds"] for key in stages if key[0] == MODELS and "/" not in key[1])
    assert 0 < outermost <= told["wall"] + 0.01
    assert 0 < told["device_side"] < 1
    assert all(worker["peak_bytes"] > 10**7 for worker in told["workers"])
    trace, record = sorted((out / "runs").iterdir())
    assert told["trace"].endswith(trace.name)
    assert json.loads(record.read_text())["profile"] == told
    spans = [event for event in json.loads(trace.read_bytes())["traceEvents"] if event["ph"] == "X"]
    assert sum(event["name"] == "write" for event in spans) == 12
    assert asked("status", out, "--json")["state"] == "finished"
    # nothing was left to do: there is nothing to show, and no second timeline
    assert "timeline" not in patchmint("build", config, "--profile").stdout
    assert len(list((out / "runs").glob("*-trace.json"))) == 1


def test_a_build_without_it_keeps_no_timeline(tmp_path):
    source, out = make_input(tmp_path / "in", ["a thing"] * 3), tmp_path / "out"
    report = asked("build", make_config(tmp_path / "config.yaml", source, out), "--json")
    assert report["profile"] is None
    (record,) = (out / "runs").iterdir()
    seconds = json.loads(record.read_text())["progress"]["seconds"]
    assert seconds.keys() == set(STAGES)
    assert all(value > 0 for value in seconds.values())
    assert not list((out / "runs").glob("*-trace.json"))
