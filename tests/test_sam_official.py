"""SAM ViT-B at its official size: random weights in the official container, a real photograph, upstream as the judge.

Encoding an image is half of a teraflop, so there is one; batches of unlike images are compared with upstream at a tiny
size (test_sam.py).
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from reference_cache import Arrays, cached
from segment_anything import SamPredictor, sam_model_registry
from sklearn.datasets import load_sample_image

from patchmint.errors import WeightsMismatchError
from patchmint.geometry.rle import decode_mask
from patchmint.labelers.sam.arch import OFFICIAL
from patchmint.labelers.sam.masker import SamMasker
from patchmint.labelers.sam.model import load_sam, untrained
from patchmint.types import RgbImage
from patchmint.weights.loading import StateFile, load_state

pytestmark = pytest.mark.official

PHOTO: RgbImage = np.ascontiguousarray(load_sample_image("china.jpg").transpose(1, 0, 2))
"""640 x 427, upright; it is scaled up."""
_CORNERS = np.random.default_rng(640).random((5, 2, 2)) * (427, 640)
_CORNERS[0] = [(0, 0), (427, 640)]
BOXES = np.concatenate([_CORNERS.min(axis=1), _CORNERS.max(axis=1)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> StateFile:
    """What our loader reads from a file laid out as `sam_vit_b_01ec64.pth`: a bare state dict."""
    path: Path = tmp_path_factory.mktemp("sam") / "sam_vit_b.pth"
    torch.save(untrained(OFFICIAL["sam-vit-b"], seed=0).state_dict(), path)
    return load_state(path)


def upstreams_logits(state: StateFile) -> Arrays:
    """Logits of upstream's predictor at the photograph's size, a box at a time."""
    model = sam_model_registry["vit_b"]()
    model.load_state_dict(state.tensors)
    predictor = SamPredictor(model)
    predictor.set_image(PHOTO)
    logits = [predictor.predict(box=box, multimask_output=False, return_logits=True)[0] for box in BOXES]
    return {"logits": np.concatenate(logits)}


def test_masks_are_those_of_upstream(state: StateFile) -> None:
    logits = cached("sam-vit-b", __file__, lambda: upstreams_logits(state))["logits"]
    (ours,) = SamMasker(load_sam(state)).masks([PHOTO], [BOXES])
    masks = np.stack([decode_mask(rle) for rle in ours.rles()]).astype(bool)
    assert masks.shape == (len(BOXES), *PHOTO.shape[:2])
    shares = masks.mean(axis=(1, 2))
    assert (shares > 0.05).all()
    assert (shares < 0.95).all()
    assert np.unique(shares).size == len(masks)
    assert logits.std() > 0.01
    differing = masks != (logits > 0)
    print(
        f"{differing.sum()} of {differing.size} pixels differ, |logit| there {np.abs(logits[differing]).max(initial=0)}"
    )
    # Many boxes at once add up in another order than single ones; that moves a pixel only where its logit is about 0.
    assert differing.mean() < 1e-4
    assert np.abs(logits[differing]).max(initial=0) < 1e-4 * np.abs(logits).max()


def test_a_cut_checkpoint_is_refused(state: StateFile) -> None:
    tensors = {name: tensor for name, tensor in state.tensors.items() if not name.startswith("mask_decoder.iou_token")}
    with pytest.raises(WeightsMismatchError, match=r"sam-vit-b(.|\n)*mask_decoder\.iou_token"):
        load_sam(StateFile(state.path, tensors, {}))
