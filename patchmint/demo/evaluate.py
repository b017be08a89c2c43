"""Judges all demo models together, as the pipeline runs them: `python -m patchmint.demo.evaluate WEIGHTS`.

Prints a line a setting, or JSON. Scenes are of a seed that nothing was trained or tuned on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from patchmint.demo.measure import judge_labels, mask_ious
from patchmint.demo.models import FILES, VOCABULARY_FILE
from patchmint.demo.scenes import Scene, make_scene
from patchmint.geometry import grid_preset
from patchmint.geometry.processing import fit_image
from patchmint.labelers.grounded_sam import GroundedSam
from patchmint.labelers.grounding_dino.detector import GroundingDino
from patchmint.labelers.grounding_dino.model import load_grounding_dino
from patchmint.labelers.grounding_dino.prompts import Vocabulary
from patchmint.labelers.sam import SamMasker, load_sam
from patchmint.tokenizers.vqgan import VqganTokenizer, load_vqgan
from patchmint.weights.loading import load_state

FRESH_SEED = 7_000_003


def load_segmenter(folder: Path) -> GroundedSam:
    """Grounding DINO and SAM from a folder of demo weights, with the pipeline's default thresholds."""
    model, arch = load_grounding_dino(load_state(folder / FILES["detector"]))
    detector = GroundingDino(model, arch, Vocabulary.from_file(folder / VOCABULARY_FILE))
    return GroundedSam(detector, SamMasker(load_sam(load_state(folder / FILES["masker"]))))


def judge_segmenter(segmenter: GroundedSam, count: int, seed: int = FRESH_SEED) -> dict[str, dict[str, float]]:
    """Figures of patch labels by setting: what is asked, how, on which grid, of which images."""
    plain = [make_scene(seed, number, texts=2) for number in range(count)]
    four = [make_scene(seed + 1, number, texts=4) for number in range(count // 2)]
    wide = [make_scene(seed + 2, number, size=(160, 400), texts=2) for number in range(count // 2)]
    longest = [_with_longest(make_scene(seed + 3, number, texts=12)) for number in range(count // 2)]
    settings: dict[str, tuple[list[Scene], str, bool]] = {
        "default": (plain, "llava-1.5-finetune", False),
        "phrases spelled out": (plain, "llava-1.5-finetune", True),
        "crop": (plain, "llava-1.5-pretrain", False),
        "anyres": (plain[: count // 2], "llava-1.6", False),
        "4 texts an image": (four, "llava-1.5-finetune", False),
        "images of 5:2": (wide, "llava-1.5-finetune", False),
        "longest texts": (longest, "llava-1.5-finetune", False),
    }
    return {
        name: judge_labels(segmenter, scenes, grid_preset(grid), phrases=phrases).summary()
        for name, (scenes, grid, phrases) in settings.items()
    }


def judge_masker(masker: SamMasker, count: int, seed: int = FRESH_SEED) -> float:
    """Mean IoU of masks from true boxes."""
    ious: list[float] = []
    for number in range(count):
        scene = make_scene(seed, number, texts=0)
        ious += mask_ious(scene, masker.masks([scene.image], [scene.boxes()])[0])
    return float(np.mean(ious))


def judge_tokenizer(folder: Path, count: int, fit: str, seed: int = FRESH_SEED) -> dict[str, float]:
    """Mean PSNR in dB of pictures drawn from their codes, and the share of codes that occur."""
    model = load_vqgan(load_state(folder / FILES["tokenizer"]))
    tokenizer = VqganTokenizer(model, name="demo", size=256, fit=fit)
    return psnr_and_use(tokenizer, [make_scene(seed, number, texts=0) for number in range(count)])


def psnr_and_use(tokenizer: VqganTokenizer, scenes: list[Scene]) -> dict[str, float]:
    """Mean PSNR in dB of pictures drawn from their codes, and the share of the codebook that occurs in them."""
    errors = []
    used: set[int] = set()
    cells = tokenizer.spec.cells
    assert cells is not None, "a VQGAN's codes have places"
    for scene in scenes:
        tokens = tokenizer.tokenize([scene.image])
        truth = fit_image(scene.image, cells)[0].astype(np.float64)
        errors.append(float(np.square(tokenizer.decode(tokens)[0] - truth).mean()))
        used.update(np.unique(tokens[0].codes).tolist())
    psnr = 10 * np.log10(255**2 / np.maximum(errors, 1e-6))
    return {"psnr": float(psnr.mean()), "codes_used": len(used) / tokenizer.spec.codebook_sizes[0]}


def _with_longest(scene: Scene) -> Scene:
    longest = max(scene.texts, key=lambda text: len(text.content))
    return Scene(scene.jpeg, scene.image, scene.objects, scene.ids, (longest,))


def main() -> None:
    """Judge a folder of weights; what isn't there is left out."""
    parser = argparse.ArgumentParser(prog="python -m patchmint.demo.evaluate", description="Judge demo models.")
    parser.add_argument("weights", type=Path, help="folder of detector, masker, tokenizer weights and vocab.txt")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    parts: list[tuple[tuple[str, ...], Callable[[], dict[str, dict[str, float]]]]] = [
        (("detector", "masker"), lambda: judge_segmenter(load_segmenter(options.weights), options.scenes)),
        (
            ("masker",),
            lambda: {
                "masks of true boxes": {
                    "mask_iou": judge_masker(
                        SamMasker(load_sam(load_state(options.weights / FILES["masker"]))), options.scenes
                    )
                }
            },
        ),
        (
            ("tokenizer",),
            lambda: {f"codes, {fit}": judge_tokenizer(options.weights, options.scenes, fit) for fit in ("pad", "crop")},
        ),
    ]
    for roles, judge in parts:
        if all((options.weights / FILES[role]).is_file() for role in roles):
            figures |= judge()
    if options.json:
        print(json.dumps(figures))
    else:
        for name, values in figures.items():
            print(f"{name:22}", " ".join(f"{key} {value:.4f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
