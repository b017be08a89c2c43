"""Builds on a real Ray cluster: jobs, deaths of workers, of a node and of the whole cluster, nodes that come late."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
import warm
from builds import asked, check_files, digests, make_input
from ray_cluster import ROOT, declared_metrics, ray_cluster, wait_until
from source_files import put

pytestmark = pytest.mark.ray

BUILD = [sys.executable, "-m", "patchmint", "build"]

# In a worker or in any other process: where it runs, and what it would import.
WHERE = """
import os, patchmint
from importlib.util import find_spec
from pathlib import Path
told = [os.getcwd(), patchmint.__file__, find_spec("tokenizers").origin, os.environ["PATCHMINT_TEST_NODE"]]
Path(os.environ["TELL"], f"where-{os.getpid()}").write_text("\\n".join(told))
"""
# In a worker: which node did which unit.
WHO = """
import os
from pathlib import Path
from patchmint.pipeline.worker.work import Worker
Path(os.environ["TELL"], f"loading-{os.environ['PATCHMINT_TEST_NODE']}").touch()
real = Worker.do
def do(self, order):
    Path(os.environ["TELL"], f"did-{os.environ['PATCHMINT_TEST_NODE']}-{order.unit.id}").touch()
    return real(self, order)
Worker.do = do
"""
# A driver in whose run everything has happened.
EVERYTHING = """
import ray, time
from patchmint.pipeline.driver.contracts import PlaceTally, Progress
from patchmint.pipeline.orders import UnitResult
from patchmint.pipeline.pools.ray import _Metrics
ray.init(logging_level="ERROR")
metrics = _Metrics()
progress = Progress(2, 9, deaths=1, queue_wait=1.0, by_place={"node7 cuda:3": PlaceTally(2, 1, 1, 0)})
metrics.update(progress, UnitResult(0, 4, 3, {"text-empty": 1}, 10, seconds={"wait": 1.0}))
progress.by_place["node7 cuda:3"] = PlaceTally(6, 2, 3, 1, aside=True)
for _ in range(90):
    metrics.update(progress, None)
    time.sleep(1)
