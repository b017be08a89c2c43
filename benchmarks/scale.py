"""What the bookkeeping of big builds costs, and whether it grows faster than the builds do.

    python benchmarks/scale.py               # about fifteen minutes on 2 cores, 3 GB in TMPDIR
    python benchmarks/scale.py --units 10000 --json

- `start_end_100k_s`: `patchmint build` of an output in which every unit is done: plan, records, checks, manifest.
- `status_100k_s`: `patchmint status` of it; `status_unfinished_100k_s`: while dataset.json isn't there yet.
- `driver_ms_per_unit`: CPU time of the driver's loop (supervisor, run record, log lines) for a finished unit. 256
  workers that live in memory say 100 times how far they are before a unit is done; the driver hears them one by one.
- `plan_samples_per_s`, `plan_mb`: planning 100 samples for each of these units (`plan_memory.py`), its peak memory.
- `growth`: each figure through the same at a tenth of the size. 10 is linear; rates, memory and `driver_ms_per_unit`,
  being a figure for one unit, should stay near 1.

The output is made of two real units, copied: only the plan and the commit records are each unit's own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
from PIL import Image

from patchmint.config.build import BuildConfig
from patchmint.config.parsing import parse_settings
from patchmint.jobs.progress import display
from patchmint.pipeline.driver.runs import RunLog
from patchmint.pipeline.driver.supervise import Supervisor
from patchmint.pipeline.orders import Done, Event, Order, Ready, UnitResult, WorkerInfo, Working
from patchmint.pipeline.plan import make_plan, record_models, to_batches
from patchmint.samples import ImageRef, SourceSample, SourceText
from patchmint.shards.commit import read_record
from patchmint.shards.paths import COMMITS, PUBLISHED, canonical_paths, record_path
from patchmint.shards.plan import Unit
from patchmint.shards.records import attempt_path
from patchmint.storage import open_storage

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = ROOT / "tests" / "stand_in"
SAMPLES = 2
REJECTS_EVERY = 10
"""One unit of so many has a reject."""
LINKS = 10_000
"""Most hard links to one file: file systems have limits."""
WORKERS = 256
PLANNED = 100
"""Samples to plan for each unit of the rest: 10 million in the end."""
NEWS = 100
"""A worker says how far it is once a second: a unit takes it 100 s."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sys.path.insert(0, str(STAND_IN))
    small, big = measure(arguments.units // 10), measure(arguments.units)
    found = {"units": arguments.units, **big, "tenth": small, "growth": {name: big[name] / small[name] for name in big}}
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'':26} {arguments.units // 10:>10} {arguments.units:>10}     growth")
    for name, value in big.items():
        print(f"{name:26} {small[name]:10.2f} {value:10.2f} {found['growth'][name]:10.1f}")


def measure(units: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        config = make_output(Path(folder), units)
        out = Path(folder, "out")
        figures = {
            "start_end_100k_s": timed("build", str(config), "--output.uri", str(out)),
            "status_100k_s": timed("status", str(out), "--json"),
        }
        (out / "dataset.json").unlink()
        figures["status_unfinished_100k_s"] = timed("status", str(out), "--json")
        planned = subprocess.run(
            [sys.executable, ROOT / "benchmarks" / "plan_memory.py", "--only", str(PLANNED * units)],
            check=True,
            stdout=subprocess.PIPE,
        )
        plan = json.loads(planned.stdout)
        figures["plan_samples_per_s"] = plan["samples"] / plan["seconds"]
        figures["plan_mb"] = plan["peak_mb"]
        figures["driver_ms_per_unit"] = drive(Path(folder, "driven"), max(units // 20, 2 * WORKERS))
    print(f"{units} units: {figures}", file=sys.stderr)
    return figures


def timed(*command: str) -> float:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{STAND_IN}"}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "patchmint", *command], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def make_output(folder: Path, units: int) -> Path:
    """A build whose units are all committed; the path of its config."""
    source = folder / "in"
    source.mkdir()
    for place in range(2 * SAMPLES):
        path = source / f"{place}.jpg"
        Image.fromarray(np.full((40, 50, 3), 50 * place, np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"thing number {place}")
    path.write_bytes(path.read_bytes()[:300])
    settings = {
        "source": {"kind": "folder", "uri": str(source)},
        "output": {"uri": str(folder / "pattern"), "samples_per_shard": SAMPLES},
        "models": {"segmenter": "stand-in", "tokenizer": "stand-in"},
        "runner": {"kind": "local", "num_cpus": 1, "device": "cpu", "batch_size": 2},
    }
    config = folder / "config.json"
    config.write_text(json.dumps(settings))
    timed("build", str(config))
    pattern, storage = open_storage(folder / "pattern"), open_storage(folder / "out")
    parsed = parse_settings(BuildConfig, settings)
    plan = make_plan(to_batches(samples(units * SAMPLES)), parsed, record_models(parsed), storage)
    digest, whole, rough = plan.digest, read_record(pattern, 0), read_record(pattern, 1)
    for room in (COMMITS, *PUBLISHED):
        (folder / "out" / room).mkdir()
    copies: dict[str, Path] = {}
    for unit in range(units):
        like = rough if unit % REJECTS_EVERY == REJECTS_EVERY - 1 else whole
        attempt = f"run-{unit:06d}-{0:016x}"
        files = {}
        for old, new in zip(canonical_paths(like.unit), canonical_paths(unit), strict=True):
            if (file := like.files.get(old)) is None:
                continue
            if unit % LINKS < REJECTS_EVERY:
                copies[old] = folder / "out" / new
                copies[old].write_bytes(pattern.read(old))
            else:
                (folder / "out" / new).hardlink_to(copies[old])
            files[new] = file.model_copy(update={"path": attempt_path(attempt, new)})
        record = like.model_copy(update={"unit": unit, "attempt": attempt, "plan_digest": digest, "files": files})
        (folder / "out" / record_path(unit)).write_bytes(record.to_json())
    return config


def samples(count: int):
    for place in range(count):
        yield SourceSample(f"{place:09d}", (ImageRef(f"{place:09d}.jpg"),), (SourceText(f"thing number {place}"),))


class Pool:
    """Workers in memory. Each says `NEWS` times how far it is, then that its unit is done; one event at a time."""

    def __init__(self) -> None:
        self._coming: deque[deque[Event]] = deque()  # each worker's, in turns

    def start(self, workers: int) -> None:
        """All are ready."""
        self._coming.extend(deque([Ready(worker, WorkerInfo("here", "cpu"))]) for worker in range(workers))

    def submit(self, worker: int, order: Order) -> None:
        """What the worker will say of it."""
        unit, rejects = order.unit, {"image-damaged": 1}
        events: deque[Event] = deque(
            Working(worker, unit.id, 10 * (place + 1), 0, rejects, "annotate/detect", (place,)) for place in range(NEWS)
        )
        seconds = {"annotate": 1.0, "wait": 1.0}
        events.append(Done(worker, UnitResult(unit.id, unit.samples, unit.samples - 1, rejects, 1, 0, seconds)))
        self._coming.append(events)

    def wait(self, seconds: float) -> list[Event]:  # noqa: ARG002
        """The next event: workers take turns."""
        events = self._coming.popleft()
        event = events.popleft()
        if events:
            self._coming.append(events)
        return [event]

    def observe(self, progress, result) -> None:
        """Nothing."""

    def retire(self, worker: int) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


def drive(folder: Path, units: int) -> float:
    """CPU milliseconds for each unit."""
    log = RunLog(open_storage(folder), "run")
    log.building()
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere), display() as reporter:

        def report(progress, result) -> None:
            log.update(progress, result)
            reporter.progress(progress, result)

        supervisor = Supervisor(
            Pool(),
            [Unit(unit, 1000, 1000 * unit, "plan/part.parquet", 0) for unit in range(units)],
            min_workers=1,
            max_workers=WORKERS,
            max_reject_share=0.5,
            rejected_before=0,
            samples_before=0,
            report=report,
            warn=reporter.warn,
            should_stop=lambda: "",
        )
        start = time.process_time()
        supervisor.run()
        return 1000 * (time.process_time() - start) / units


if __name__ == "__main__":
    main()
