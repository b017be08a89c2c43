"""Where a build's time goes: spans, totals, the timeline, and what `patchmint build --profile` says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from builds import STAND_IN, make_config, make_input

from patchmint.annotate.models import AnnotationModels
from patchmint.compute import spans
from patchmint.compute.spans import DEVICE, MODELS, Event, Record, Total, span, start_recording, stop_recording
from patchmint.config import AnnotatorConfig
from patchmint.jobs.profile_table import profile_lines
from patchmint.pipeline.driver import profile as profiles
from patchmint.pipeline.driver.profile import Profile
from patchmint.pipeline.orders import UnitResult, WorkerProfile
from patchmint.types import Text


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when a test says so; recording ends with the test."""
    now = [100.0]
    monkeypatch.setattr(spans.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(spans.time, "time", lambda: now[0] + 1_000_000)
    yield now
    stop_recording()


# ------------------------------------------------------------------------------------------------- spans


def test_nobody_listens_and_nothing_is_made():
    stop_recording()
    assert span("a") is span("b", torch.device("cpu"))
    with span("a"), span("b"):
        pass


def test_spans_add_up_by_path(clock):
    recorder = start_recording()
    for _ in range(2):
        with span("annotate"):
            clock[0] += 1
            with span("mask", torch.device("cpu")), span("encode"):
                clock[0] += 2
            with span("tokens"):
                clock[0] += 0.5
    record = recorder.drain()
    assert record.totals == {
        (MODELS, "annotate"): Total(7.0, 2),
        (MODELS, "annotate/mask"): Total(4.0, 2),
        (MODELS, "annotate/mask/encode"): Total(4.0, 2),
        (MODELS, "annotate/tokens"): Total(1.0, 2),
    }
    assert record.wall == 7.0
    assert record.events[0] == Event("annotate/mask/encode", MODELS, 1_000_101.0, 2.0)
    clock[0] += 3
    assert recorder.drain() == Record(3.0)


def test_a_span_that_fails_is_counted_and_its_name_ends_with_it(clock):
    recorder = start_recording()
    with pytest.raises(KeyError), span("annotate"), span("detect"):
        raise KeyError
    with span("commit"):
        pass
    assert {path for _, path in recorder.drain().totals} == {"annotate", "annotate/detect", "commit"}


def test_threads_have_rows_and_pools_have_totals(clock):
    recorder = start_recording()
    meet = threading.Barrier(2)

    def decode(_):
        with span("decode"):
            meet.wait(20)

    with span("wait"), ThreadPoolExecutor(2, thread_name_prefix="decode") as pool:
        list(pool.map(decode, range(2)))
    record = recorder.drain()
    assert record.totals["decode", "decode"].calls == 2
    assert {event.row for event in record.events} == {"decode_0", "decode_1", MODELS}
    assert (MODELS, "wait/decode") not in record.totals


def test_events_are_bounded_and_totals_are_not(clock):
    recorder = start_recording(most_events=3)
    for _ in range(5):
        with span("wait"):
            pass
    first = recorder.drain()
    assert (len(first.events), first.dropped, first.totals[MODELS, "wait"].calls) == (3, 2, 5)
    with span("wait"):
        pass
    again = recorder.drain()
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
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", synchronized.append)
    recorder = start_recording("cuda:1")
    gpu = torch.device("cuda:1")
    clock[0] += 1
    monkeypatch.setattr(FakeEvent, "behind", 5.0)
    monkeypatch.setattr(FakeEvent, "passed_until", 108.0)
    with span("annotate"):
        with span("encode", gpu):
            clock[0] += 1  # begins at 101 + 5 on the GPU, ends at 107
        with span("decode", gpu):
            clock[0] += 4  # ends at 111: not yet
    record = recorder.drain()
    assert record.totals == {(MODELS, "annotate"): Total(5.0, 1), (DEVICE, "annotate/encode"): Total(1.0, 1)}
    assert next(event for event in record.events if event.row == DEVICE).start == 1_000_106.0
    monkeypatch.setattr(FakeEvent, "passed_until", 1000.0)
    assert recorder.drain().totals == {(DEVICE, "annotate/decode"): Total(4.0, 1)}
    assert len(synchronized) == 1


def test_the_models_tell_their_parts():
    config = AnnotatorConfig.parse({"models": "untrained-tiny", "labels": {"box_threshold": 0.0}})
    models, image = AnnotationModels.load(config, "cpu"), np.zeros((60, 90, 3), np.uint8)
    ready = models.prepare(image)
    recorder = start_recording()
    models.ask([image], [[Text("a cat")]], [ready])
    paths = {path for _, path in recorder.drain().totals}
    models.ask([image], [[Text("a cat")]])
    unprepared = {path for _, path in recorder.drain().totals}
    stop_recording()
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


# ------------------------------------------------------------------------------------------------- a run


def result(pid, seconds, events=(), wall=10.0, samples=5):
    totals = {key: Total(value, 1) for key, value in seconds.items()}
    record = Record(wall, totals, [Event(path, row, start, 1.0) for path, row, start in events])
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
    monkeypatch.setattr(profiles, "_MOST_EVENTS", 3)
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


# ------------------------------------------------------------------------------------------------- as a command


def patchmint(*arguments):
    env = os.environ | {"PYTHONPATH": str(STAND_IN)}
    command = [sys.executable, "-m", "patchmint", *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_build_profile_says_where_the_time_went(tmp_path):
    source, out = make_input(tmp_path / "in", [f"thing {place}" for place in range(12)]), tmp_path / "out"
    config = make_config(tmp_path / "config.yaml", source, out)
    report = json.loads(patchmint("build", config, "--profile", "--json", "--runner.workers", "2"))
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
    assert json.loads(patchmint("status", out, "--json"))["state"] == "finished"
    # nothing was left to do: there is nothing to show, and no second timeline
    assert "timeline" not in patchmint("build", config, "--profile")
    assert len(list((out / "runs").glob("*-trace.json"))) == 1


def test_a_build_without_it_keeps_no_time(tmp_path):
    source, out = make_input(tmp_path / "in", ["a thing"] * 3), tmp_path / "out"
    report = json.loads(patchmint("build", make_config(tmp_path / "config.yaml", source, out), "--json"))
    assert report["profile"] is None
    assert not list((out / "runs").glob("*-trace.json"))
