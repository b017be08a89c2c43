"""What the models would do on an H200, on paper: kernels, bytes, FLOPs, waits, and milliseconds by a roofline.

    python benchmarks/gpu_paper.py            # the table of the stages, in a minute, on any CPU
    python benchmarks/gpu_paper.py --json

The project's own code runs at official sizes on torch's fake CUDA tensors (`gpu_counts.py`), in the formats that `auto`
takes on a GPU. Counts are facts; milliseconds are a model: trust ratios and ranks, 30 % either way. `transformers_ms`
is the pipeline with transformers' detector and SAM encoder in the place of ours.

An image is 640 x 480; a pass of the detector holds nine of them, and each stage's figures are shares of an image. The
whole pipeline has SAM ViT-H, VQGAN f16-16384, and ten boxes a caption.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import gpu_transformers as theirs_of  # noqa: E402
from gpu_counts import Count, Counter, counting, on_cuda  # noqa: E402

from patchmint.compute.devices import computing_in, reduced_copy  # noqa: E402
from patchmint.features import arch as vit_arch  # noqa: E402
from patchmint.features.model import Vit  # noqa: E402
from patchmint.labelers.grounding_dino import arch as dino_arch  # noqa: E402
from patchmint.labelers.grounding_dino import model as dino_model  # noqa: E402
from patchmint.labelers.grounding_dino import transformer  # noqa: E402
from patchmint.labelers.grounding_dino.detector import GroundingDino  # noqa: E402
from patchmint.labelers.grounding_dino.prompts import Vocabulary  # noqa: E402
from patchmint.labelers.sam import arch as sam_arch  # noqa: E402
from patchmint.labelers.sam.masker import SamMasker  # noqa: E402
from patchmint.labelers.sam.model import build_sam  # noqa: E402
from patchmint.tokenizers.vqgan import arch as vqgan_arch  # noqa: E402
from patchmint.tokenizers.vqgan.model import Vqgan  # noqa: E402
from patchmint.tokenizers.vqgan.tokenizer import VqganTokenizer  # noqa: E402
from patchmint.types import Text  # noqa: E402

PHOTOGRAPH = np.zeros((480, 640, 3), np.uint8)
IMAGES = 9
"""Of the detector's pass."""
BOXES = 10
"""A caption."""
WORDS = 12
"""Of a caption's prompt, as tokens: what COCO's have with `[CLS]`, `[SEP]` and "."."""

DETECTOR = ("backbone", "text", "fusion", "decoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON in the place of the table")
    arguments = parser.parse_args()
    found = paper()
    print(json.dumps(found, indent=1) if arguments.json else table(found))


def paper() -> dict[str, Any]:
    """All figures: `stages`, shares of an image, as it is and compiled; `ms_1`, `ms_5` of the pipeline, and so on."""
    device = torch.device("cuda")
    stages: dict[str, Count] = {}
    for compiled in (False, True):
        as_what = ", compiled" if compiled else ""
        for captions in (1, 5):
            with counting() as counter:
                detect(counter, device, captions, compiled=compiled)
            for name in (*DETECTOR, "deformable attention"):
                stages[f"{name}, {captions}{as_what}"] = counter.of(name).per(IMAGES)
            stages[f"detector, {captions}{as_what}"] = counter.total.per(IMAGES)
        for name in ("vit-h", "vit-l", "vit-b"):
            counted, images = sam(name, device, compiled=compiled)
            stages[f"SAM {name} encoder{as_what}"] = counted.of("encode").per(images)
            stages["SAM decoder, 10 boxes"] = counted.of("decode").per(images)
        stages[f"VQGAN, batch 32{as_what}"] = vqgan(device, compiled=compiled).total.per(32)
    stages["transformers' detector, 1"] = transformers_classes(device, "detector").per(IMAGES)
    stages["transformers' SAM vit-h encoder"] = transformers_classes(device, "sam").per(8)
    stages["CLIP-L/14-336"] = vit(device).per(8)

    def pipeline(captions: int, as_what: str = "") -> float:
        parts = (f"detector, {captions}{as_what}", f"SAM vit-h encoder{as_what}", f"VQGAN, batch 32{as_what}")
        return 1e3 * sum((stages[name].seconds for name in parts), captions * stages["SAM decoder, 10 boxes"].seconds)

    def theirs(captions: int) -> float:
        each = stages["transformers' detector, 1"].seconds + stages["SAM decoder, 10 boxes"].seconds
        parts = ("transformers' SAM vit-h encoder", "VQGAN, batch 32")
        return 1e3 * sum((stages[name].seconds for name in parts), captions * each)

    found: dict[str, Any] = {}
    for captions in (1, 5):
        found[f"ms_{captions}"] = pipeline(captions)
        found[f"compiled_ms_{captions}"] = pipeline(captions, ", compiled")
        found[f"transformers_ms_{captions}"] = theirs(captions)
    for prefix, as_what in (("", ""), ("compiled_", ", compiled")):
        one = stages[f"detector, 1{as_what}"]
        found[f"{prefix}kernels_detector"] = round(one.kernels * IMAGES)
        found[f"{prefix}gbytes_detector"] = one.bytes / 1e9
    found["blocking_copies"] = round(stages["detector, 1"].blocking_copies * IMAGES)
    return found | {"stages": {name: count.as_row() for name, count in stages.items()}}


