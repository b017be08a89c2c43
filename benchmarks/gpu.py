r"""Everything that is to be known of patchmint on a GPU, in one run of eight minutes at most.

    python benchmarks/gpu.py                        # official sizes with random weights, SAM ViT-H
    python benchmarks/gpu.py --device cpu --tiny    # tries the script itself, with tiny models, where there is no GPU

Sections, the most important first; one for which the time is too short is left out, and said to be:

- `parity`: what the models say there in the formats of `auto`, against the CPU in float32, on four photographs.
- `peak`: what the device does in products of matrices.
- `build`: `patchmint build --profile` (local, one worker, settings as they come) against upstream's calls one image at
  a time in float32 (`reference_loop.py`) on the first of the same images: ratio of images a second once models are
  loaded, agreement of labels and codes, and how long the GPU had nothing to do: by nvidia-smi (shares of its sampling
  periods in which a kernel ran) and by the spans of the build's profile.
- `auto`: each stage by itself at several sizes of batch, and its ratio to upstream's calls in `build`; TFLOP are those
  of upstream's forward, so that work saved counts as speed; shares are of the measured bfloat16 peak.
  Each also for transformers' `GroundingDinoForObjectDetection` and `SamModel`, in batches and float16 on a GPU, and how
  the build compares to the sum of these and of our codes: their time without reading, resizing and labelling.
- `profile`: the kernels of the slowest of our stages.
- `flips`: labels and codes of the build against one in float32, both on the GPU.
- `compiled`, `float32`: stages again, compiled at their best size, and in float32. A row's label says what ran.

No Ray is needed. A machine without a network that has torch, torchvision, transformers, timm, OpenCV, pyarrow,
scikit-image and scikit-learn still wants 9 MB of wheels (its Python's version in the place of 3.12):

    P='addict annotated-types braceexpand obstore platformdirs pycocotools pydantic pydantic-core segment-anything
       supervision==0.6.0 taming-transformers typing-inspection webdataset yapf'   # versions as in requirements.lock
    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d wheels $P
    pip wheel --no-deps -w wheels groundingdino-py==0.4.0     # there is only its source, which is pure Python
    pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/site      # over there
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpu_build import build, compare, prepare, reference  # noqa: E402
from gpu_parity import parity  # noqa: E402
from gpu_stages import DETECTOR, Setting, Stage, matmul_tflops, measure, stages  # noqa: E402

_NOMINAL = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0}
"""bfloat16 TFLOP/s without sparsity, from the data sheets of the SXM parts where there are several."""


def main() -> None:
    arguments = parse()
    if arguments.step:
        print(json.dumps(reference(arguments)))
        return
    run = Run(arguments)
    try:
        run.all()
    finally:
        found = run.found | {"seconds": time.monotonic() - run.begun}
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1))
        if arguments.table:
            arguments.table.write_text(table(found))
        show(found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, a few images: tries out the script")
    parser.add_argument("--sam", choices=("vit-b", "vit-l", "vit-h"), default="vit-h", help="of the build")
    parser.add_argument("--images", type=int, help="of the build; 200, or 8 with --tiny")
    parser.add_argument("--reference-images", type=int, help="of them the reference has the first 24, or 4 with --tiny")
    parser.add_argument("--texts", type=int, choices=(1, 5), default=1, help="of an image of the build")
    parser.add_argument("--seconds", type=float, default=480, help="no section is begun that would take it beyond this")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help="all; on a CPU not `compiled`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the stages there, for docs/performance.md")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    on_gpu = arguments.device.startswith("cuda")
    arguments.only = arguments.only or [name for name in SECTIONS if on_gpu or name != "compiled"]
    arguments.images = arguments.images or (8 if arguments.tiny else 200)
    arguments.reference_images = min(arguments.images, arguments.reference_images or (4 if arguments.tiny else 24))
    return arguments


class Run:
    """What has been found so far, and how long it took."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.begun = time.monotonic()
        self.found: dict[str, Any] = {"machine": machine(self.device), "left_out": [], "failed": {}, "rows": []}
        self.folder = Path()

    @property
    def left(self) -> float:
        """Seconds."""
        return self.arguments.seconds - (time.monotonic() - self.begun)

    def all(self) -> None:
        """Every section for which there is time."""
        with tempfile.TemporaryDirectory() as folder:
            self.folder = Path(folder)
            for name, (needs, section) in SECTIONS.items():
                if name in self.arguments.only:
                    self._try(name, needs, lambda section=section: section(self))
        self.found["ratios_of_stages"] = self._ratios()
        self.found["to_transformers"] = self._to_transformers()

    def _try(self, name: str, needs: float, work: Callable[[], None]) -> bool:
        """Do a section or a part of one: whether there was time. What fails is kept, and the others go on."""
        if self.left < (0 if self.arguments.tiny else needs):
            self.found["left_out"].append(name)
            return False
        start = time.monotonic()
        try:
            work()
        except (Exception, SystemExit) as error:
            self.found["failed"][name] = f"{type(error).__name__}: {error}"[-2000:]
        print(f"{name}: {time.monotonic() - start:.0f} s, {self.left:.0f} s left", file=sys.stderr, flush=True)
        return True

    def parity(self) -> None:
        """The models against themselves on the CPU."""
        self.found["parity"] = parity(self.device, tiny=self.arguments.tiny)

    def peak(self) -> None:
        """Products of large matrices."""
        side = 512 if self.arguments.tiny else 8192
        formats = (torch.float32, torch.bfloat16) + ((torch.float16,) if self.device.type == "cuda" else ())
        rates = {str(dtype).removeprefix("torch."): matmul_tflops(self.device, dtype, side) for dtype in formats}
        nominal = next((rate for name, rate in _NOMINAL.items() if name in self.found["machine"]["device"]), None)
        self.found["peak"] = {"side": side, "measured": rates, "nominal_bfloat16": nominal}

    def build(self) -> None:
        """A whole build, and the reference."""
        prepare(self.arguments, self.folder)
        ours = self.found["build"] = build(self.arguments, self.folder, "auto", self.left)
        command = [sys.executable, __file__, *sys.argv[1:], "--step", "--folder", str(self.folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=max(1, self.left), check=True)
        theirs = self.found["reference"] = json.loads(done.stdout.strip().splitlines()[-1])
        self.found["ratio"] = ours["rate"] / theirs["rate"]
        self.found["agreement"] = compare(self.folder / "reference", self.folder / "auto" / "shards")

    def flips(self) -> None:
        """The build once more, in float32."""
        exact = self.found["build_float32"] = build(self.arguments, self.folder, "float32", self.left)
        self.found["ratio_to_float32"] = self.found["build"]["rate"] / exact["rate"]
        self.found["flips"] = {
            name: 1 - share
            for name, share in compare(self.folder / "float32" / "shards", self.folder / "auto" / "shards").items()
            if name != "kept"
        }

    def auto(self) -> None:
        """Stages at all sizes."""
        self._stages("auto", 15, lambda stage: self._measure(stage, stage.batches))

    def _ratios(self) -> dict[str, float]:
        """How many a stage by itself does in the time in which upstream's calls do one."""
        sam, texts = "tiny" if self.arguments.tiny else self.arguments.sam, self.arguments.texts
        theirs = self.found.get("reference", {}).get("stages_ms", {})
        names = {
            "encode": f"SAM {sam} encoder",
            "detect": f"Grounding DINO, {texts} text{'s' if texts > 1 else ''}",
            "tokens": "VQGAN f16 codes",
        }
        ratios = {}
        for stage, name in names.items():
            rows = [row for row in self.found["rows"] if row["stage"] == name and row["setting"] == "auto"]
            rates = [row["rate"] for row in rows if "rate" in row]
            if rates and stage in theirs:
                ratios[name] = max(rates) * theirs[stage] / 1000
        return ratios

    def _to_transformers(self) -> dict[str, float]:
        """How many ours does in the time in which transformers' classes do one: each stage, and the build."""
        best: dict[tuple[str, str], float] = {}
        for row in self.found["rows"]:
            if "rate" in row and not row["compiled"]:
                key = row["stage"], row["setting"]
                best[key] = max(best.get(key, 0.0), row["rate"])
        theirs = {name: rate for (name, setting), rate in best.items() if setting == "transformers"}
        ratios = {name: best[name, "auto"] / rate for name, rate in theirs.items() if (name, "auto") in best}
        build, sam, texts = self.found.get("build"), self.arguments.sam, self.arguments.texts
        parts = (f"{DETECTOR}, {texts} text{'s' if texts > 1 else ''}", f"SAM {sam} encoder")
        if build and all(name in theirs for name in parts) and ("VQGAN f16 codes", "auto") in best:
            seconds = sum(1 / theirs[name] for name in parts) + 1 / best["VQGAN f16 codes", "auto"]
            ratios["build"] = build["rate"] * seconds
        return ratios

    def float32(self) -> None:
        """Stages in float32, at their best sizes."""
        ours = [stage for stage in stages(self.arguments.tiny) if stage.ours]
        self._stages("float32", 20, lambda stage: self._measure(stage, self._best(stage), setting="float32"), ours)

    def compiled(self) -> None:
        """Stages compiled, at their best sizes."""
        made = [stage for stage in stages(self.arguments.tiny) if stage.compiles]
        self._stages("compiled", 90, lambda stage: self._measure(stage, self._best(stage), compiled=True), made)

    def profile(self) -> None:
        """The kernels of our slowest stage of those measured, at its best size."""
        rates = {row["stage"]: row["rate"] for row in self.found["rows"] if row["setting"] == "auto" and "rate" in row}
        ours = [stage for stage in stages(self.arguments.tiny) if stage.ours and stage.unit == "img"]
        slowest = min(ours, key=lambda stage: rates.get(stage.name, float("inf")))
        batch = self._best(slowest)[0]
        run = slowest.make(self.device, "auto", 0)(batch)
        run()
        with torch.profiler.profile() as profiler:
            run()
        by = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=70)
        self.found["profile"] = {"stage": slowest.name, "batch": batch, "kernels": table}

    def _stages(self, name: str, needs: float, work: Callable[[Stage], None], some: list[Stage] | None = None) -> None:
        for stage in some if some is not None else stages(self.arguments.tiny):
            of = stage.name if stage.ours else f"{stage.name}, transformers"
            self._try(f"{name}: {of}", needs, lambda stage=stage: work(stage))

    def _measure(
        self, stage: Stage, batches: tuple[int, ...], setting: Setting = "auto", *, compiled: bool = False
    ) -> None:
        flops = stage.flops(self.device)
        peak = self.found.get("peak", {"measured": {}, "nominal_bfloat16": None})
        for row in measure(stage, self.device, setting, batches=batches, compiled=compiled):
            if "rate" in row:
                row["tflop"] = flops / 1e12
                row["tflops"] = row["rate"] * flops / 1e12
                if top := peak["measured"].get("bfloat16"):
                    row["of_measured_peak"] = row["tflops"] / top
                if top := peak["nominal_bfloat16"]:
                    row["of_nominal_peak"] = row["tflops"] / top
            self.found["rows"].append(row)

    def _best(self, stage: Stage) -> tuple[int, ...]:
        rows = [row for row in self.found["rows"] if row["stage"] == stage.name and "rate" in row]
        rows = [row for row in rows if row["setting"] == "auto"]
        return (max(rows, key=lambda row: row["rate"])["batch"],) if rows else stage.batches[-1:]


