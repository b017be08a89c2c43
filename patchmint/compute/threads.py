"""How many CPU threads compute, and how they wait for each other. Imports no torch: some of it must come first."""

from __future__ import annotations

import os
from pathlib import Path

_SPINS = "10000"
"""Looks at a lock before a thread sleeps. libgomp's own 300,000 take a core from whoever else wants it; 10,000 are as
fast on an idle machine, and 2.6 times as fast on a busy one (benchmarks/threads.py)."""
_BUSY = 1.25
"""Tasks for each core from which on a thread had better not look at all: that gains 30 % there, but loses as much on an
idle machine."""


def wait_briefly() -> None:
    """Let waiting threads of OpenMP sleep soon, unless the environment says how they are to wait.

    At once where the machine is busy (`os.getloadavg`: tasks that ran or waited to, in the last minute).
    Must come before torch is imported: libgomp reads the variable when it is loaded. Child processes inherit it.
    Source: GCC's libgomp manual, GOMP_SPINCOUNT.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        busy = os.getloadavg()[0] > _BUSY * (os.cpu_count() or 1)
        os.environ["GOMP_SPINCOUNT"] = "0" if busy else _SPINS


def default_threads(processes: int = 1) -> int:
    """CPU threads for each of so many processes: OMP_NUM_THREADS, else an equal share of the cores; 1 at least."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked):
        return int(asked)
    return max(1, usable_cores() // processes)


def limit_threads(most: int | None = None) -> None:
    """Have torch use no more threads in this process: `default_threads`, unless told, for it doesn't know of quotas."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), most or default_threads()))


def usable_cores() -> int:
    """Cores that this process may use: by its affinity and its control group's quota, which containers have."""
    return min(len(os.sched_getaffinity(0)), *_quotas())


def _quotas(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Whole cores, rounded up, that each control group around this process allows. None of them: a very large number.

    Source: the kernel's cgroup-v2.rst (cpu.max) and sched-bwc.rst (cpu.cfs_quota_us).
    """
    quotas = [1 << 30]
    for line in _read(proc).splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        names = ["cpu.max"] if number == "0" else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        top = root if number == "0" else root / "cpu"
        inner = top / path.lstrip("/")
        for group in (inner, *inner.parents):
            if not group.is_relative_to(top):
                break
            quota, period, *_ = [*" ".join(_read(group / name) for name in names).split(), "", ""]
            if quota.isdecimal() and period.isdecimal():
                quotas.append(max(1, -(-int(quota) // int(period))))
    return quotas


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
