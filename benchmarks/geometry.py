"""Patch coverage from SAM's logits: our ways against full-resolution upsampling and per-patch loops.

    python benchmarks/geometry.py [--json]

The reference is what people write today: SAM's `postprocess_masks` (bilinear to 1024 px, crop, bilinear to the image),
`> 0`, then a Python double loop over the patches with `mask[y0:y1, x0:x1].mean()`. Against it, for all masks of an
image, the median of several rounds, each with nothing cached:

- masks: the same full-resolution masks to coverage, against the loop alone;
- exact: the logits to the same coverage, without the masks, against upsampling and loop;
- fast: each logit taken for the pixels it stands for, against upsampling and loop.

`masks` and `exact` must give the reference's numbers where cell borders are pixel borders; else, where the reference
rounds borders to pixels, those of a slow loop with fractional borders. Ends with 1 where they don't. For `fast` it is
told how many cells flip between covered and not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.nn import functional

from patchmint.geometry import (
    Fit,
    PatchGrid,
    Placement,
    coverage_logits,
    coverage_share,
    grid_preset,
)
from patchmint.geometry.coverage import view_cuts
from patchmint.labelers.sam.masks import MaskCoverage, SamMasks, input_size

SIZES = ((480, 640), (960, 1280), (3000, 4000))
GRIDS = {
    "20 x 20, borders on pixels": PatchGrid(20, 20, 14, Fit.SQUASH),
    "llava-1.5-finetune": grid_preset("llava-1.5-finetune"),
}
INPUT_SIDE, LOW = 1024, 256
MASKS = 5
ROUNDS = 5
SAME = 1e-12


def blobs(seed: int) -> torch.Tensor:
    """Logits of a few objects with soft, slightly frayed outlines: float32 (MASKS, 1, LOW, LOW)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(MASKS, 1, 6, 6, generator=generator) - 0.8
    fine = torch.randn(MASKS, 1, LOW, LOW, generator=generator)
    return functional.interpolate(coarse, (LOW, LOW), mode="bicubic") * 8 + fine * 0.3


