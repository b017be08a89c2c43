"""Whole builds for tests: as commands (mostly `warm`), and in this process, with models that cost nothing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import warm
from PIL import Image

STAND_IN = Path(__file__).parent / "stand_in"

_started = []


def make_input(folder, texts, damaged=()):
    """Small photographs, a text beside each; those at the places in `damaged` are cut off."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for place, text in enumerate(texts):
        path = folder / f"{place:03d}.jpg"
        Image.fromarray(rng.integers(0, 255, (40 + place % 9, 50, 3), dtype=np.uint8)).save(path, quality=80)
        if place in damaged:
            path.write_bytes(path.read_bytes()[:300])
        path.with_suffix(".txt").write_text(text)
    return folder


def make_config(path, source, out, /, samples_per_shard=5, **changes):
    """A config file; JSON is YAML."""
    config = {
        "source": {"kind": "folder", "uri": str(source)},
        "output": {"uri": str(out), "samples_per_shard": samples_per_shard},
        "models": {"segmenter": "stand-in", "tokenizer": "stand-in"},
        "runner": {"kind": "local", "num_cpus": 1, "device": "cpu", "batch_size": 2},
    } | changes
    path.write_text(json.dumps(config))
    return path


def benchmark_modules(*names):
    """Modules of benchmarks/, imported; upstream's imports warn."""
    folder = str(Path(__file__).resolve().parent.parent / "benchmarks")
    sys.path.insert(0, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [import_module(name) for name in names]
    finally:
        sys.path.remove(folder)


def patchmint(*arguments, rc=0, cold=False, **environment):
    """Run the command line as a user does, `cold` in a fresh interpreter; what it printed."""
    env = os.environ | {"PYTHONPATH": str(STAND_IN)} | environment
    command = [sys.executable, "-m", "patchmint", *map(str, arguments)]
    if cold:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    else:
        done = warm.run(command, env=env)
    assert done.returncode == rc, f"{done.returncode}: {done.stdout}\n{done.stderr}"
    return done


def asked(*arguments):
    """What a command answers with --json."""
    return json.loads(patchmint(*arguments).stdout)


def in_work(out):
    """How many samples are annotated in units that aren't finished, as `status` says; 0 where there is no build yet."""
    from patchmint.errors import PatchmintError
    from patchmint.jobs.status import status

    try:
        return status(str(out)).in_work
    except PatchmintError:
        return 0


def start(config, out, *options, cold=False, patience=20, **environment):
    """Start a build in a session of its own, so that all its processes can be found and signalled together.

    Unless it is `cold`, its lease beats ten times as often as a user's, and another's is dead after `patience` seconds.
    """
    command = [sys.executable, "-m", "patchmint", "build", str(config), "--output.uri", str(out), *options]
    ours = {"PYTHONPATH": str(STAND_IN), warm.LEASE: f"0.5 {patience}"}
    return watched(command, os.environ | ours | environment, cold=cold)


def start_faulty(config, out, step, **environment):
    """Start a build in whose worker something happens once at a step, after which a file OUT.hit is there."""
    fault = {"STAND_IN_FAULT": "faults", "STAND_IN_STEP": step, "STAND_IN_ONCE": str(out.with_suffix(".hit"))}
    return start(config, out, **fault, **environment)


def watched(command, environment, *, cold=False):
    """Start a process in a session of its own that `end_all` ends with everything it has started."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if cold:
        process = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
    else:
        process = warm.Python(command, env=environment, start_new_session=True, **pipes)
    _started.append(process)
    return process


def ended(build, rc):
    """Wait for a build to end with this code; what it said on stderr."""
    said, complaints = build.communicate(timeout=240)
    assert build.returncode == rc, f"{build.returncode} instead of {rc}: {said}\n{complaints}"
    return complaints


def run(config, out, *options, rc=0, **environment):
    """A build from start to end; `cold` and `patience` as for `start`."""
    return ended(start(config, out, *options, **environment), rc)


def end_all():
    """Leave nothing running after a test, whatever it has found."""
    while _started:
        build = _started.pop()
        slay(build)
        build.communicate()


def slay(build):
    """End every process of a build at once."""
    if members(build):
        os.killpg(build.pid, signal.SIGKILL)


def members(build):
    """The living processes of a build: driver and workers. State by pid."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == build.pid and fields[0] not in "ZX":
            found[int(stat.parent.name)] = fields[0]
    return found


def wait_until(condition, seconds=60):
    """Wait for something to become true; False if it doesn't in this time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_mid_shard(out):
    """Whether a worker has begun a shard that isn't committed."""
    return any((out / "attempts").glob("*/*.tar"))


def digests(out):
    """SHA-256 of every file that may not vary from run to run, and that a record, or the driver, answers for."""
    paths = [path for room in ("shards", "sidecars", "rejects", "plan") for path in out.glob(f"{room}/[!.]*")]
    paths += [*out.glob("plan*.parquet"), *out.glob("[!l]*.json")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def committed(out):
    """The parsed commit records by unit."""
    return {int(path.stem): json.loads(path.read_bytes()) for path in out.glob("commits/*.json")}


def leftovers(out):
    """What a finished build may not leave: attempts, temporary files, a lease, files without a purpose."""
    rooms = {"shards", "sidecars", "rejects", "plan", "commits", "runs"}
    wanted = {"plan.parquet", "shards.json", "dataset.json", "README.md", *rooms}
    found = {path.relative_to(out) for path in out.rglob("*")}
    return sorted(
        str(path) for path in found if path.parts[0] not in wanted or path.name.startswith(".") or len(path.parts) > 2
    )


def check_half_done(out, expected):
    """At any moment: what is published is committed and has its final bytes."""
    there = digests(out)
    assert there.items() <= expected.items(), there
    units = {int(Path(path).stem) for path in there if path.startswith(("shards/", "sidecars/", "rejects/"))}
    assert units <= committed(out).keys(), f"published without a record: {units}"


def check_files(out, expected):
    """In the end: these files with these bytes, a record a unit, nothing else."""
    assert digests(out) == expected
    assert leftovers(out) == [], leftovers(out)
    records = committed(out)
    assert sorted(records) == list(range(len(records)))
    for record in records.values():
        assert record["planned"] == record["written"] + sum(record["rejects"].values())
        for path, file in record["files"].items():
            assert file["sha256"] == expected[path], path
    named = {path for record in records.values() for path in record["files"]}
    assert named == {path for path in expected if path.startswith(("shards/", "sidecars/", "rejects/"))}


def check_finished(out, expected, planned, rejects):
    """`check_files`, and what status and verify say."""
    from patchmint.jobs.status import status
    from patchmint.shards.verify import verify
    from patchmint.storage import open_storage

    check_files(out, expected)
    _check_status(asdict(status(str(out))), planned, rejects)
    assert list(verify(open_storage(out))) == []


def check_with_commands(out, planned, rejects):
    """What `patchmint status` and `patchmint inspect verify` say of a finished build."""
    _check_status(asked("status", out, "--json"), planned, rejects)
    assert asked("inspect", "verify", out, "--json")["findings"] == []


def _check_status(status, planned, rejects):
    assert status["state"] == "finished"
    assert status["rejects"] == rejects
    assert (status["planned"], status["left"], status["driver"]) == (planned, 0, {})
    assert status["planned"] == status["written"] + status["rejected"]


class SameProcess:
    """A pool of one worker, which is the driver's own process: who kills one kills both.

    Attributes:
        tell: takes what the worker says of itself.
    """

    tell = None

    def __init__(self, settings):
        self._settings = settings
        self._worker = None
        self._events = []

    def start(self, workers):
        from patchmint.pipeline.pools.serve import ServedWorker

        self._worker = ServedWorker(0, self.tell)
        self._events.append(self._worker.load(self._settings, "cpu", 1))

    def submit(self, worker, order):
        self._events.append(self._worker.do(order))

    def wait(self, seconds):
        if not self._events:
            time.sleep(seconds)
        events, self._events = self._events, []
        return events

    def stop(self, *_):
        """There is nothing to end."""

    observe = retire = interrupt = stop


def build_here(config, out, changes=None, pool=SameProcess):
    """Build with driver and worker in this process, with other settings than the config's here and there."""
    from patchmint.config.build import BuildConfig
    from patchmint.pipeline.driver.build import build
    from patchmint.pipeline.driver.contracts import Reporter

    given = BuildConfig.load(config, {"output.uri": str(out)} | (changes or {}))
    return build(given, pool, min_workers=1, max_workers=1, reporter=Reporter())


@contextmanager
def small_disk(folder):
    """A file system of 1 MiB at a folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def warmed():
    """Import what builds find through entry points: that is half of a build's time."""
    with pytest.MonkeyPatch.context() as patches:
        patches.syspath_prepend(STAND_IN)
        import stand_in_models  # noqa: F401

        yield


def fork(work):
    """Do it in a child, which ends with 0, or with 1 after an exception. Returns its pid."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def exit_code(pid):
    """Wait for a forked child; minus the signal's number if one has ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
