"""What `patchmint build --profile` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_THREADS = {
    "models": "the thread that asks the models",
    "device": "on the GPU, by its own clock",
    "decode": "threads that read and decode, together",
    "write": "the thread that labels and writes",
}


def profile_lines(profile: Mapping[str, Any]) -> list[str]:
    """A table of where the time went: `pipeline.driver.runs.Profile.summary` and the timeline's address."""
    lines = [f"{'':34}{'seconds':>10}{'of wall':>9}{'calls':>9}{'ms/sample':>11}"]
    thread, spent = "", 0.0
    for stage in profile["stages"]:
        if stage["thread"] != thread:
            lines += _rest(profile, thread, spent)
            thread, spent = stage["thread"], 0.0
            lines.append(_THREADS.get(thread, thread))
        names = stage["stage"].split("/")
        spent += stage["seconds"] if len(names) == 1 else 0.0
        lines.append(
            f"{'  ' * len(names)}{names[-1]}".ljust(34)
            + f"{stage['seconds']:10.2f}{stage['share']:9.1%}{stage['calls']:9}{stage['ms_per_sample']:11.2f}"
        )
    lines += _rest(profile, thread, spent)
    workers = profile["workers"]
    lines.append(
        f"device side {profile['device_side']:.1%} and wait {profile['wait']:.1%} of {profile['wall']:.1f} s wall "
        f"({len(workers)} worker{'s' if len(workers) != 1 else ''}, {profile['samples']} samples)"
    )
    for worker in workers:
        device = (
            f", {worker['device']} {worker['device_peak_bytes'] / 1e6:.0f} MB" if worker["device_peak_bytes"] else ""
        )
        lines.append(
            f"worker {worker['worker']} ({worker['host']}, pid {worker['pid']}): at most "
            f"{worker['peak_bytes'] / 1e6:.0f} MB of memory{device}"
        )
    return [*lines, f"timeline: {profile['trace']} (open it at ui.perfetto.dev)"]


def _rest(profile: Mapping[str, Any], thread: str, spent: float) -> list[str]:
    """What the worker did besides: between units, for the most part."""
    if thread != "models":
        return []
    rest = max(0.0, profile["wall"] - spent)
    share, each = rest / max(profile["wall"], 1e-9), 1000 * rest / max(profile["samples"], 1)
    return [f"  {'(between)':32}{rest:10.2f}{share:9.1%}{'':9}{each:11.2f}"]