"""
# In the first worker: storage trouble while it sets itself up.
TROUBLE = """
import os
from patchmint.errors import StorageError
from patchmint.pipeline.worker import work
real = work.choose_batch_size
def choose(*args):
    try:
        os.close(os.open(os.path.join(os.environ["TELL"], "troubled"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return real(*args)
    raise StorageError("the store answers 503")
work.choose_batch_size = choose
"""
# In a worker on one node: whatever it is asked to do ends it, as a bad GPU may.
BAD_NODE = """
import os
from pathlib import Path
from patchmint.pipeline.worker.work import Worker
if os.environ["PATCHMINT_TEST_NODE"] == Path(os.environ["TELL"], "bad-node").read_text():
    Worker.do = lambda self, order: os._exit(1)
"""
# A driver whose threads for Ray's logs and errors ask a cluster that is gone with pauses. Ray's own take two cores.
PATIENT = """
import runpy, time
import ray._raylet
def patient(kind):
    class Patient(kind):
        def poll(self, timeout=None):
            news = super().poll(timeout)
            time.sleep(0.05)
            return news
    return Patient
for name in ("GcsLogSubscriber", "GcsErrorSubscriber"):
    setattr(ray._raylet, name, patient(getattr(ray._raylet, name)))
runpy.run_module("patchmint", run_name="__main__", alter_sys=True)
"""
# In a worker: a programming error.
BROKEN = """
from patchmint.pipeline.worker.work import Worker
def do(self, order):
    raise KeyError("no such thing")
Worker.do = do
"""


@pytest.fixture(scope="module")
def running():
    warm.start_server()
    with ray_cluster() as cluster:
        modules = cluster.folder / "modules"
        modules.mkdir()
        for name, code in (("where", WHERE), ("who", WHO), ("trouble", TROUBLE), ("bad", BAD_NODE), ("broken", BROKEN)):
            (modules / f"{name}.py").write_text(code)
        yield cluster


@pytest.fixture
def cluster(running):
    """Whole, whatever the test before has done to it."""
    running.start()
    yield running
    while Driver.started:  # those that a failed test has left running
        driver = Driver.started.pop()
        driver.kill()
        driver.wait()


@pytest.fixture(scope="module")
def source(running):
    """Small images; one is damaged."""
    return make_input(running.folder / "in", [f"picture {i}" for i in range(12)], damaged=[5])


@pytest.fixture(scope="module")
def reference(running, source):
    """What `local` makes of it with as many threads."""
    out = running.folder / "reference"
    options = ["--runner.kind=local", "--runner.num-cpus=1", "--runner.workers=1", "--runner.device=cpu"]
    done = warm.run([*BUILD, *settings(source, out), *options], env=running.env)
    assert done.returncode == 0, done.stderr
    return digests(out)


def run(command, env):
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)


def settings(source, out, per_unit=4):
    return [
        "--source.kind=folder",
        f"--source.uri={source}",
        f"--output.uri={out}",
        f"--output.samples-per-shard={per_unit}",
        "--models.segmenter=stand-in",
        "--models.tokenizer=stand-in",
        "--limits.max-reject-share=0.5",
    ]


def on_ray(*, max_actors=2, min_actors=1, num_cpus=1):
    return [
        "--runner.kind=ray",
        "--runner.num-gpus=0",
        f"--runner.num-cpus={num_cpus}",
        f"--runner.min-actors={min_actors}",
        f"--runner.max-actors={max_actors}",
        "--runner.batch-size=1",  # so that a shard grows image by image
    ]


def worker_env(cluster, *, sleep=0, module="", tell=None, package=ROOT):
    env = {"PYTHONPATH": f"{package}:{cluster.env['PYTHONPATH']}:{cluster.folder / 'modules'}"}
    return env | {"STAND_IN_SLEEP": str(sleep), "STAND_IN_FAULT": module, "TELL": str(tell or "")}


class Driver:
    """A driver as a job's is, with the job's settings in its environment.

    It is warm, unless something stands before it; its workers are, unless they have a patchmint of their own or `cold`.
    """

    started: ClassVar[list[subprocess.Popen[bytes] | warm.Python]] = []

    def __init__(self, cluster, out, options, **for_workers):
        driver_env, prefix = for_workers.pop("driver_env", {}), for_workers.pop("prefix", [])
        code = for_workers.pop("code", "")
        command = [sys.executable, "-c", code, "build"] if code else BUILD
        cold = for_workers.pop("cold", "package" in for_workers)
        python = {} if cold else {"py_executable": warm.EXECUTABLE}
        job = {"runtime_env": {"env_vars": worker_env(cluster, **for_workers)} | python}
        env = cluster.env | driver_env | {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
        cwd = cluster.folder if "package" in for_workers else ROOT  # Ray adds the driver's folder to the workers' paths
        self.out = out
        self._log = cluster.folder / f"{out.name}.log"
        start = subprocess.Popen if prefix else warm.Python
        with self._log.open("ab") as log:
            self.process = start([*prefix, *command, *options], cwd=cwd, env=env, stdout=log, stderr=log)
        self.started.append(self.process)

    @property
    def log(self):
        return self._log.read_text()

    def end(self, seconds=90):
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the driver didn't end; it said:\n{self.log}") from None

    def at_work(self, workers):
        """Whether so many workers write shards now."""
        assert self.process.poll() is None, self.log
        return len({file.parent for file in attempts(self.out)}) >= workers


def attempts(out):
    """Files of shards that are being written."""
    return list((out / "attempts").glob("*/*"))


def clean(out):
    return not (out / "lease.json").exists() and not attempts(out)


def driver_metrics(text, name):
    """A counter's values by the id of the driver."""
    found = re.findall(rf"^ray_patchmint_{name}{{.*WorkerId=\"(\w+)\".*}} (\S+)$", text, re.MULTILINE)
    return {driver: float(value) for driver, value in found}


def test_job_with_token(cluster, source, reference, tmp_path):
    out = cluster.folder / "job"
    build = ["python", "-m", "patchmint.jobs.build"]
    options = on_ray(max_actors=3)  # one more than there is room for
    relative = shlex.join([*build, *settings(source, "out"), *options])
    right = shlex.join([*build, *settings(source, out), *options])
    env_vars = worker_env(cluster, module="where", tell=tmp_path)
    env_vars["PYTHONPATH"] = f"tests/stand_in:{cluster.folder / 'modules'}"
    submit = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", cluster.dashboard]
    submit += ["--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": env_vars}), "--"]
    # as a zip with a folder around everything is unpacked
    topped = f"mkdir -p zip/top && cp -r patchmint zip/top && (cd zip && {right})"
    script = f"python -m where && {relative}; echo relative: $?; {topped}; echo topped: $?; {right}"
    without = {name: value for name, value in cluster.env.items() if not name.startswith("RAY_AUTH")}
    without |= {"HOME": str(tmp_path)}  # where Ray looks for a token

    everything = subprocess.Popen([sys.executable, "-c", EVERYTHING], cwd=ROOT, env=cluster.env)
    with ThreadPoolExecutor() as threads:
        job = threads.submit(run, [*submit, "sh", "-c", script], cluster.env)
        no_job = threads.submit(run, [*submit, "true"], without | {"RAY_ADDRESS": cluster.dashboard})
        no_driver = threads.submit(warm.run, [*BUILD, *settings(source, cluster.folder / "no"), *options], env=without)
        alone = {name: value for name, value in without.items() if name != "RAY_ADDRESS"}
        alone |= {"HOME": "/proc", "RAY_TMPDIR": str(tmp_path)}  # no cluster, and no home to write to
        no_home = threads.submit(warm.run, [*BUILD, *settings(source, cluster.folder / "alone"), *options], env=alone)
    log = job.result().stdout + job.result().stderr
    assert job.result().returncode == 0, log
    assert "relative: 2" in log
    assert "output.uri 'out' is relative" in log
    assert "topped: 2" in log
    assert "the job's working directory has patchmint in top/, where Python doesn't look" in log
    assert re.search(r"^plan \w+: 12 samples in 3 units$", log, re.MULTILINE)
    assert re.search(r"^12 of 12 samples, 3 of 3 units: .* 1 rejected, (\d of )?\d workers?$", log, re.MULTILINE)
    assert "12 planned = 11 written + 1 rejected (1 image-damaged), in 3 units" in log
    assert "Traceback" not in log
    check_files(out, reference)
    assert no_job.result().returncode != 0
    assert "Missing authentication token" in no_job.result().stderr
    assert no_driver.result().returncode == 1
    assert "error: can't reach the Ray cluster" in no_driver.result().stderr
    assert "patchmint doctor" in no_driver.result().stderr
    assert no_home.result().returncode == 1
    assert "none can be started here, because its token can't be kept" in no_home.result().stderr
    told = [file.read_text().splitlines() for file in tmp_path.glob("where-*")]
    assert len(told) >= 2  # beside the driver, and in a worker
    for folder, patchmint, tokenizers, _ in told:
        assert "working_dir_files" in folder
        assert Path(patchmint).is_relative_to(folder)
        assert not Path(tokenizers).is_relative_to(folder)
        assert not Path(tokenizers).is_relative_to(ROOT / "patchmint")
        assert "site-packages" in tokenizers
    # Ray itself loses a fresh actor now and then, on a busy machine: then the log says so as well
    names = declared_metrics()
    wait_until(
        lambda: names.keys() <= set(re.findall(r"^ray_patchmint_\w+", cluster.metrics(), re.M)), 20, "all metrics"
    )
    values = {"samples_total": 6, "units_total": 2, "deaths_total": 3, "hangs_total": 1, "aside": 1}

    def at_place():
        told = re.findall(r'^ray_patchmint_place_(\w+){.*place="node7 cuda:3".*} (\S+)$', cluster.metrics(), re.M)
        return {name: float(value) for name, value in told} == values

    wait_until(at_place, 20, f"a place tells of {values}")
    everything.kill()
    everything.wait()
    check_counters(cluster, out, deaths=len(re.findall(r"^an? (?:idle )?worker (?:died|on )", log, re.MULTILINE)))
    wait_until(lambda: not cluster.actors(), 20, "the actors are gone")


def check_counters(cluster, out, deaths):
    def mine():
        text = cluster.metrics()
        drivers = driver_metrics(text, "samples_written_total")
        return next((driver for driver, value in drivers.items() if value == 11), "")

    driver = wait_until(mine, 30, "a metrics port tells of 11 samples")
    text = cluster.metrics()
    size = sum(file.stat().st_size for file in out.rglob("*.tar"))
    assert driver_metrics(text, "units_total")[driver] == 3
    assert driver_metrics(text, "samples_rejected_total")[driver] == 1
    assert 'reason="image-damaged"' in text
    assert driver_metrics(text, "bytes_written_total")[driver] == pytest.approx(size, rel=1e-5)
    assert driver_metrics(text, "workers")[driver] == 0
    assert driver_metrics(text, "stage_seconds_total")[driver] > 0
    assert driver_metrics(text, "worker_deaths_total").get(driver, 0) == deaths


def test_workers_that_fail_to_start_or_are_killed_are_replaced(cluster, source, reference, tmp_path):
    out = cluster.folder / "killed"
    options = [*settings(source, out), *on_ray(min_actors=2)]
    driver = Driver(cluster, out, options, sleep=1, module="trouble", tell=tmp_path)
    wait_until(lambda: driver.at_work(2), 60, "two workers write shards")
    os.kill(next(actor["pid"] for actor in cluster.actors() if actor["state"] == "ALIVE"), signal.SIGKILL)
    assert driver.end() == 0, driver.log
    assert re.search(
        r"^a worker died at unit \d+ on \S+ cpu, .* pid: \d+, ip: .*its worker process has died", driver.log, re.M
    )
    assert re.search(r"a worker failed to start, and is replaced in 2 s: on \S+: the store answers 503", driver.log)
    assert "its node went away" not in driver.log
    assert "\x1b" not in driver.log
    check_files(out, reference)


def test_job_stop_then_sigkill_then_the_rest(cluster, source, reference):
    out = cluster.folder / "stopped"
    options = [*settings(source, out), *on_ray()]
    job = {"entrypoint": shlex.join([*BUILD, *options]), "runtime_env": {"env_vars": worker_env(cluster, sleep=1)}}
    _, answer = cluster.get("/api/jobs/", body=job, method="POST")
    path = f"/api/jobs/{answer['submission_id']}"
    wait_until(lambda: attempts(out), 60, "a worker writes a shard")
    assert cluster.get(f"{path}/stop", method="POST")[0] == 200
    wait_until(lambda: cluster.get(path)[1]["status"] == "STOPPED", 30, "the job has stopped")
    log = cluster.get(f"{path}/logs")[1]["logs"]
    assert "stopping: workers have 20 s to save what they have annotated" in log
    assert "annotated samples are saved for it" in log
    assert list((out / "saved").iterdir())
    assert clean(out)
    assert not (out / "dataset.json").exists()
    wait_until(lambda: not cluster.actors(), 20, "the actors are gone")

    driver = Driver(cluster, out, options, sleep=1)
    wait_until(lambda: driver.at_work(1), 60, "a worker writes a shard")
    driver.process.kill()
    driver.process.wait()
    wait_until(lambda: not cluster.actors(), 30, "the actors ended with their driver")

    driver = Driver(cluster, out, options)
    assert driver.end() == 0, driver.log
    assert "is dead; taking over" in driver.log
    check_files(out, reference)


def test_programming_error_stops_a_build_and_so_does_another_patchmint(cluster, source, tmp_path):
    out, mixed, none = (cluster.folder / name for name in ("broken", "mixed", "none"))
    put(tmp_path / "none", {"patchmint/__init__.py": "import nothing_like_it"})
    nowhere = Driver(cluster, none, [*settings(source, none), *on_ray(max_actors=1)], package=tmp_path / "none")
    shutil.copytree(ROOT / "patchmint", tmp_path / "patchmint", ignore=shutil.ignore_patterns("bundled"))
    with (tmp_path / "patchmint/errors.py").open("a") as file:
        file.write("# changed\n")
    other = Driver(cluster, mixed, [*settings(source, mixed), *on_ray(max_actors=1)], package=tmp_path)
    driver = Driver(cluster, out, [*settings(source, out), *on_ray(max_actors=1)], module="broken")
    assert driver.end() == 1, driver.log
    assert re.search(r"^error: on \S+: Traceback \(most recent call last\):", driver.log, re.M)
    assert "KeyError: 'no such thing'" in driver.log
    assert clean(out)
    assert other.end() == 1, other.log
    words = (
        rf"error: on \S+: patchmint \S+ in {tmp_path}/patchmint differs from the driver's, \S+ in {ROOT}/patchmint; "
    )
    assert re.search(words, other.log), other.log
    assert nowhere.end() == 1, nowhere.log
    words = r"^error: on \S+: a worker can't start: ModuleNotFoundError: No module named 'nothing_like_it'; is"
    assert re.search(words, nowhere.log, re.M), nowhere.log


def test_output_or_source_that_workers_cannot_see(cluster, source):
    """The driver sees something else in their places, as if no share were mounted where the workers are."""
    out, share = cluster.folder / "unseen", cluster.folder / "share"
    out.mkdir()
    share.mkdir()
    mounts = f"mount -t tmpfs none {out} && mount --bind {source} {share}"
    mount = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    seen = cluster.folder / "seen"
    blind = Driver(cluster, seen, [*settings(share, seen), *on_ray(max_actors=1)], prefix=mount)
    driver = Driver(cluster, out, [*settings(source, out), *on_ray(max_actors=1)], prefix=mount)
    assert driver.end() == 1, driver.log
    assert re.search(r"error: on \S+: the worker on \S+ \(pid \d+\) can't see the plan in \S+/unseen", driver.log)
    assert "all of them mount at the same path" in driver.log
    assert blind.end() == 1, blind.log
    assert re.search(rf"error: on \S+: the folder {share} on \S+ is empty, and the source is to be read", blind.log)


def test_poison_is_found_although_ray_first_calls_the_worker_unavailable(cluster):
    """Ray waits a second to learn of what an actor died; here it doesn't wait at all, as if that took long."""
    source = make_input(cluster.folder / "poison-in", ["one", "two", "KILL it", "four"])
    out = cluster.folder / "poison"
    quick = {"RAY_timeout_ms_task_wait_for_death_info": "0"}
    driver = Driver(cluster, out, [*settings(source, out, 2), *on_ray()], driver_env=quick)
    assert driver.end() == 0, driver.log
    status = asked("status", out, "--json")
    assert (status["rejects"], status["written"]) == ({"kills-worker": 1}, 3)
    assert clean(out)


def test_a_bad_node_condemns_nobody_and_is_put_aside(cluster, tmp_path):
    source = make_input(cluster.folder / "many-in", [f"picture {i}" for i in range(30)])
    out = cluster.folder / "bad-node"
    (tmp_path / "bad-node").write_text(cluster.second.mark)
    options = [*settings(source, out, 2), *on_ray(min_actors=2)]
    # A warm worker would be back, and dead, once more before the good node has built the first of their units.
    driver = Driver(cluster, out, options, sleep=0.7, module="bad", tell=tmp_path, cold=True)
    assert driver.end() == 0, driver.log
    assert re.search(r"^\S+ cpu is put aside for 120 s: workers die there of samples that others", driver.log, re.M)
    status = asked("status", out, "--json")
    assert (status["rejects"], status["written"]) == ({}, 30)
    by_place = status["last_run"]["progress"]["by_place"]
    assert sorted((place["units"], place["aside"]) for place in by_place.values()) == [(0, True), (15, False)]
    assert sum(place["deaths"] for place in by_place.values()) == 2


def test_dead_node_is_no_poison(cluster, source, reference):
    out = cluster.folder / "node"
    driver = Driver(cluster, out, [*settings(source, out), *on_ray(min_actors=2)], sleep=1)
    wait_until(lambda: driver.at_work(2), 60, "two workers write shards")
    cluster.kill_second()
    assert driver.end() == 0, driver.log
    # now and then Ray sees that the process has gone, or the connection, before it sees that the node has
    went = r"its node went away: .*its node has died|the connection to it broke|pid: \d+, ip: .*worker process has died"
    # or on a busy machine not before the other worker has built its unit, too
    sooner = "an idle worker builds it too" in driver.log
    assert sooner or re.search(rf"^a worker died at unit \d+ on \S+ cpu, .* ({went})", driver.log, re.M), driver.log
    check_files(out, reference)


def test_waits_for_min_actors_and_takes_the_node_that_comes_late(cluster, source, reference, tmp_path):
    cluster.kill_second()
    out = cluster.folder / "late"
    options = [*settings(source, out), *on_ray(min_actors=2, max_actors=3)]
    log = {"PATCHMINT_LOG_FORMAT": "json", "PATCHMINT_LOG_LEVEL": "info"}
    driver = Driver(cluster, out, options, sleep=0.3, module="who", tell=tmp_path, driver_env=log)
    wait_until(lambda: list(tmp_path.glob("loading-*")), 60, "the first worker loads its models")
    states = sorted(actor["state"] for actor in cluster.actors())
    assert states == ["ALIVE", "PENDING_CREATION", "PENDING_CREATION"]  # demand that an autoscaler sees
    cluster.start_second()
    assert not list((out / "commits").glob("*"))
    assert driver.end() == 0, driver.log
    did = {file.name.split("-")[1] for file in tmp_path.glob("did-*")}
    assert did == {cluster.head.mark, cluster.second.mark}
    check_files(out, reference)
    lines = [json.loads(line) for line in driver.log.splitlines() if line.startswith("{")]
    assert {"planned", "loading", "progress", "unit"} <= {line["event"] for line in lines}
    assert len({line["worker"] for line in lines if line["message"].startswith("worker on cpu")}) >= 2
    places = {line["place"] for line in lines if "worker" in line}
    assert len(places) == 2
    assert all(re.fullmatch(rf"{socket.gethostname()}/\w{{6}} cpu", place) for place in places)


def test_lost_cluster_ends_the_driver(cluster, source):
    """One driver in the middle of a unit, one whose workers nothing can place."""
    lost, waits = cluster.folder / "lost", cluster.folder / "waiting"
    busy = Driver(cluster, lost, [*settings(source, lost), *on_ray(min_actors=2)], sleep=15, code=PATIENT)
    waiting = Driver(cluster, waits, [*settings(source, waits), *on_ray(num_cpus=64)], code=PATIENT)
    wait_until(lambda: busy.at_work(2), 60, "two workers write shards")
    wait_until(lambda: len(cluster.actors()) == 4, 60, "the waiting driver has asked for its workers")
    cluster.head.kill()
    for driver in (busy, waiting):
        assert driver.end(75) == 1, driver.log
        assert "error: the Ray cluster hasn't answered for" in driver.log
        assert not (driver.out / "lease.json").exists()
    assert "0 workers are ready, waiting for 1: each asks for 0 GPU and 64 CPU; the cluster has " in waiting.log
