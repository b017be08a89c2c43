"""How right models are, against scenes' truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from patchmint.demo import score
from patchmint.demo.scenes import Scene
from patchmint.demo.score import LabelFigures, touched_patches
from patchmint.geometry import Grid, Placement, RleMasks
from patchmint.geometry.rle import Masks, encode_masks
from patchmint.interfaces import Segmenter
from patchmint.labelers.patches import label_texts
from patchmint.types import RgbImage, Size, Text

_LEAST_IOU = 0.1


def judge_labels(segmenter: Segmenter, scenes: Iterable[Scene], grid: Grid, *, phrases: bool) -> LabelFigures:
    """Label scenes and compare.

    Args:
        segmenter: the models.
        scenes: with their texts.
        grid: the patch grid.
        phrases: whether the texts' phrases are spelled out for the segmenter.
    """
    figures = LabelFigures()
    for scene in scenes:
        texts = [text.with_phrases() if phrases else Text(text.content) for text in scene.texts]
        found, placement = segmenter.segment([scene.image], [texts])[0], grid.place(scene.size)
        labels = label_texts(found, len(scene.texts), placement, 0.0).selector > 0
        for index, text in enumerate(scene.texts):
            spans = found.spans[found.text_index == index].tolist()
            for phrase in text.phrases:
                if not phrase.objects:
                    figures.add_absent(phrase.span, spans)
            figures.add(labels[index], true_patches(scene, text.objects, placement) if text.objects else None)
    return figures


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
