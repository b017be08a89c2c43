"""What each fast setting changes: labels and codes against float32 on the same images, and against truth.

    python benchmarks/precision.py                                      # demo models, 100 scenes: 2 minutes on 2 cores
    python benchmarks/precision.py --models official-size --images 6    # random weights: some minutes

`flipped` is the share of all patches whose label differs from float32's, `of kept` the same number over the patches
that float32 keeps, `codes` the share of codes that differ; F1 and IoU are against the scenes' truth. Official size has
no truth, and random weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from reference_data import CAPTIONS, Contest

from patchmint import grid_preset
from patchmint.config import MODEL_PRESETS, LabelsConfig, ModelsConfig, TokensConfig
from patchmint.demo.scenes import Scene, make_scene
from patchmint.geometry.rle import encode_masks
from patchmint.interfaces import Instances
from patchmint.judging.judge import touched_patches
from patchmint.judging.metrics import f1_and_iou
from patchmint.labelers.grounded_sam import GroundedSam, build_grounded_sam
from patchmint.labelers.patches import label_texts
from patchmint.tokenizers.build import build_tokenizer
from patchmint.types import RgbImage, Text

GRID = grid_preset("llava-1.5-finetune")
_SEED = 7_300_003
_BATCH = 8


@dataclass(frozen=True)
class Setting:
    """Which parts are reduced, and how masks are measured."""

    name: str
    detector: str = "float32"
    masker: str = "float32"
    coverage: str = "exact"


LABELS = (
    Setting("float32"),
    Setting("detector bfloat16", detector="bfloat16"),
    Setting("masker bfloat16", masker="bfloat16"),
    Setting("both bfloat16 (auto)", "bfloat16", "bfloat16"),
    Setting("both, fast coverage", "bfloat16", "bfloat16", "fast"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=("demo", "official-size"), default="demo")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--contest", type=Path, help="contest.json that reference.py --keep left, for its weights")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for table in found.values():
        for name, row in table.items():
            print(f"{name:24} " + "  ".join(f"{key} {value:.4f}" for key, value in row.items()))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    scenes: list[Scene] = []
    if arguments.models == "demo":
        models = MODEL_PRESETS["demo"]
        scenes = [make_scene(_SEED, number) for number in range(arguments.images)]
        images = [scene.image for scene in scenes]
        texts = [[Text(text.content) for text in scene.texts] for scene in scenes]
    else:
        contest = official(arguments, folder)
        roles = ("detector", "vocabulary", "masker", "tokenizer")
        models = ModelsConfig(**{role: getattr(contest, role) for role in roles})
        paths = sorted(Path(contest.data).glob("*/*.jpg"))[: arguments.images]
        images = [np.asarray(Image.open(path)) for path in paths]
        texts = [[Text(CAPTIONS[index % len(CAPTIONS)])] for index in range(len(images))]
    return {"labels": label_rows(models, images, texts, scenes), "codes": code_rows(models, images)}


def official(arguments: argparse.Namespace, folder: Path) -> Contest:
    if arguments.contest is not None:
        return Contest.load(arguments.contest)
    from reference_weights import official_contest

    with torch.inference_mode():
        return official_contest(folder, arguments.images, 1, "vit-b")


def label_rows(
    models: ModelsConfig, images: list[RgbImage], texts: list[list[Text]], scenes: list[Scene]
) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    exact: np.ndarray | None = None
    for setting in LABELS:
        segmenter = build(models, setting)
        start = time.perf_counter()
        found = in_batches(segmenter.segment, images, texts)
        seconds = (time.perf_counter() - start) / len(images)
        labels = flat_labels(found, images, texts)
        exact = labels if exact is None else exact
        row = {
            "flipped": float((labels != exact).mean()),
            "of kept": float((labels != exact).sum() / max(1, exact.sum())),
            "kept": float(labels.mean()),
        }
        if scenes:
            agreement = []
            for scene, instances in zip(scenes, found, strict=True):
                placement = GRID.place(scene.size)
                selector = label_texts(instances, len(scene.texts), placement, 0.0).selector
                for text, selected in zip(scene.texts, selector, strict=True):
                    true = touched_patches(encode_masks(scene.mask(text.objects)[None])[0], placement)
                    agreement += [f1_and_iou(selected > 0, true)] if text.objects else []
            row |= dict(zip(("f1", "iou"), np.mean(agreement, axis=0).tolist(), strict=True))
        rows[setting.name] = row | {"s an image": seconds}
    return rows


def build(models: ModelsConfig, setting: Setting) -> GroundedSam:
    """Detector of one build, masker of another."""
    labels = LabelsConfig(coverage=setting.coverage)
    found = build_grounded_sam(models, labels, "cpu", setting.detector)
    return GroundedSam(found.detector, build_grounded_sam(models, labels, "cpu", setting.masker).masker)


def flat_labels(found: list[Instances], images: list[RgbImage], texts: list[list[Text]]) -> np.ndarray:
    """All labels of all texts, one after the other."""
    grids = [
        label_texts(instances, len(each), GRID.place((image.shape[0], image.shape[1])), 0.0).selector
        for instances, image, each in zip(found, images, texts, strict=True)
    ]
    return np.concatenate([grid.ravel() for grid in grids]) > 0


def code_rows(models: ModelsConfig, images: list[RgbImage]) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    exact: np.ndarray | None = None
    for precision in ("float32", "bfloat16"):
        tokenizer = build_tokenizer(models, TokensConfig(), "cpu", precision)
        start = time.perf_counter()
        tokens = tokenizer.tokenize(images)
        seconds = (time.perf_counter() - start) / len(images)
        codes = np.concatenate([each.codes.ravel() for each in tokens])
        exact = codes if exact is None else exact
        rows[f"tokenizer {precision}"] = {"codes": float((codes != exact).mean()), "s an image": seconds}
    return rows


def in_batches(segment: Callable[..., list[Instances]], images: list[Any], texts: list[Any]) -> list[Instances]:
    return [
        found
        for start in range(0, len(images), _BATCH)
        for found in segment(images[start : start + _BATCH], texts[start : start + _BATCH])
    ]


if __name__ == "__main__":
    main()