SECTIONS: dict[str, tuple[float, Callable[[Run], None]]] = {
    "parity": (60, Run.parity),
    "peak": (10, Run.peak),
    "auto": (20, Run.auto),
    "build": (120, Run.build),
    "flips": (70, Run.flips),
    "compiled": (90, Run.compiled),
    "profile": (20, Run.profile),
    "float32": (20, Run.float32),
}
"""Seconds that each needs at least, and what it does."""


def machine(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "memory_gb": torch.cuda.get_device_properties(device).total_memory / 1e9 if on_gpu else None,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
    }


def table(found: dict[str, Any]) -> str:
    """Stages at their best sizes, and the build, in Markdown."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found["rows"]:
        key = row["stage"], "compiled" if row["compiled"] else row["setting"]
        if row.get("rate", 0) > best.get(key, {"rate": 0})["rate"]:
            best[key] = row
    ways = ("transformers", "auto", "compiled", "float32")
    lines = [f"| a second | {' | '.join(ways)} |", "|---" * (len(ways) + 1) + "|"]
    for stage in dict.fromkeys(name for name, _ in best):
        rates = [f"{best[stage, way]['rate']:.1f}" if (stage, way) in best else "" for way in ways]
        lines.append(f"| {stage} | {' | '.join(rates)} |")
    builds = [name for name in ("reference", "build", "build_float32") if name in found]
    lines += [f"| {name.replace('_', ' in ')} | | {found[name]['rate']:.1f} | | |" for name in builds]
    return "\n".join([*lines, ""])


def show(found: dict[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()))
    if "peak" in found:
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in found["peak"]["measured"].items())
        print(f"TFLOP/s of {found['peak']['side']}^3: {rates}; data sheet {found['peak']['nominal_bfloat16']}")
    print(f"\n{'':24}{'setting':13}{'batch':>6}{'a second':>10}{'TFLOP':>8}{'TFLOP/s':>9}{'of peak':>9}{'MB':>8}")
    for row in found["rows"]:
        line = f"{row['stage']:24}{'compiled' if row['compiled'] else row['setting']:13}{row['batch']:6}"
        if "rate" not in row:
            print(f"{line} {row['error']}")
            continue
        arithmetic = f"{row['tflop']:8.3f}{row['tflops']:9.1f}"
        share = f"{row['of_measured_peak']:9.1%}" if "of_measured_peak" in row else f"{'':9}"
        print(f"{line}{row['rate']:10.1f}{arithmetic}{share}{row['peak_mb']:8.0f}")
    for name in ("build", "reference", "build_float32"):
        if name in found:
            print(f"\n{name}: {json.dumps(found[name])}")
    if "profile" in found:
        print("\n{stage}, {batch} at a time\n{kernels}".format(**found["profile"]))
    for name in (
        "parity",
        "ratio",
        "ratios_of_stages",
        "to_transformers",
        "ratio_to_float32",
        "agreement",
        "flips",
        "left_out",
        "failed",
        "seconds",
    ):
        if found.get(name):
            print(f"{name}: {json.dumps(found[name])}")


if __name__ == "__main__":
    main()
