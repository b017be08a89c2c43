"""What `patchmint build --dry-run --try 3` says against what the build then does.

    python benchmarks/dry_run.py                    # the bundled models on three inputs: some 2 minutes on 2 cores
    python benchmarks/dry_run.py --inputs official  # models of official size with random weights: some 4 minutes
    python benchmarks/dry_run.py --json

- `demo`: scenes of the demo, as COCO captions. `folder`: photographs of this machine's packages, two of them damaged,
  one without words. `coco`: the same photographs, one of them missing, as COCO captions.
- For each: `said`, `used` and their ratio, of samples, rejects by reason, bytes of shards, a worker's memory (peak
  resident memory, from `--profile`), the driver's, and seconds of the build with its start.

Every command is a process of its own. Seconds mean little on a machine that others use: look at `load`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_SEED = 7_200_003
_LOOK_SECONDS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=96)
    parser.add_argument("--inputs", nargs="+", choices=tuple(INPUTS), default=["demo", "folder", "coco"])
    parser.add_argument("--images", type=int, default=4, help="for official")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = {"load_before": os.getloadavg()[0]}
        for input_name in arguments.inputs:
            settings = INPUTS[input_name](folder / input_name, arguments)
            found[input_name] = compared(folder / f"{input_name}.json", settings)
            print(f"{input_name}: done", file=sys.stderr)
    print(json.dumps(found, indent=1) if arguments.json else shown(found))


def scenes(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from patchmint.demo.dataset import write_dataset

    write_dataset(folder, seed=_SEED, count=arguments.scenes)
    return {"source": {"kind": "coco", "uri": str(folder)}}


def photographs(folder: Path) -> list[Path]:
    subprocess.run([sys.executable, ROOT / "examples/photographs.py", folder], check=True, stdout=subprocess.DEVNULL)
    return sorted((folder / "train2017").glob("*.jpg"))


def damaged_folder(folder: Path, _: argparse.Namespace) -> dict[str, Any]:
    for place, path in enumerate(photographs(folder.with_name("photographs"))):
        folder.mkdir(exist_ok=True)
        data = path.read_bytes()
        (folder / path.name).write_bytes(data[: len(data) // 2] if place in (3, 7) else data)
        (folder / path.name).with_suffix(".txt").write_text("" if place == 5 else "a photograph of a thing")
    return {"source": {"kind": "folder", "uri": str(folder)}}


def coco_without_one(folder: Path, _: argparse.Namespace) -> dict[str, Any]:
    photographs(folder)[4].unlink()
    return {"source": {"kind": "coco", "uri": str(folder)}}


def official(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, ROOT / "benchmarks/reference.py", "--models", "official-size"]
    images = ["--images", str(arguments.images)]
    subprocess.run([*command, *images, "--step", "prepare", "--folder", folder], check=True, stdout=subprocess.DEVNULL)
    contest = json.loads((folder / "contest.json").read_text())
    models = {role: contest[role] for role in ("detector", "vocabulary", "masker", "tokenizer")}
    return {"source": {"kind": "coco", "uri": contest["data"]}, "models": models}


INPUTS = {"demo": scenes, "folder": damaged_folder, "coco": coco_without_one, "official": official}


def compared(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Dry run and build of the same settings; what one said and the other used."""
    out = path.with_suffix(".out")
    runner = {"kind": "local", "device": "cpu"}
    config = {"output": {"uri": str(out)}, "runner": runner, "limits": {"max_reject_share": 1.0}}
    path.write_text(json.dumps(config | settings))
    start = time.perf_counter()
    dry, _ = patchmint(path, "--dry-run", "--try", "3", "--try-out", str(path.with_suffix(".overlays")))
    dry_seconds = time.perf_counter() - start
    start = time.perf_counter()
    built, driver = patchmint(path, "--profile")
    seconds = time.perf_counter() - start
    pairs = {
        "shards": (
            dry["output_bytes"],
            sum(file.stat().st_size for file in out.glob("s*s/*")),
        ),
        "worker": (dry["memory"]["worker"], max(worker["peak_bytes"] for worker in built["profile"]["workers"])),
        "driver": (dry["memory"]["driver"], driver),
        "seconds": (dry["trial"]["build_seconds"][1], seconds),
    }
    reasons = {reason: dry["rejects"].get(reason, 0) for reason in dry["rejects"] | dry["looked_at_rejects"]}
    for reason, count in dry["looked_at_rejects"].items():
        reasons[reason] += count
    return {
        "samples": {"said": dry["samples"], "used": built["planned"]},
        "rejects": {"said": reasons, "used": built["rejects"]},
        **{name: {"said": a, "used": b, "ratio": round(a / b, 3)} for name, (a, b) in pairs.items()},
        "seconds_range": dry["trial"]["build_seconds"],
        "dry_run_seconds": dry_seconds,
        "load": os.getloadavg()[0],
    }


def patchmint(config: Path, *options: str) -> tuple[dict[str, Any], int]:
    """Run `patchmint build`; what it says as JSON, and its own peak memory, without its workers'."""
    command = [sys.executable, "-m", "patchmint", "build", str(config), "--json", *options]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(_LOOK_SECONDS)
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {text}")
    return json.loads(text), peak


def shown(found: dict[str, Any]) -> str:
    lines = [f"{'':15}{'':10}{'said':>12}{'used':>12}{'ratio':>8}"]
    for name, facts in found.items():
        if not isinstance(facts, dict):
            continue
        for what in ("samples", "shards", "worker", "driver", "seconds"):
            said, used = facts[what]["said"], facts[what]["used"]
            unit = 1e6 if what in ("shards", "worker", "driver") else 1
            label = f"{what}, MB" if unit == 1e6 else what
            lines.append(f"{name:15}{label:10}{said / unit:12.2f}{used / unit:12.2f}{said / used:8.2f}")
        lines.append(f"{name:15}{'rejects':10} said {facts['rejects']['said']}, used {facts['rejects']['used']}")
        lines.append(f"{name:15}{'range, s':10} {facts['seconds_range'][0]:.1f} to {facts['seconds_range'][2]:.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
