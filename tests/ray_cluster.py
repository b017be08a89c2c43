"""A real Ray cluster of two nodes on loopback: each node with processes of its own, token authentication on."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parent.parent
_START_SECONDS = 45
_MARK = "PATCHMINT_TEST_NODE"


class Node:
    """One node: `ray start`, and all that comes of it, known by a mark in the environment, PATCHMINT_TEST_NODE."""

    def __init__(self, options, env, log):
        self.mark = secrets.token_hex(8)
        self._log = log
        options = [*options, f"--dashboard-agent-listen-port={_free_ports(1)[0]}"]  # or a second cluster has no agent
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", *options]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--disable-usage-stats", "--object-store-memory=80000000"],
                env=env | {_MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(self._started, _START_SECONDS, "`ray start` has come up")
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}; it said:\n{log.read_text(errors='replace')}") from error

    def kill(self):
        """SIGKILL to all processes of the node, as when the machine loses its power."""
        while pids := self._pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
        self._process.wait()

    def alive(self):
        return self._process.poll() is None

    def _pids(self):
        mark = f"{_MARK}={self.mark}".encode()
        return [pid for pid in _all_pids() if mark in _environment(pid)]

    def _started(self):
        text = self._log.read_text(errors="replace")
        assert self.alive(), text
        return "Ray runtime started" in text


class RayCluster:
    """A head and a second node, None while they aren't up, with one CPU each; all nodes see `folder`."""

    def __init__(self, folder):
        self.folder = folder
        self.head = None
        self.second = None
        self._token = secrets.token_hex(32)
        token_file = folder / "token"
        token_file.write_text(self._token)
        token_file.chmod(0o600)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'stand_in'}",
            # so that a job has the time to end in order
            "RAY_JOB_STOP_WAIT_TIME_S": "30",
            # what nothing here looks at: workers in store, and what the processes of a node use
            "RAY_prestart_worker_first_driver": "0",
            "REPORTER_UPDATE_INTERVAL_MS": "3600000",
            # A job says `python`: on a node that is the environment's, whether or not the tests' shell activated it.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def start(self):
        """Start what isn't up."""
        if not (self.head and self.head.alive()):
            self.stop()
            self._start_head()
        if not (self.second and self.second.alive()):
            self.start_second()

    def start_second(self):
        options = [f"--address={self.address}", "--num-cpus=1", "--num-gpus=0"]
        options += [f"--metrics-export-port={self._metrics_ports[1]}"]
        try:
            self.second = Node(options, self.env, self.folder / "second.log")
        except AssertionError:  # now and then, on a busy machine, a node that joins hangs; the next one doesn't
            self.second = Node(options, self.env, self.folder / "second.log")

    def kill_second(self):
        if self.second:
            self.second.kill()
            self.second = None

    def stop(self):
        self.kill_second()
        if self.head:
            self.head.kill()
            self.head = None

    def get(self, path, *, body=None, token=True, method="GET"):
        """Ask the dashboard: HTTP status and JSON."""
        headers = {"Authorization": f"Bearer {self._token}"} if token else {}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(self.dashboard + path, data, headers, method=method), timeout=20) as reply:
                return reply.status, json.load(reply)
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def actors(self):
        """The workers of builds that have an actor which isn't dead."""
        _, answer = self.get("/api/v0/actors?detail=true&limit=1000")
        actors = answer["data"]["result"]["result"]
        return [actor for actor in actors if actor["class_name"] == "PatchmintWorker" and actor["state"] != "DEAD"]

    def metrics(self):
        """What the nodes' metrics ports tell Prometheus: drivers' counts are on the node that they connected to."""
        return "".join(map(_metrics, self._metrics_ports))

    def _start_head(self):
        port, dashboard, client, *self._metrics_ports = _free_ports(5)
        self.address = f"127.0.0.1:{port}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.env["RAY_ADDRESS"] = self.address
        env = {name: value for name, value in self.env.items() if name != "RAY_ADDRESS"}
        options = ["--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=1", "--num-gpus=0"]
        options += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        options += [f"--metrics-export-port={self._metrics_ports[0]}", f"--temp-dir={self.folder / 't'}"]
        self.head = Node(options, env, self.folder / "head.log")


@contextmanager
def ray_cluster():
    """A cluster, not yet started; it ends with the block."""
    # a short path: sockets lie in it, and the name of a socket has at most 107 characters
    folder = Path(tempfile.mkdtemp(prefix="rc"))
    cluster = RayCluster(folder)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def declared_metrics():
    """Names that `/metrics` is to export, each with the tags that are patchmint's."""
    from ray.util.metrics import Counter, Metric  # here, for those who start no cluster

    from patchmint.pipeline.pools.ray import _Metrics

    metrics = _Metrics()
    declared = [*vars(metrics).values(), *metrics._by_place.values()]
    return {
        f"ray_{metric.info['name']}{'_total' if isinstance(metric, Counter) else ''}": metric.info["tag_keys"]
        for metric in declared
        if isinstance(metric, Metric)
    }


def wait_until(holds, seconds, what):
    """Ask again and again; what was answered once that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)
    return answer


def _metrics(port):
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as reply:
        return str(reply.read().decode())


def _free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _all_pids():
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]


def _environment(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
