"""Small things in large images: demo scenes pasted at their own size into large backgrounds, with `labels.tiles`.

    python benchmarks/tiles.py --scenes 10 --side 224 --size 2400x3200

F1 of patches (LLaVA 1.5's grid on the large image) without tiles, with tiles, and of the scene cut out and its masks
pasted back: what the detector would reach if it saw nothing else. Boxes of things are counted against the truth.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter

import numpy as np

from patchmint.api import Annotator, DemoWarning
from patchmint.demo import FRESH_SEED
from patchmint.demo.scenes import draw_scene, make_scene
from patchmint.demo.score import f1_and_iou
from patchmint.geometry import RleMasks
from patchmint.geometry.rle import decode_mask, encode_masks
from patchmint.labelers.grounding_dino.detector import overlaps


def main() -> None:
    """Measure, and print a line a scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=10, help="of those whose text names something there")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--size", default="2400x3200")
    asked = parser.parse_args()
    height, width = map(int, asked.size.split("x"))
    warnings.simplefilter("ignore", DemoWarning)
    plain, tiled = (
        Annotator.from_config({"models": "demo", "tokens": None, "labels": {"tiles": side}}, device="cpu")
        for side in (None, asked.side)
    )
    scores, counts, number = [], Counter[str](), asked.first
    while len(scores) < asked.scenes:
        scene, number = make_scene(FRESH_SEED, number, texts=1), number + 1
        (text,) = scene.texts
        things = sorted({thing for phrase in text.phrases for thing in phrase.objects})
        if not things:
            continue
        rng = np.random.default_rng((FRESH_SEED, number))
        top, left = (int(rng.integers(0, room + 1)) for room in np.subtract((height, width), scene.size))
        window = np.s_[top : top + scene.size[0], left : left + scene.size[1]]
        canvas = draw_scene((height, width), (), (FRESH_SEED, number)).image.copy()
        canvas[window] = scene.image
        truth, pasted = np.zeros((2, height, width), dtype=np.bool_)
        truth[window] = np.isin(scene.ids, things)
        cut, small, large = (
            annotator.annotate(image, text.content)
            for annotator, image in ((plain, scene.image), (plain, canvas), (tiled, canvas))
        )
        for mask in cut.masks:
            pasted[window] |= decode_mask(mask) > 0
        expected, ceiling = (
            RleMasks(encode_masks(each[None])).coverage([0], large.placement) > 0 for each in (truth, pasted)
        )
        labels = (small.selector[0] > 0, large.selector[0] > 0, ceiling)
        scores.append([f1_and_iou(each, expected)[0] for each in labels])
        boxes = scene.boxes()[things] + np.float32([left, top, left, top])
        found = np.float32([phrase.box for phrase in large.phrases]).reshape(-1, 4)
        hits = overlaps(found, boxes) > 0.5
        spans = [[large.phrases[row].span for row in np.flatnonzero(column)] for column in hits.T]
        counts += Counter(
            things=len(things), found=sum(map(bool, spans)), twice=sum(len(each) > len(set(each)) for each in spans)
        )
        scenes_box = np.float32([[left, top, left + scene.size[1], top + scene.size[0]]])
        counts["elsewhere"] += int((overlaps(found, scenes_box) == 0).sum())
        one, with_tiles, cut_out = scores[-1]
        print(
            f"scene {number - 1}: F1 {one:.3f} without, {with_tiles:.3f} with tiles, {cut_out:.3f} cut out", flush=True
        )
    one, with_tiles, cut_out = np.mean(scores, axis=0)
    print(f"{len(scores)} scenes in {asked.size}, tiles of {asked.side}; boxes of things: {dict(counts)}")
    print(f"mean F1 {one:.3f} without, {with_tiles:.3f} with tiles, {cut_out:.3f} cut out")


if __name__ == "__main__":
    main()