def upsample(logits: torch.Tensor, used: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """SAM's `postprocess_masks` and threshold: bool (H, W)."""
    large = functional.interpolate(logits[None], (INPUT_SIDE, INPUT_SIDE), mode="bilinear", align_corners=False)
    part = large[..., : used[0], : used[1]]
    return (functional.interpolate(part, size, mode="bilinear", align_corners=False) > 0)[0, 0].numpy()


def loop(mask: np.ndarray, placement: Placement) -> np.ndarray:
    """Coverage as people write it: borders rounded to pixels, a Python double loop."""
    y, x = (np.round(edges).astype(int).clip(0, n) for edges, n in zip(edges_of(placement), mask.shape, strict=True))
    result = np.zeros(placement.shape)
    for row in range(placement.rows):
        for col in range(placement.cols):
            patch = mask[y[row] : y[row + 1], x[col] : x[col + 1]]
            if patch.size:
                result[row, col] = patch.mean()
    return result


def slow_exact(mask: np.ndarray, placement: Placement) -> np.ndarray:
    """Coverage with fractional borders, cell by cell."""
    y, x = edges_of(placement)
    result = np.zeros(placement.shape)
    pixel_y, pixel_x = np.arange(mask.shape[0]), np.arange(mask.shape[1])
    for row in range(placement.rows):
        down = np.clip(np.minimum(y[row + 1], pixel_y + 1) - np.maximum(y[row], pixel_y), 0, None)
        band = down @ mask
        for col in range(placement.cols):
            across = np.clip(np.minimum(x[col + 1], pixel_x + 1) - np.maximum(x[col], pixel_x), 0, None)
            result[row, col] = (band * across).sum() / ((y[row + 1] - y[row]) * (x[col + 1] - x[col]))
    return result


def edges_of(placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    return placement.edges(placement.views[0])


def milliseconds(work: Callable[[], object]) -> float:
    """Median over rounds, after one that doesn't count."""
    times = []
    for _ in range(ROUNDS + 1):
        view_cuts.cache_clear()
        coverage_logits._plan.cache_clear()
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times[1:])


@dataclass(frozen=True)
class Result:
    """One grid on one image size; milliseconds an image."""

    grid: str
    image: str
    loop_ms: float
    masks_ms: float
    reference_ms: float
    exact_ms: float
    fast_ms: float
    ratio_masks: float
    ratio_exact: float
    ratio_fast: float
    checked_against: str
    exact_difference: float
    fast_flips: float
    reference_error: float


def measure(name: str, size: tuple[int, int]) -> Result:
    placement = GRIDS[name].place(size)
    used = input_size(size, INPUT_SIDE)
    logits = blobs(size[0])
    found = {mode: SamMasks(logits[:, 0].numpy(), size, INPUT_SIDE, mode) for mode in ("exact", "fast")}
    masks = [upsample(each, used, size) for each in logits]

    def ours(mode: MaskCoverage) -> list[np.ndarray]:
        return [found[mode].coverage([member], placement) for member in range(MASKS)]

    def from_masks() -> list[np.ndarray]:
        return [coverage_share(mask, placement) for mask in masks]

    borders_on_pixels = all((edges == np.round(edges)).all() for edges in edges_of(placement))
    looped = np.stack([loop(mask, placement) for mask in masks])
    wanted = looped if borders_on_pixels else np.stack([slow_exact(mask, placement) for mask in masks])
    looping = milliseconds(lambda: [loop(mask, placement) for mask in masks])
    reference = milliseconds(lambda: [loop(upsample(each, used, size), placement) for each in logits])
    masks_ms, exact_ms, fast_ms = (
        milliseconds(work) for work in (from_masks, lambda: ours("exact"), lambda: ours("fast"))
    )
    return Result(
        grid=name,
        image=f"{size[1]} x {size[0]}",
        loop_ms=round(looping, 3),
        masks_ms=round(masks_ms, 3),
        reference_ms=round(reference, 3),
        exact_ms=round(exact_ms, 3),
        fast_ms=round(fast_ms, 3),
        ratio_masks=round(looping / masks_ms, 1),
        ratio_exact=round(reference / exact_ms, 1),
        ratio_fast=round(reference / fast_ms, 1),
        checked_against="the reference" if borders_on_pixels else "a slow loop with fractional borders",
        exact_difference=float(max(np.abs(each - wanted).max() for each in (from_masks(), ours("exact")))),
        fast_flips=float(((np.stack(ours("fast")) > 0) != (wanted > 0)).sum() / (MASKS * (placement.inside > 0).sum())),
        reference_error=float(np.abs(looped - wanted).max()),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    results = [measure(name, size) for name in GRIDS for size in SIZES]
    same = all(result.exact_difference <= SAME for result in results)
    setting = {"masks": MASKS, "rounds": ROUNDS, "threads": torch.get_num_threads()}
    if arguments.json:
        print(json.dumps({**setting, "same_numbers": same, "results": [asdict(each) for each in results]}, indent=2))
        return 0 if same else 1
    print(", ".join(f"{value} {name}" for name, value in setting.items()) + "; milliseconds an image")
    print(
        f"{'grid':28}{'image':>12}{'loop':>8}{'masks':>8}{'ratio':>7}"
        f"{'upsample+loop':>16}{'exact':>8}{'ratio':>7}{'fast':>8}{'ratio':>7}  numbers"
    )
    for r in results:
        print(
            f"{r.grid:28}{r.image:>12}{r.loop_ms:8.2f}{r.masks_ms:8.2f}{r.ratio_masks:7.1f}"
            f"{r.reference_ms:16.1f}{r.exact_ms:8.2f}{r.ratio_exact:7.1f}{r.fast_ms:8.2f}{r.ratio_fast:7.1f}"
            f"  exact {'same' if r.exact_difference <= SAME else 'DIFFER'} (to {r.exact_difference:.0e}), "
            f"fast flips {r.fast_flips:.2%}, loop off by up to {r.reference_error:.2f}"
        )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
