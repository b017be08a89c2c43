"""What a build costs around its models: samples a second with models that cost nothing, side by side in one run.

    python benchmarks/overhead.py            # about five minutes on 2 cores
    python benchmarks/overhead.py --json

- `tarwriter`: a plain loop that reads webdataset tars, decodes, asks the same models and writes the same members with
  webdataset's TarWriter: one process, no plan, no checksums, no commit, nothing to resume from.
- `build`: `patchmint build` with the local runner and one worker.
- `ray_data`: Ray Data's read_webdataset -> map_batches -> write_webdataset, the same models in the map.
- `actors`: `patchmint build` on Ray, two actors against one, with a model that costs CPU time.

Each is a process of its own, timed from the first sample to the last (`rate`), and as a whole with its start (`whole`).
Medians of several rounds, the contestants taking turns.
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
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = ROOT / "tests" / "stand_in"
SHARD = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=float, default=0.02, help="CPU seconds an image, for `actors`")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contestant", choices=("tarwriter", "ray_data"), help=argparse.SUPPRESS)
    parser.add_argument("--folders", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        {"tarwriter": run_tarwriter, "ray_data": run_ray_data}[arguments.contestant](*arguments.folders)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.samples, arguments.rounds, arguments.work)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


def measure(folder: Path, samples: int, rounds: int, work: float) -> dict[str, dict[str, float]]:
    source = make_tars(folder / "in", samples)
    small = make_tars(folder / "small", samples // 6)
    rates: dict[str, list[tuple[float, float]]] = {}
    for turn in range(rounds):
        for name in ("tarwriter", "build", "ray_data", "one_actor", "two_actors"):
            out = folder / f"{name}-{turn}"
            start = time.perf_counter()
            match name:
                case "build":
                    seconds = build(source, out, "local", {})
                case "one_actor" | "two_actors":
                    actors = 1 if name == "one_actor" else 2
                    seconds = build(small, out, "ray", {"STAND_IN_WORK": str(work)}, actors)
                case _:
                    seconds = contestant(name, source, out)
            whole = time.perf_counter() - start
            count = samples // 6 if "actor" in name else samples
            rates.setdefault(name, []).append((count / seconds, count / whole))
            print(f"round {turn + 1}: {name} {count / seconds:.0f}/s", file=sys.stderr)
    medians = {
        name: {
            "rate": statistics.median(rate for rate, _ in values),
            "whole": statistics.median(whole for _, whole in values),
        }
        for name, values in rates.items()
    }
    ratios = {
        "build_to_tarwriter": medians["build"]["rate"] / medians["tarwriter"]["rate"],
        "build_to_ray_data": medians["build"]["rate"] / medians["ray_data"]["rate"],
        "build_to_ray_data_whole": medians["build"]["whole"] / medians["ray_data"]["whole"],
        "two_actors_to_one": medians["two_actors"]["rate"] / medians["one_actor"]["rate"],
    }
    return {**medians, "ratios": ratios}


def show(found: dict[str, dict[str, float]]) -> None:
    print(f"{'':12} {'samples/s':>10} {'with start':>10}")
    for name, values in found.items():
        if name != "ratios":
            print(f"{name:12} {values['rate']:10.0f} {values['whole']:10.0f}")
    for name, ratio in found["ratios"].items():
        print(f"{name:26} {ratio:.2f}")


def build(source: Path, out: Path, runner: str, environment: dict[str, str], actors: int = 1) -> float:
    config = {
        "source": {"kind": "webdataset", "uri": str(source)},
        "output": {"uri": str(out), "samples_per_shard": 100 if environment else SHARD},
        "models": {"segmenter": "stand-in", "tokenizer": "stand-in"},
    }
    if runner == "local":
        config["runner"] = {"kind": "local", "num_cpus": len(os.sched_getaffinity(0)), "device": "cpu"}
    else:
        config["runner"] = {"kind": "ray", "num_gpus": 0, "num_cpus": 1, "min_actors": actors, "max_actors": actors}
    path = out.with_suffix(".json")
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "patchmint", "build", str(path), "--json"]
    env = os.environ | environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{STAND_IN}", "RAY_AUTH_MODE": "disabled"}
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = json.loads(next((out / "runs").glob("*.json")).read_text())
    return float(run["busy"])


def contestant(name: str, source: Path, out: Path) -> float:
    out.mkdir()
    command = [sys.executable, __file__, "--contestant", name, "--folders", str(source), str(out)]
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{STAND_IN}", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, check=True, env=env, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def run_tarwriter(source: Path, out: Path) -> None:
    """One process, one loop."""
    import webdataset

    annotate = annotator()
    start = time.perf_counter()
    samples = webdataset.WebDataset([str(path) for path in sorted(source.glob("*.tar"))], shardshuffle=False)
    writer = None
    for number, sample in enumerate(samples):
        if number % SHARD == 0:
            if writer:
                writer.close()
            writer = webdataset.TarWriter(str(out / f"{number // SHARD:06d}.tar"), encoder=True)
        writer.write({"__key__": sample["__key__"], **annotate(sample["jpg"], sample["txt"])})
    writer.close()
    print(time.perf_counter() - start)


def run_ray_data(source: Path, out: Path) -> None:
    """Ray Data, as its documentation has it."""
    import ray

    ray.init(log_to_driver=False, num_cpus=len(os.sched_getaffinity(0)))
    start = time.perf_counter()
    data = ray.data.read_webdataset([str(path) for path in sorted(source.glob("*.tar"))], decoder=None)
    data.map_batches(
        Mapper, batch_size=32, compute=ray.data.ActorPoolStrategy(size=1), batch_format="pandas"
    ).write_webdataset(str(out), min_rows_per_file=SHARD, encoder=[as_they_are])
    print(time.perf_counter() - start)


def as_they_are(sample):
    """Ray Data's own encoder takes the bytes of a .jpg for a PIL image, and fails."""
    return sample


