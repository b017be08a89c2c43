"""A COCO build with the detector, with annotators' boxes and with their masks: CPU time, memory, and what differs.

    python benchmarks/whose_boxes.py OUT --scenes 500

Demo scenes with the demo's models, on one thread, a build after the other. Each is verified, and compared with the
detector's by `patchmint inspect diff`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from patchmint.demo import FRESH_SEED
from patchmint.demo.dataset import SPLIT, write_dataset

WAYS = {
    "detector": {},
    "annotators' boxes": {"boxes": "annotators"},
    "annotators' masks": {"masks": "annotators"},
}


def main() -> None:
    """Build, verify and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    asked = parser.parse_args()
    scenes = asked.out / "scenes"
    if not scenes.exists():
        write_dataset(scenes, seed=FRESH_SEED, count=asked.scenes)
    for way in asked.ways:
        out = asked.out / way.replace("' ", "-")
        config = {
            "source": {"kind": "coco", "uri": str(scenes), "texts": "categories", "split": SPLIT},
            "output": {"uri": str(out)},
            "models": "demo",
            "labels": WAYS[way],
            "tokens": None,
            "runner": {"num_cpus": 1, "device": "cpu"},
        }
        path = asked.out / "config.yaml"
        path.write_text(json.dumps(config))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        built = patchmint("build", path, "--json")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        patchmint("inspect", "verify", out)
        peak = after.ru_maxrss / 2**20  # of all builds of this run
        print(f"{way}: {built['written']} samples, {used:.1f} s of CPU, {peak:.2f} GiB at most", flush=True)
        for other in WAYS:
            theirs = asked.out / other.replace("' ", "-")
            if theirs != out and (theirs / "dataset.json").exists():
                found = patchmint("inspect", "diff", theirs, out, "--json", codes=(0, 1))
                alone, labels = found["only_a"]["count"] + found["only_b"]["count"], found["labels"]
                print(
                    f"  against {other}: {alone} samples in one only, texts of {found['texts']['count']} and labels of "
                    f"{labels['changed']} differ; IoU of patches {labels['iou']:.3f}"
                )


def patchmint(*arguments: object, codes: tuple[int, ...] = (0,)) -> Any:
    """Run a command; what it says as JSON, if it does."""
    command = [sys.executable, "-m", "patchmint", *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in codes:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout) if "--json" in command else None


if __name__ == "__main__":
    main()
