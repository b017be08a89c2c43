"""Small things in large images: demo scenes pasted at their own size into large backgrounds, with `labels.tiles`.

    python benchmarks/tiles.py --scenes 10 --side 224 --size 2400x3200

F1 of patches (LLaVA 1.5's grid on the large image) without tiles, with tiles, and of the scene cut out and its masks
pasted back: what the detector would reach if it saw nothing else. Boxes of things are counted against the truth:
"twice" are things with several boxes of one phrase; "at seams" are those of them whose boxes no tile finds alone. The
others are the detector's own, which also has some on scenes cut out ("twice cut out").
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter

import numpy as np
import numpy.typing as npt

from patchmint.api import Annotation, Annotator, DemoWarning
from patchmint.demo import FRESH_SEED
from patchmint.demo.scenes import draw_scene, make_scene
from patchmint.geometry import RleMasks
from patchmint.geometry.rle import decode_mask, encode_masks
from patchmint.judging.metrics import f1_and_iou
from patchmint.labelers.box_rules import overlaps
from patchmint.labelers.tiled import Tile, tiles_of
from patchmint.types import RgbImage, Span

Boxes = npt.NDArray[np.float32]


def twice(labels: Annotation, things: Boxes) -> list[Boxes]:
    """Where a phrase has several boxes of one thing (IoU over 0.5): those boxes, XYXY."""
    boxes = np.float32([phrase.box for phrase in labels.phrases]).reshape(-1, 4)
    found: list[Boxes] = []
    for hits in (overlaps(boxes, things) > 0.5).T:
        rows: dict[Span, list[int]] = {}
        for row in np.flatnonzero(hits):
            rows.setdefault(labels.phrases[row].span, []).append(row)
        found += [boxes[some] for some in rows.values() if len(some) > 1]
    return found


def in_one_tile(annotator: Annotator, image: RgbImage, text: str, side: int, boxes: Boxes) -> bool:
    """Whether the image or a tile of it has all of these boxes when it is looked at alone."""
    size = (image.shape[0], image.shape[1])
    for tile in (Tile.of(0, 0, 0, *size, size), *tiles_of(size, side)):
        if tile.has(boxes).all():
            alone = annotator.annotate(tile.of_image(image), text)
            own = np.float32([phrase.box for phrase in alone.phrases]).reshape(-1, 4)
            if (overlaps(boxes - np.float32([tile.left, tile.top] * 2), own) > 0.99).any(axis=1).all():
                return True
    return False


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
        doubles = twice(large, boxes)
        counts.update(
            {
                "things": len(things),
                "found": int(hits.any(axis=0).sum()),
                "twice": len(doubles),
                "at seams": sum(not in_one_tile(plain, canvas, text.content, asked.side, double) for double in doubles),
                "twice cut out": len(twice(cut, scene.boxes()[things])),
            }
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
