"""Asks the Ray cluster what it has, in a process of its own: with a wrong token Ray tries again for minutes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict, dataclass

import ray

_PATIENCE_SECONDS = 25


@dataclass(frozen=True)
class Cluster:
    """What a cluster has.

    Attributes:
        nodes: nodes that are alive.
        cpus: CPU cores of all nodes.
        gpus: GPUs of all nodes.
        problem: why it can't be reached; empty if it can.
    """

    nodes: int = 0
    cpus: float = 0
    gpus: float = 0
    problem: str = ""


def probe_cluster(address: str) -> Cluster:
    """Ask the cluster at an address ("auto": the one on this machine)."""
    command = [sys.executable, "-m", "patchmint.jobs.cluster_probe", address]
    try:
        done = subprocess.run(  # noqa: S603  # our own module, and an address of the config
            command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as late:
        said = late.stderr.decode(errors="replace") if isinstance(late.stderr, bytes) else late.stderr or ""
        return Cluster(problem=f"no answer within {_PATIENCE_SECONDS} s{_last_line(said)}")
    if done.returncode:
        return Cluster(problem=f"it can't be reached{_last_line(done.stderr)}")
    return Cluster(**json.loads(done.stdout.splitlines()[-1]))


def _last_line(said: str) -> str:
    """The last one, or what a cluster with a token says before Ray's own error, which doesn't mention it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    refused = [line.partition("server: ")[2] for line in lines if "Unauthenticated" in line]
    return f": {(refused or lines)[-1]}" if lines else ""


def _main() -> None:
    ray.init(address=sys.argv[1], logging_level=logging.WARNING, log_to_driver=False)
    resources = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    print(json.dumps(asdict(Cluster(nodes, resources.get("CPU", 0), resources.get("GPU", 0)))), flush=True)
    os._exit(0)  # nothing to tidy, and Ray's own way out takes seconds


if __name__ == "__main__":
    _main()
