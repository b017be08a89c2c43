"""A whole build on a GPU, and upstream's calls on the same images, for `gpu.py`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from reference import arrays
from reference_data import SPLIT, Contest

ROOT = Path(__file__).resolve().parent.parent
_WARM = 2
"""Images that the reference may have before the clock starts: the first ones choose kernels."""
_LOOK_MS = 100


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """Photographs, captions and weights; with --tiny the demo's scenes and models."""
    from reference_weights import demo_contest, official_contest

    make = (folder, arguments.images, arguments.texts)
    contest = demo_contest(*make) if arguments.tiny else official_contest(*make, arguments.sam)
    contest.save(folder / "contest.json")


def reference(arguments: argparse.Namespace) -> dict[str, Any]:
    """Upstream's calls on the first images, in a process of their own."""
    from reference_loop import run

    contest, count = Contest.load(arguments.folder / "contest.json"), arguments.reference_images
    out = arguments.folder / "reference"
    found = run(contest, out, count, arguments.threads, device=arguments.device, images=count, warm=_WARM)
    return {
        "images": count,
        "boxes": found["boxes"],
        "rate": count / found["seconds"],
        "stages_ms": {name: 1000 * seconds / count for name, seconds in found["stages"].items()},
    }


def build(arguments: argparse.Namespace, folder: Path, precision: str, seconds: float) -> dict[str, Any]:
    """`patchmint build --profile` with one worker; in float32 without TF32, to compare labels and codes with.

    Returns:
        Images a second once models are loaded, `start_s` until then and after the end, what the models were asked for
        as a share of the wall (`device_side`), what the GPU stood idle, stages in ms an image, and the peak of memory.
    """
    contest, out = Contest.load(folder / "contest.json"), folder / precision
    config = {
        "source": {"kind": "coco", "uri": contest.data, "split": SPLIT},
        "output": {"uri": str(out), "samples_per_shard": -(-arguments.images // 2)},
        "models": contest.models,
        "labels": {"box_threshold": contest.box_threshold, "text_threshold": contest.text_threshold},
        "precision": precision,
        "runner": {"kind": "local", "workers": 1, "num_cpus": arguments.threads, "device": arguments.device},
    }
    path = folder / f"{precision}.json"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "patchmint", "build", str(path), "--json", "--profile"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if precision == "float32":
        env["NVIDIA_TF32_OVERRIDE"] = "0"  # by default torch's float32 convolutions have ten bits like float16's
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    with _watching(arguments.device) as looks:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=max(1, seconds), check=False)
    whole = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"the build ended with {done.returncode}: {done.stderr[-1500:]}")
    record = next(path for path in (out / "runs").glob("*.json") if not path.stem.endswith("-trace"))
    trace = json.loads(record.with_name(f"{record.stem}-trace.json").read_text())
    run = json.loads(record.read_text())
    profile = run["profile"]
    return {
        "images": arguments.images,
        "rate": arguments.images / run["busy"],
        "start_s": whole - run["busy"],
        "batch_sizes": run["progress"].get("batch_sizes"),
        "device_side": profile["device_side"],
        "wait": profile["wait"],
        "idle_by_spans": idle_by_spans(trace, profile["wall"]),
        "idle_by_nvidia_smi": idle_by_looks(looks, trace["otherData"]["began"], run["busy"]),
        "stages_ms": {f"{stage['thread']}/{stage['stage']}": stage["ms_per_sample"] for stage in profile["stages"]},
        "peak_mb": [worker["peak_bytes"] / 1e6 for worker in profile["workers"]],
        "device_peak_mb": [worker["device_peak_bytes"] / 1e6 for worker in profile["workers"]],
    }


def idle_by_spans(trace: dict[str, Any], wall: float) -> float | None:
    """Share of a build in which no stage was on the GPU, from its timeline; None if none ever was, or some are missing.

    What is idle within a stage isn't seen.
    """
    if trace["otherData"]["events_left_out"]:
        return None
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"]) for event in trace["traceEvents"] if event.get("cat") == "device"
    )
    busy, reached = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / 1e6 / wall if spans and wall else None


def idle_by_looks(looks: list[tuple[float, float]], began: float, seconds: float) -> float | None:
    """Mean idle share of the looks (seconds since 1970, busy share) between two times; None if there are none."""
    inside = [busy for at, busy in looks if began <= at <= began + seconds]
    return 1 - float(np.mean(inside)) if inside else None


def compare(theirs: Path, ours: Path) -> dict[str, float]:
    """Shares of equal labels and codes, of the samples that both sides have, and of patches that `theirs` keeps.

    Raises:
        RuntimeError: there is no such sample.
    """
    wanted, found = dict(arrays(theirs)), dict(arrays(ours))
    both = sorted(wanted.keys() & found.keys())
    if not both:
        raise RuntimeError(f"{theirs} and {ours} have no sample in common")
    shares = {
        name: float(np.mean([np.mean(wanted[key][member] == found[key][member]) for key in both]))
        for name, member in (("patches", "selector"), ("codes", "vqgan"))
    }
    return {**shares, "kept": float(np.mean([wanted[key]["selector"].mean() for key in both]))}


@contextlib.contextmanager
def _watching(device: str) -> Iterator[list[tuple[float, float]]]:
    """Look at the GPU all the while; what was seen is there when the block is left. Nothing of the GPU is changed."""
    looks: list[tuple[float, float]] = []
    tool = shutil.which("nvidia-smi")
    if tool is None or not device.startswith("cuda"):
        yield looks
        return
    number = device.partition(":")[2] or "0"
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", str(_LOOK_MS)]
    command = [tool, "-i", number, *query]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as watcher:

        def read() -> None:
            for line in watcher.stdout or ():
                with contextlib.suppress(ValueError):  # "[N/A]"
                    looks.append((time.time(), float(line) / 100))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield looks
        finally:
            watcher.terminate()
            reader.join()
