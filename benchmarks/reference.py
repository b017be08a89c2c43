"""`patchmint build` against what people run today, on the same images, texts and weights, in one run.

    python benchmarks/reference.py                                  # demo models, about ten minutes on 2 cores
    python benchmarks/reference.py --models official-size --no-ray  # random weights, about six minutes an image

- `reference`: upstream's own calls one image at a time in float32 (`reference_loop.py`).
- `transformers`, at official size: transformers' classes in batches, with bfloat16 products if the CPU has instructions
  for them (`reference_transformers.py`); time only.
- `local`: `patchmint build` with the local runner and one worker, settings as they come.
- `ray`: `patchmint build` on Ray with two actors, which share the same number of threads.

Each is a process of its own, timed from the first image to the last closed shard once models are loaded (`seconds`; the
ratios are of these), and as a whole with its start (`whole`). `peak MB` is the resident memory of the process and all
its descendants at most, without mapped files (libraries), looked at ten times a second; Linux only. `patches` and
`codes` are the shares of labels and codes that equal the reference's, from the written shards. Labels differ even in
float32: upstream lets "[CLS]" and "." claim boxes, and doesn't cut boxes at the image's border. Medians of several
rounds, the contestants taking turns.

With `--texts 1 5`, as at official size, all of it is done for each number of texts. `--json` prints `runs`, one for
each, and how many times as fast as others the local build is: `to_reference`, `to_transformers`, by number of texts.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from reference_data import SPLIT, Contest

ROOT = Path(__file__).resolve().parent.parent
_LOOK_SECONDS = 0.1


def main() -> None:
    arguments = parse()
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments)))
        return
    runs = []
    for texts in arguments.texts:
        with tempfile.TemporaryDirectory() as folder:
            named = (arguments.models, arguments.sam, arguments.images, texts)
            kept = (arguments.keep or Path(folder)).absolute() / "-".join(map(str, named))
            runs.append(measure(arguments, texts, kept, Path(folder)))
    if arguments.json:
        print(json.dumps({"runs": runs} | ratios(runs), indent=1))
    else:
        for found in runs:
            show(found)


def ratios(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times as fast as others the local build is, by the number of texts."""
    return {
        f"to_{name}": {
            str(found["settings"]["texts"]): found[name]["seconds"] / found["local"]["seconds"] for found in runs
        }
        for name in ("reference", "transformers")
        if name in runs[0]
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=("demo", "official-size"), default="demo")
    parser.add_argument("--sam", choices=("vit-b", "vit-l", "vit-h"), default="vit-b", help="for official-size")
    parser.add_argument(
        "--texts", type=int, choices=(1, 5), nargs="+", help="of an image; 1 with demo models, 1 5 at official size"
    )
    parser.add_argument("--images", type=int, help="192 with demo models, 4 at official size")
    parser.add_argument("--rounds", type=int, help="3 with demo models, 1 at official size")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each contestant")
    parser.add_argument("--precision", default="auto", help="of the builds; the reference is float32")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--profile", action="store_true", help="the builds' stages from `patchmint build --profile`")
    parser.add_argument("--keep", type=Path, help="folder where images and weights stay for the next run with them")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", choices=tuple(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    demo = arguments.models == "demo"
    arguments.images = arguments.images or (192 if demo else 4)
    arguments.rounds = arguments.rounds or (3 if demo else 1)
    arguments.texts = arguments.texts or ([1] if demo else [1, 5])
    return arguments


