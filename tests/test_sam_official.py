"""SAM ViT-B at its official size: random weights in the official container, real photographs, upstream as the judge.

An image takes about 14 s to encode on two cores, so there are four encodings in all: one batch of two by patchmint, and
upstream's two.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry
from skimage import data
from sklearn.datasets import load_sample_image

from patchmint.errors import WeightsMismatchError
from patchmint.geometry.rle import decode_mask
from patchmint.labelers.sam.arch import OFFICIAL
from patchmint.labelers.sam.masker import SamMasker
from patchmint.labelers.sam.masks import SamMasks
from patchmint.labelers.sam.model import load_sam, untrained
from patchmint.types import RgbImage
from patchmint.weights.loading import StateFile, load_state

PHOTOS: list[RgbImage] = [data.chelsea(), np.ascontiguousarray(load_sample_image("china.jpg").transpose(1, 0, 2))]
"""300 x 451, which is scaled up; 640 x 427, upright."""


def boxes_in(image: RgbImage, count: int) -> np.ndarray:
    height, width, _ = image.shape
    corners = np.random.default_rng(height).random((count, 2, 2)) * (width, height)
    corners[0] = [(0, 0), (width, height)]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


BOXES = [boxes_in(PHOTOS[0], 5), boxes_in(PHOTOS[1], 3)]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> StateFile:
    """What our loader reads from a file laid out as `sam_vit_b_01ec64.pth`: a bare state dict."""
    path: Path = tmp_path_factory.mktemp("sam") / "sam_vit_b.pth"
    torch.save(untrained(OFFICIAL["sam-vit-b"], seed=0).state_dict(), path)
    return load_state(path)


@pytest.fixture(scope="module")
def upstream(state: StateFile) -> list[np.ndarray]:
    """Logits of upstream's predictor at each photograph's size."""
    model = sam_model_registry["vit_b"]()
    model.load_state_dict(state.tensors)
    predictor = SamPredictor(model)
    logits = []
    for image, boxes in zip(PHOTOS, BOXES, strict=True):
        predictor.set_image(image)
        logits.append(
            np.concatenate([predictor.predict(box=box, multimask_output=False, return_logits=True)[0] for box in boxes])
        )
    return logits


@pytest.fixture(scope="module")
def ours(state: StateFile) -> list[SamMasks]:
    """Masks of both photographs, encoded in one batch."""
    return SamMasker(load_sam(state), image_batch=2).masks(PHOTOS, BOXES)


@pytest.mark.parametrize("index", [0, 1])
def test_masks_of_a_batch_are_those_of_upstream_alone(
    ours: list[SamMasks], upstream: list[np.ndarray], index: int
) -> None:
    masks = np.stack([decode_mask(rle) for rle in ours[index].rles()]).astype(bool)
    logits = upstream[index]
    assert masks.shape == (len(BOXES[index]), *PHOTOS[index].shape[:2])
    shares = masks.mean(axis=(1, 2))
    assert (shares > 0.05).all()
    assert (shares < 0.95).all()
    assert np.unique(shares).size == len(masks)
    assert logits.std() > 0.01
    differing = masks != (logits > 0)
    print(
        f"{differing.sum()} of {differing.size} pixels differ, |logit| there {np.abs(logits[differing]).max(initial=0)}"
    )
    # Batches add up in another order than single pictures; that moves a pixel only where its logit is about 0.
    assert differing.mean() < 1e-4
    assert np.abs(logits[differing]).max(initial=0) < 1e-4 * np.abs(logits).max()


def test_a_cut_checkpoint_is_refused(state: StateFile) -> None:
    tensors = {name: tensor for name, tensor in state.tensors.items() if not name.startswith("mask_decoder.iou_token")}
    with pytest.raises(WeightsMismatchError, match=r"sam-vit-b(.|\n)*mask_decoder\.iou_token"):
        load_sam(StateFile(state.path, tensors, {}))
