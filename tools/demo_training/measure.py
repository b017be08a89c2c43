"""How right models are, against scenes' truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from patchmint.demo import score
from patchmint.demo.scenes import Scene
from patchmint.geometry import Grid, Placement, RleMasks
from patchmint.geometry.rle import Masks, encode_masks
from patchmint.interfaces import Segmenter
from patchmint.judging.judge import Found, Judge, touched_patches
from patchmint.judging.truth import TruePhrase, TrueText, TrueThing
from patchmint.labelers.patches import label_texts
from patchmint.types import RgbImage, Rle, Size, Text

_LEAST_IOU = 0.1


def judge_labels(segmenter: Segmenter, scenes: Iterable[Scene], grid: Grid, *, phrases: bool) -> dict[str, float]:
    """`patchmint.demo.score.label_figures` of scenes; arguments as of `judged`."""
    return score.label_figures(judged(segmenter, scenes, grid, phrases=phrases))


def judged(segmenter: Segmenter, scenes: Iterable[Scene], grid: Grid, *, phrases: bool) -> Judge:
    """Label scenes and compare.

    Args:
        segmenter: the models.
        scenes: with their texts.
        grid: the patch grid.
        phrases: whether the texts' phrases are spelled out for the segmenter.
    """
    judge = Judge()
    for scene in scenes:
        texts = [text.with_phrases() if phrases else Text(text.content) for text in scene.texts]
        found, placement = segmenter.segment([scene.image], [texts])[0], grid.place(scene.size)
        labels = label_texts(found, len(scene.texts), placement, 0.0).selector > 0
        for index, text in enumerate(true_texts(scene)):
            mine = np.flatnonzero(found.text_index == index)
            answers = [
                Found((tuple(found.spans[n].tolist()),), float(found.scores[n]), tuple(found.boxes[n].tolist()))
                for n in mine
            ]
            true = true_patches(scene, scene.texts[index].objects, placement)
            judge.add_text(text, answers, scene.size, (labels[index], true))
        judge.end_image()
    return judge


def true_texts(scene: Scene) -> list[TrueText]:
    """What each text of a scene is about."""
    boxes = scene.boxes().tolist()
    things = [TrueThing(tuple(box), mask) for box, mask in zip(boxes, _masks(scene), strict=True)]
    return [
        TrueText(
            text.content,
            tuple(TruePhrase(each.span, tuple(things[index] for index in each.objects)) for each in text.phrases),
        )
        for text in scene.texts
    ]


def _masks(scene: Scene) -> tuple[Rle, ...]:
    return encode_masks(scene.ids == np.arange(len(scene.objects))[:, None, None])


def true_patches(scene: Scene, objects: tuple[int, ...], placement: Placement) -> npt.NDArray[np.bool_]:
    """Patches that any of the objects touches: bool `placement.shape`."""
    return touched_patches(encode_masks(scene.mask(objects)[None])[0], placement)


class TrueMasker:
    """Stands in for a masker when a detector is judged alone: a box's mask is that of the object that it fits best."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self._scenes = {id(scene.image): scene for scene in scenes}

    def masks(self, images: Sequence[RgbImage], boxes: Sequence[npt.NDArray[np.float32]]) -> list[RleMasks]:
        """Masks of each image's boxes (N, 4); a box that fits nothing is its own mask."""
        answers = []
        for image, of_image in zip(images, boxes, strict=True):
            scene = self._scenes[id(image)]
            overlaps = box_ious(of_image, scene.boxes())
            masks = [
                scene.ids == int(row.argmax()) if row.max(initial=0) > _LEAST_IOU else _filled(box, scene.size)
                for box, row in zip(of_image, overlaps, strict=True)
            ]
            answers.append(RleMasks(encode_masks(np.array(masks, dtype=np.bool_).reshape(-1, *scene.size))))
        return answers


def box_ious(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """IoU of each of N boxes with each of M, all XYXY: float32 (N, M)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = (high - low).clip(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    return np.asarray(both / (areas[0][:, None] + areas[1][None] - both).clip(min=1e-9), dtype=np.float32)


def mask_ious(scene: Scene, masks: Masks) -> list[float]:
    """IoU of one mask for each of the scene's objects, in order, with what is seen of it."""
    return score.mask_ious(masks, (scene.ids == index for index in range(len(scene.objects))))


def _filled(box: npt.NDArray[np.float32], size: Size) -> npt.NDArray[np.bool_]:
    mask = np.zeros(size, dtype=np.bool_)
    left, top, right, bottom = box.round().astype(int)
    mask[top:bottom, left:right] = True
    return mask
