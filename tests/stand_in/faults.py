"""Kills or stops a build at a chosen step: before or after the n-th call of its kind that changes files.

STAND_IN_FAULT=faults loads this in the worker, with the stand-in models. Environment variables there: STAND_IN_STEP =
what to do and where, such as "kill-both before link 2" (kill-worker, kill-both: the driver as well, stop-group: every
process of the group); STAND_IN_ONCE = a file that is made when it happens, after which it doesn't happen again.
"""

import os
import signal
import threading
from collections import Counter
from pathlib import Path

from patchmint.storage.interface import NewFile

STEPS = [
    *[(os, name) for name in ("fsync", "link", "rename", "unlink", "mkdir", "rmdir")],
    (Path, "open"),
    (NewFile, "write"),
]


def watch(on_step):
    """From now on call `on_step(when, name)`, "before" and "after" each step of this process's work."""
    for owner, name in STEPS:
        setattr(owner, name, _watched(getattr(owner, name), name, on_step))


def _watched(original, name, on_step):
    def step(*args, **options):
        reads = name == "open" and not any("w" in str(mode) or "x" in str(mode) for mode in args[1:2])
        if reads or not _is_counted(threading.current_thread()):
            return original(*args, **options)
        on_step("before", name)
        answer = original(*args, **options)
        on_step("after", name)
        return answer

    return step


def _is_counted(thread):
    """Those that take turns. The lease's beats by the clock: its steps would make the count differ from run to run."""
    return thread is threading.main_thread() or thread.name.startswith("write")


def _install(wanted, once):
    action, when, name, number = wanted.split()
    counts = Counter()

    def on_step(now, step):
        counts[now, step] += 1
        if (now, step) == (when, name) and counts[now, step] == int(number) and _first_time(once):
            _act(action)

    watch(on_step)


def _first_time(once):
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _act(action):
    if action == "stop-group":
        os.killpg(0, signal.SIGSTOP)
        return
    if action == "kill-both":
        os.kill(os.getsid(0), signal.SIGKILL)  # the driver leads the session
    os.kill(os.getpid(), signal.SIGKILL)


_in_worker = any(thread.name == "heed-parent" for thread in threading.enumerate())
if _in_worker and os.environ.get("STAND_IN_STEP"):
    _install(os.environ["STAND_IN_STEP"], os.environ["STAND_IN_ONCE"])