def table(found: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{'an image':34}{'ms':>8}{'GB':>8}{'TFLOP':>8}{'kernels':>9}{'starts':>8}{'waits':>7}"]
    for name, row in found["stages"].items():
        lines.append(
            f"{name:34}{row['ms']:8.2f}{row['gbytes']:8.2f}{row['tflop']:8.3f}{row['kernels']:9.1f}"
            f"{row['starts']:8.1f}{row['blocking_copies']:7.2f}"
        )
    lines.append(", ".join(f"{name} {value:.4g}" for name, value in found.items() if name != "stages"))
    return "\n".join(lines)


def detect(
    counter: Counter, device: torch.device, captions: int, images: int = IMAGES, *, compiled: bool = False
) -> None:
    """Count the detector at official size on a pass of images with so many captions each."""
    arch = dino_arch.OFFICIAL["groundingdino-swint-ogc"]
    model = on_cuda(partial(dino_model.untrained, arch))
    vocabulary = Vocabulary.of_characters(arch.text_vocabulary)
    detector = GroundingDino(model, arch, vocabulary, device=str(device), precision=torch.bfloat16, compiled=compiled)
    texts = [[Text("a" * (WORDS - 3))] * captions] * images
    with _noted(counter, _DINO_PARTS):
        for _ in range(1 + compiled):  # what comes twice becomes a graph
            counter.clear()
            detector.detect([PHOTOGRAPH] * images, texts)


def sam(name: str, device: torch.device, images: int | None = None, *, compiled: bool = False) -> tuple[Counter, int]:
    """Count SAM on as many pictures as it takes at once, with ten boxes each; how many those are."""
    with counting() as counter:
        model = on_cuda(partial(build_sam, sam_arch.OFFICIAL[f"sam-{name}"]))
        masker = SamMasker(model, device=str(device), precision=torch.bfloat16, compiled=compiled)
        images = images or masker._image_batch
        counter.clear()
        boxes = np.array([[10, 10, 200, 300]] * BOXES, np.float32)
        with _noted(counter, ((type(masker), "_encode", "encode"), (type(masker._decoder), "__call__", "decode"))):
            masker.masks([PHOTOGRAPH] * images, [boxes] * images)
    return counter, images


def transformers_classes(device: torch.device, which: str) -> Count:
    """Count the second call of transformers' own class, on nine images with a caption each or on eight pictures."""
    dino, vit = dino_arch.OFFICIAL["groundingdino-swint-ogc"], sam_arch.OFFICIAL["sam-vit-h"]
    with counting() as counter:
        if which == "sam":
            run = theirs_of.encode(theirs_of.reducing(on_cuda(partial(theirs_of.sam_of, vit)), device), vit, device)(8)
        else:
            model = theirs_of.reducing(on_cuda(partial(theirs_of.detector_of, dino)), device)
            run = theirs_of.detect(model, dino, 1, device, PHOTOGRAPH.shape[:2])(IMAGES)
        run()
        counter.clear()
        run()
    return counter.total


def vqgan(device: torch.device, images: int = 32, *, compiled: bool = False) -> Counter:
    """Count VQGAN f16-16384 on a batch."""
    with counting() as counter:
        model = on_cuda(partial(Vqgan, vqgan_arch.OFFICIAL["vqgan-imagenet-f16-16384"]))
        settings: dict[str, Any] = {"size": 256, "fit": "pad", "device": device, "precision": torch.float16}
        tokenizer = VqganTokenizer(model, name="", **settings, compiled=compiled)
        counter.clear()
        tokenizer.tokenize([np.zeros((256, 256, 3), np.uint8)] * images)
    return counter


def vit(device: torch.device, images: int = 8) -> Count:
    """Count CLIP-L/14-336 but for its last block on a batch."""
    arch = vit_arch.OFFICIAL["clip-vit-l-14-336"]
    with counting() as counter:
        model = reduced_copy(on_cuda(partial(Vit, arch)), torch.float16, device)
        pixels = torch.empty(images, 3, arch.image_px, arch.image_px, device=device)
        counter.clear()
        with torch.inference_mode(), computing_in(torch.float16, device):
            list(model.states(pixels, arch.layers - 1))
    return counter.total


_DINO_PARTS = (
    ("patchmint.labelers.grounding_dino.detector", "encode_images", "backbone"),
    ("patchmint.labelers.grounding_dino.detector", "encode_prompts", "text"),
    (transformer, "propose", "fusion"),
    (transformer, "refine", "decoder"),
    (transformer, "deformable_attention", "deformable attention"),
)


@contextmanager
def _noted(counter: Counter, parts: tuple[tuple[Any, str, str], ...]) -> Iterator[None]:
    """Kernels of these functions count under their names."""
    patches = []
    for owner, name, label in parts:
        owner = sys.modules[owner] if isinstance(owner, str) else owner
        patches.append(mock.patch.object(owner, name, _within(counter, label, getattr(owner, name))))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _within(counter: Counter, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any, **named: Any) -> Any:
        with counter.within(label):
            return function(*arguments, **named)

    return noted


if __name__ == "__main__":
    main()
