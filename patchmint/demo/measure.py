"""How right labels are, against scenes' truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from patchmint.demo import agreement
from patchmint.demo.agreement import f1_and_iou, touched_patches
from patchmint.demo.scenes import Scene
from patchmint.geometry import PatchGrid, Placement, RleMasks
from patchmint.geometry.masks import Masks
from patchmint.geometry.rle import encode_masks
from patchmint.interfaces import Instances, Segmenter
from patchmint.labelers.patches import label_texts
from patchmint.types import RgbImage, Size, Text

_LEAST_IOU = 0.1


@dataclass
class LabelFigures:
    """Figures of patch labels, gathered scene by scene.

    Attributes:
        f1, iou: of each text that names something present, its patches against the true ones.
        absent: of each phrase that names something absent, whether anything was found for it.
        empty: of each text that names nothing present, whether any patch was labelled.
    """

    f1: list[float] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)
    absent: list[bool] = field(default_factory=list)
    empty: list[bool] = field(default_factory=list)

    def add(self, scene: Scene, found: Instances, grid: PatchGrid) -> None:
        """Compare what was found for all of a scene's texts with the truth."""
        placement = grid.place(scene.size)
        labels = label_texts(found, len(scene.texts), placement, 0.0).selector > 0
        for index, text in enumerate(scene.texts):
            truth = true_patches(scene, text.objects, placement)
            for phrase in text.phrases:
                if not phrase.objects:
                    spans = found.spans[found.text_index == index]
                    self.absent.append(bool(((spans[:, 0] < phrase.span[1]) & (spans[:, 1] > phrase.span[0])).any()))
            if not text.objects:
                self.empty.append(bool(labels[index].any()))
                continue
            f1, iou = f1_and_iou(labels[index], truth)
            self.f1.append(f1)
            self.iou.append(iou)

    def summary(self) -> dict[str, float]:
        """Means and shares; NaN where there was nothing to judge."""
        return {
            "f1": _mean(self.f1),
            "iou": _mean(self.iou),
            "absent_rate": _mean(self.absent),
            "empty_text_rate": _mean(self.empty),
        }


def judge_labels(segmenter: Segmenter, scenes: Sequence[Scene], grid: PatchGrid, *, phrases: bool) -> LabelFigures:
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
        figures.add(scene, segmenter.segment([scene.image], [texts])[0], grid)
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
    return agreement.mask_ious(masks, (scene.ids == index for index in range(len(scene.objects))))


def _filled(box: npt.NDArray[np.float32], size: Size) -> npt.NDArray[np.bool_]:
    mask = np.zeros(size, dtype=np.bool_)
    left, top, right, bottom = box.round().astype(int)
    mask[top:bottom, left:right] = True
    return mask


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
