"""Threads: as many as may be used, and waiting threads that leave the cores to others."""

import os
import subprocess
import sys

import pytest

from patchmint.compute import threads


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/", {}, None),
        ("0::/a/b", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ("0::/a", {"a/cpu.max": "10000 100000"}, 1),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ("4:cpu:/x", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, None),
        ("4:cpuset:/", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ],
)
def test_quotas_are_read_from_every_group_around(tmp_path, line, files, cores):
    (tmp_path / "proc").write_text(line + "\n")
    for name, content in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(content)
    found = threads._quotas(tmp_path / "proc", tmp_path / "root")
    assert min(found) == (cores or 1 << 30)


def test_an_affinity_and_a_quota_both_limit(monkeypatch):
    monkeypatch.setattr(threads, "_quotas", lambda: [1 << 30])
    assert threads.usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(threads, "_quotas", lambda: [1])
    assert threads.usable_cores() == threads.default_threads() == threads.default_threads(4) == 1


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("5,2", 5), ("", 4), ("0", 4), ("many", 4)])
def test_the_users_number_goes_first(monkeypatch, value, expected):
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads.default_threads(2) == expected


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")])
def test_the_users_way_to_wait_stays(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    threads.wait_briefly()
    assert dict(os.environ) == before


@pytest.mark.parametrize(("load", "spins"), [(0.5, threads._SPINS), (9.0, threads._SPINS), (11.0, "0")])
def test_a_busy_machines_threads_do_not_look_before_they_sleep(monkeypatch, load, spins):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 20.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "environ", {})
    threads.wait_briefly()
    assert os.environ == {"GOMP_SPINCOUNT": spins}


def test_the_api_waits_briefly_and_uses_no_more_threads_than_it_may():
    """torch's threads, asked in a process whose quota is said to be one core."""
    code = (
        "import os; os.getloadavg = lambda: (0, 0, 0);"
        "import patchmint.compute.threads as threads; threads._quotas = lambda: [1]; import patchmint;"
        "patchmint.Annotator.from_preset('untrained-tiny', device='cpu', labels=None);"
        "import torch; print(os.environ['GOMP_SPINCOUNT'], torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [threads._SPINS, "1"], done.stderr