class Mapper:
    """The same models in a Ray Data actor."""

    def __init__(self) -> None:
        self._annotate = annotator()

    def __call__(self, batch):
        """One batch, as a data frame."""
        import pandas

        rows = zip(batch["__key__"], batch["jpg"], batch["txt"], strict=True)
        return pandas.DataFrame([{"__key__": key, **self._annotate(jpg, txt)} for key, jpg, txt in rows])


def annotator():
    """Image bytes and a caption -> the members of a sample, by the same code that a worker runs."""
    from stand_in_models import Boxes, Levels

    from patchmint import grid_preset
    from patchmint.images.decode import decode_image
    from patchmint.labelers.patches import label_texts
    from patchmint.types import Text

    boxes, levels, grid = Boxes("cpu"), Levels("cpu"), grid_preset("llava-1.5-finetune")

    def annotate(jpg: bytes, txt: bytes) -> dict[str, object]:
        image = decode_image(jpg)
        text = Text(txt.decode() if isinstance(txt, bytes) else txt)
        found = boxes.segment([image.pixels], [[text]])[0]
        labels = label_texts(found, 1, grid.place(image.size), 0.0)
        document = {"texts": [text.content], "box": found.boxes[0].tolist(), "score": float(found.scores[0])}
        return {
            "jpg": jpg,
            "json": json.dumps(document).encode(),
            "txt": text.content.encode(),
            "selector.npy": npy(labels.selector),
            "coverage.npy": npy(labels.coverage),
            "vqgan.npy": npy(levels.tokenize([image.pixels])[0].codes[..., 0].astype(np.uint16)),
        }

    return annotate


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def make_tars(folder: Path, samples: int) -> Path:
    """Photograph-like JPEGs of COCO's median size, as img2dataset writes them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(50):
        small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
    for first in range(0, samples, SHARD):
        with tarfile.open(folder / f"{first // SHARD:05d}.tar", "w") as tar:
            for number in range(first, min(first + SHARD, samples)):
                for ending, data in (("jpg", pictures[number % 50]), ("txt", f"thing number {number}".encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


if __name__ == "__main__":
    main()
