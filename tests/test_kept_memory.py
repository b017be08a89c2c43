"""Workers keep what tensors free; counted in page faults, since time tells little on a busy machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_what_is_freed_is_not_cleared_again_by_the_system():
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def faults(mode):
        done = subprocess.run([sys.executable, "-c", COUNT, mode], env=env, capture_output=True, text=True, check=True)
        return int(done.stdout)

    plain, kept = faults("plain"), faults("kept")
    assert kept < 0.1 * plain


def test_other_libraries_are_left_alone(monkeypatch):
    from patchmint.compute import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    memory.keep_freed_memory()
