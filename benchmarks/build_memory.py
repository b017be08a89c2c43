"""Whether the memory of a build grows with what it is given: samples, and boxes of an image.

    python benchmarks/build_memory.py            # 1,000 against 20,000 samples: some 20 minutes on 2 cores
    python benchmarks/build_memory.py --large 4000 --json

- Samples: `patchmint build` with the demo models, one worker, on copies of 64 scenes (codes of 64 px images, since
  their number matters here and not their size). The peak of the process and all its descendants.
- Boxes: SAM's decoder at official size (an encoder of two blocks in front of it) on one 640 x 480 picture: 1, 64 and
  900 boxes and their patch coverage, each number in a process of its own; the process's peak.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from reference import watched

BOXES = (1, 64, 900)
SCENES = 64
_SEED = 7_200_003


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--large", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--boxes", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.boxes is not None:
        print(json.dumps(decode(arguments.boxes)))
        return
    found = {
        "boxes": {boxes: boxes_peak(boxes) for boxes in BOXES},
        "samples": {samples: build_peak(samples) for samples in (arguments.small, arguments.large)},
    }
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for what, peaks in found.items():
        for count, megabytes in peaks.items():
            print(f"{count:>8} {what:8} {megabytes:8.0f} MB at most")


def build_peak(samples: int) -> float:
    """Peak MB of a build."""
    from patchmint.demo.scenes import make_scene

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = [make_scene(_SEED, number) for number in range(min(SCENES, samples))]
        (folder / "in").mkdir()
        for number in range(samples):
            scene, path = scenes[number % len(scenes)], folder / f"in/{number:06d}.jpg"
            if number < len(scenes):
                path.write_bytes(scene.jpeg)
            else:
                os.link(folder / f"in/{number % len(scenes):06d}.jpg", path)
            path.with_suffix(".txt").write_text(scene.texts[0].content)
        config = {
            "source": {"kind": "folder", "uri": str(folder / "in")},
            "output": {"uri": str(folder / "out")},
            "tokens": {"size": 64},
            "runner": {"kind": "local", "device": "cpu"},
        }
        (folder / "config.json").write_text(json.dumps(config))
        text, peak = watched([sys.executable, "-m", "patchmint", "build", str(folder / "config.json"), "--json"])
        told: dict[str, Any] = json.loads(text)
        if told["written"] != samples:
            raise SystemExit(f"{told['written']} of {samples} samples were written")
    print(f"{samples} samples: {peak:.0f} MB", file=sys.stderr)
    return peak


def boxes_peak(boxes: int) -> float:
    """Peak MB of a process that makes the masks of so many boxes."""
    text, _ = watched([sys.executable, __file__, "--boxes", str(boxes)])
    told = json.loads(text.splitlines()[-1])
    print(f"{boxes} boxes: {told}", file=sys.stderr)
    return float(told["peak_mb"])


def decode(boxes: int) -> dict[str, float]:
    """Masks and coverage of random boxes."""
    import numpy as np

    from patchmint import grid_preset
    from patchmint.compute.memory import peak_memory
    from patchmint.labelers.sam.arch import OFFICIAL
    from patchmint.labelers.sam.masker import SamMasker
    from patchmint.labelers.sam.model import untrained

    shallow = replace(OFFICIAL["sam-vit-b"], depth=2, global_attn_indexes=(1,))
    masker = SamMasker(untrained(shallow, seed=0))
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)
    corners = np.sort(rng.uniform(0, 1, (boxes, 2, 2)), axis=1) * (640, 480)
    masker.masks([picture], [corners[:1].reshape(-1, 4).astype(np.float32)])
    before = peak_memory()
    masks = masker.masks([picture], [corners.reshape(-1, 4).astype(np.float32)])[0]
    masks.coverage(range(boxes), grid_preset("llava-1.5-finetune").place((480, 640)))
    return {"peak_mb": round(peak_memory() / 1e6, 1), "more_than_for_one_mb": round((peak_memory() - before) / 1e6, 1)}


if __name__ == "__main__":
    main()
