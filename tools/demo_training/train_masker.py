"""Trains the demo's SAM: boxes that miss a little, masks of what is seen in them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional

from patchmint.demo.scenes import Scene, make_scene
from patchmint.labelers.sam.masker import SamMasker
from patchmint.labelers.sam.masks import input_size, resize, scale_boxes
from patchmint.labelers.sam.model import untrained
from tools.demo_training.measure import mask_ious
from tools.demo_training.models import FILES, MASKER, save_weights

_BOXES = 4
_JITTER = 0.09
# Standard deviation of a box side's error, as a share of the box: more than the detector's, so that it is forgiven.
_JITTER_PX = 1.5


class MaskerTask:
    """SAM's image encoder, prompt encoder and mask decoder, trained together."""

    name = "masker"

    def __init__(self, seed: int, held_out: int, batch: int = 8, scenes: int = 60) -> None:
        self.model: nn.Module = untrained(MASKER, seed)
        self.memory: dict[str, Tensor] = {}
        self._seed, self._held_out, self._batch, self._scenes = seed, held_out, batch, scenes

    def losses(self, step: int) -> dict[str, Tensor]:
        """Cross entropy and Dice loss (arXiv 2304.02643, appendix A, without its focal weight)."""
        sam = cast(Sam, self.model)
        rng = np.random.default_rng((self._seed, step, 1))
        scenes = [make_scene(self._seed, step * self._batch + row, texts=0) for row in range(self._batch)]
        pixels = [torch.tensor(resize(scene.image, input_size(scene.size, MASKER.image_size))) for scene in scenes]
        squares = torch.stack([sam.preprocess(image.permute(2, 0, 1).float()) for image in pixels])
        logits, targets = [], []
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = sam.image_encoder(squares)
        for scene, embedding in zip(scenes, embeddings, strict=True):
            chosen = rng.permutation(len(scene.objects))[:_BOXES]
            boxes = scale_boxes(jittered(scene.boxes()[chosen], rng), scene.size, input_size(scene.size, 256))
            with torch.autocast("cpu", torch.bfloat16):
                logits.append(_decode(sam, embedding[None], torch.from_numpy(boxes)))
            targets.append(np.stack([_target(scene, int(index)) for index in chosen]))
        return mask_losses(torch.cat(logits)[:, 0].float(), torch.from_numpy(np.concatenate(targets)))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean IoU of masks at the image's size: from true boxes, and from boxes that miss."""
        masker = SamMasker(cast(Sam, model))
        rng = np.random.default_rng(0)
        exact: list[float] = []
        missed: list[float] = []
        for number in range(self._scenes):
            scene = make_scene(self._held_out, number, texts=0)
            boxes = scene.boxes()
            found = masker.masks([scene.image] * 2, [boxes, jittered(boxes, rng)])
            exact += mask_ious(scene, found[0])
            missed += mask_ious(scene, found[1])
        return {
            "mask_iou": float(np.mean(exact)),
            "mask_iou_jittered": float(np.mean(missed)),
            "mask_iou_worst_tenth": float(np.quantile(exact, 0.1)),
        }

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the weights."""
        save_weights(model, MASKER, folder / FILES["masker"])


def jittered(boxes: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Boxes (N, 4) whose sides miss by a tenth or so."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = boxes + rng.normal(size=boxes.shape) * (sides * rng.uniform(0, _JITTER) + _JITTER_PX * rng.random())
    low, high = np.minimum(moved[:, :2], moved[:, 2:] - 2), np.maximum(moved[:, 2:], moved[:, :2] + 2)
    return np.concatenate([low, high], axis=1).astype(np.float32)


def mask_losses(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Losses of masks (N, n, n); targets are shares of covered area, 0..1."""
    # Counted against the object's size: otherwise the empty rest of the picture drowns small objects.
    weight = targets.sum((1, 2), keepdim=True) + 30
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    share = logits.sigmoid()
    overlap = 2 * (share * targets).sum((1, 2))
    dice = 1 - (overlap + 1) / (share.square().sum((1, 2)) + targets.square().sum((1, 2)) + 1)
    return {"entropy": (entropy / weight).sum((1, 2)).mean(), "dice": dice.mean()}


def _decode(sam: Sam, embedding: Tensor, boxes: Tensor) -> Tensor:
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
    logits, _ = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    return cast(Tensor, logits)


def _target(scene: Scene, index: int) -> npt.NDArray[np.float32]:
    """Share of each logit's cell that the object covers: float32 (n, n)."""
    height, width = input_size(scene.size, MASKER.image_size)
    mask = Image.fromarray((scene.ids == index).astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    square = np.zeros((MASKER.image_size, MASKER.image_size), dtype=np.float32)
    square[:height, :width] = np.asarray(mask)
    step = MASKER.patch_size // 4
    side = MASKER.image_size // step
    return np.asarray(square.reshape(side, step, side, step).mean((1, 3)), dtype=np.float32)
