"""What workers keep: freed memory (counted in page faults, since time tells little on a busy machine), few kernels."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from patchmint.compute import memory

COUNT = """
import resource, sys, torch
from patchmint.compute.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()
for number in range(24):
    if number == 16:  # the heap has settled by then
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

GROW = """
import sys, torch
from pathlib import Path
from patchmint.compute.memory import keep_few_kernels
if sys.argv[1] == "few":
    keep_few_kernels()
def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])
convolution = torch.nn.Conv2d(16, 16, 3)
with torch.inference_mode():
    convolution(torch.zeros(1, 16, 8, 8))
    before = held()
    for more in range(900):
        convolution(torch.zeros(1, 16, 8, 9 + more))
print(held() - before)
"""
NOT_OURS = ("MALLOC_", "ONEDNN_", "LRU_CACHE_")


EACH = """
import os, sys, torch
program, *modes = sys.argv[1:]
for mode in modes:
    if not (child := os.fork()):
        sys.argv[1:] = [mode]
        exec(program)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
"""A program in each of its modes, in forks of one process that has torch, but has not used it yet."""


def told_by(program, *modes):
    env = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    command = [sys.executable, "-c", EACH, program, *modes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_what_is_freed_is_not_cleared_again_by_the_system():
    kept, plain = told_by(COUNT, "kept", "plain")
    assert kept < 0.1 * plain


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux's account of memory")
def test_kernels_for_ever_new_shapes_take_bounded_memory():
    few, every = told_by(GROW, "few", "all")
    assert few < 0.6 * every


def test_what_the_environment_says_of_kernels_stands(monkeypatch):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "2000")
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "")  # so that it is as before afterwards
    monkeypatch.delenv("LRU_CACHE_CAPACITY")
    memory.keep_few_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "2000"
    assert os.environ["LRU_CACHE_CAPACITY"] == "1"


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    memory.keep_freed_memory()