def shard_size(images: int) -> int:
    """Two shards, so that each of two actors has one."""
    return -(-images // 2)


def measure(arguments: argparse.Namespace, texts: int, made: Path, folder: Path) -> dict[str, Any]:
    ours = ["local"] + ([] if arguments.no_ray else ["ray"])
    names = ["reference", *(["transformers"] if arguments.models == "official-size" else []), *ours]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    if not (made / "contest.json").exists():
        call("prepare", made, texts)
    contest = Contest.load(made / "contest.json")
    for turn in range(arguments.rounds):
        for name in names:
            out = folder / f"{name}-{turn}"
            start = time.perf_counter()
            run = build(arguments, contest, out, name) if name in ours else call(name, made, texts, out)
            runs[name].append(run | {"whole": time.perf_counter() - start})
            print(f"round {turn + 1}: {name} {run['seconds']:.1f} s", file=sys.stderr)
    medians = {
        name: {key: statistics.median(run[key] for run in each) for key in ("seconds", "whole")}
        for name, each in runs.items()
    }
    reference = medians["reference"]["seconds"]
    return {
        "settings": {
            "texts": texts,
            **{key: getattr(arguments, key) for key in ("models", "sam", "images", "rounds", "threads", "precision")},
        },
        "boxes_a_text": runs["reference"][0]["boxes"] / (arguments.images * texts),
        **medians,
        "ratios": {name: reference / medians[name]["seconds"] for name in names[1:]},
        "agreement": {name: agreement(folder / "reference-0", folder / f"{name}-0" / "shards") for name in ours},
        "peak_mb": {name: round(max(run["peak_mb"] for run in each)) for name, each in runs.items()},
        "stages": {name: stages_an_image(each, arguments.images) for name, each in runs.items()},
    }


def stages_an_image(runs: list[dict[str, Any]], images: int) -> dict[str, float]:
    """Seconds an image in each stage, medians of the rounds."""
    return {
        stage: statistics.median(run["stages"].get(stage, 0.0) for run in runs) / images for stage in runs[0]["stages"]
    }


def build(arguments: argparse.Namespace, contest: Contest, out: Path, runner: str) -> dict[str, Any]:
    config = {
        "source": {"kind": "coco", "uri": contest.data, "split": SPLIT},
        "output": {"uri": str(out), "samples_per_shard": shard_size(arguments.images)},
        "models": contest.models,
        "labels": {"box_threshold": contest.box_threshold, "text_threshold": contest.text_threshold},
        "precision": arguments.precision,
    }
    if runner == "local":
        config["runner"] = {"kind": "local", "num_cpus": arguments.threads, "device": "cpu"}
    else:
        each = max(1, arguments.threads // 2)
        config["runner"] = {"kind": "ray", "num_gpus": 0, "num_cpus": each, "min_actors": 2, "max_actors": 2}
    path = out.with_suffix(".json")
    path.write_text(json.dumps(config))
    profile = ["--profile"] if arguments.profile else []
    _, peak = watched([sys.executable, "-m", "patchmint", "build", str(path), "--json", *profile])
    record = next(path for path in (out / "runs").glob("*.json") if not path.stem.endswith("-trace"))
    run = json.loads(record.read_text())
    return {"seconds": float(run["busy"]), "peak_mb": peak, "stages": stages(run)}


def stages(run: dict[str, Any]) -> dict[str, float]:
    """Seconds in each stage of a build, all workers together, from its run record."""
    if run.get("profile"):
        return {f"{stage['thread']}/{stage['stage']}": stage["seconds"] for stage in run["profile"]["stages"]}
    return dict(run["progress"]["seconds"])


def call(step: str, folder: Path, texts: int, out: Path | None = None) -> dict[str, Any]:
    """Run a step of this script in a process of its own."""
    own = ["--step", step, "--folder", str(folder), "--texts", str(texts), *(["--out", str(out)] if out else [])]
    text, peak = watched([sys.executable, __file__, *sys.argv[1:], *own])
    return {**json.loads(text.strip().splitlines()[-1]), "peak_mb": peak}


def prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    from reference_weights import demo_contest, official_contest

    arguments.folder.mkdir(parents=True)
    make = (arguments.folder, arguments.images, arguments.texts[0])
    contest = demo_contest(*make) if arguments.models == "demo" else official_contest(*make, arguments.sam)
    contest.save(arguments.folder / "contest.json")  # last: its presence says that all is there
    return {}


def reference(arguments: argparse.Namespace) -> dict[str, Any]:
    from reference_loop import run

    contest = Contest.load(arguments.folder / "contest.json")
    return run(contest, arguments.out, shard_size(arguments.images), arguments.threads)


def in_batches(arguments: argparse.Namespace) -> dict[str, Any]:
    from reference_transformers import run

    return run(Contest.load(arguments.folder / "contest.json"), arguments.sam, arguments.threads)


STEPS = {"prepare": prepare, "reference": reference, "transformers": in_batches}


def watched(command: list[str]) -> tuple[str, float]:
    """Run a command; what it printed, and the peak memory in MB of it and all its descendants."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    peak = 0.0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
        over = threading.Event()

        def look() -> None:
            nonlocal peak
            while not over.wait(_LOOK_SECONDS):
                peak = max(peak, tree_mb(process.pid))

        watcher = threading.Thread(target=look)
        watcher.start()
        text, _ = process.communicate()
        over.set()
        watcher.join()
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()[-4000:]}")
    return text, peak


def tree_mb(root: int) -> float:
    """Resident memory of a process and all its descendants in MB, without mapped files."""
    kilobytes, waiting = 0, [root]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            for line in (process / "status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    kilobytes += int(line.split()[1])
            for children in process.glob("task/*/children"):
                waiting += map(int, children.read_text().split())
        except OSError:  # it is gone by now
            continue
    return kilobytes / 1024


def agreement(theirs: Path, ours: Path) -> dict[str, float]:
    """Share of equal patch labels and codes, and of patches that the reference keeps.

    Raises:
        RuntimeError: a sample is missing on one side.
    """
    references, builds = dict(arrays(theirs)), dict(arrays(ours))
    if references.keys() != builds.keys():
        raise RuntimeError(f"samples of one side only: {sorted(references.keys() ^ builds.keys())[:3]}")

    def share(member: str) -> float:
        return float(np.mean([np.mean(references[key][member] == builds[key][member]) for key in references]))

    kept = float(np.mean([sample["selector"].mean() for sample in references.values()]))
    return {"patches": share("selector"), "codes": share("vqgan"), "kept": kept}


def arrays(folder: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Labels and codes of each sample in a folder of tars, by the name of its image."""
    found: dict[str, dict[str, np.ndarray]] = {}
    names: dict[str, str] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                data = tar.extractfile(member).read()
                if ending == "json":
                    names[key] = Path(json.loads(data).get("source", {}).get("path", key)).stem
                elif ending in ("selector.npy", "vqgan.npy"):
                    found.setdefault(key, {})[ending.removesuffix(".npy")] = np.load(io.BytesIO(data))
    for key, members in found.items():
        yield names[key], members


def show(found: dict[str, Any]) -> None:
    settings = found["settings"]
    print(", ".join(f"{key} {value}" for key, value in settings.items()))
    print(f"{found['boxes_a_text']:.1f} boxes a text")
    print(f"\n{'':12} {'seconds':>8} {'img/s':>7} {'whole':>8} {'ratio':>6} {'peak MB':>8} {'patches':>8} {'codes':>7}")
    for name, peak in found["peak_mb"].items():
        seconds, whole = found[name]["seconds"], found[name]["whole"]
        line = f"{name:12} {seconds:8.2f} {settings['images'] / seconds:7.2f} {whole:8.2f}"
        if name == "reference":
            print(f"{line} {'':6} {peak:8}")
            continue
        same = found["agreement"].get(name)
        equal = f"{same['patches']:8.4f} {same['codes']:7.4f}" if same else ""
        print(f"{line} {found['ratios'][name]:6.2f} {peak:8} {equal}")
    print("\nms an image")
    for name, stages_of in found["stages"].items():
        print(f"{name:12} " + ", ".join(f"{stage} {seconds * 1000:.1f}" for stage, seconds in stages_of.items()))


if __name__ == "__main__":
    main()
