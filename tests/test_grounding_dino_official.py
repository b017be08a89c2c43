"""Grounding DINO at official size (Swin-T, BERT base, 900 queries) against upstream, on real photographs.

The reference is upstream alone: built from its own config by its own code under transformers 4.57, run by its own
`predict`. We load the same weights from the official container, under transformers 5, and run both photographs, of
unlike size and with unlike captions, in one batch.
"""

import numpy as np
import pytest
import torch
import upstream_grounding_dino
from reference_cache import cached
from seeded_weights import fill
from transformers4 import run_under_transformers4
from upstream_grounding_dino import CAPTIONS, official_vocabulary, photographs

from patchmint.labelers.grounding_dino.detector import GroundingDino, select
from patchmint.labelers.grounding_dino.encoders import encode_images, encode_prompts
from patchmint.labelers.grounding_dino.model import load_grounding_dino
from patchmint.labelers.grounding_dino.prompts import Vocabulary, caption_prompts
from patchmint.labelers.grounding_dino.transformer import propose, refine
from patchmint.types import Text
from patchmint.weights.loading import load_state

pytestmark = pytest.mark.official

NAMES = list(CAPTIONS)
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    def make():
        folder = tmp_path_factory.mktemp("upstream")
        run_under_transformers4("tests/upstream_grounding_dino.py", str(folder))
        (folder / "bert" / "model.safetensors").unlink()  # pytest keeps the folders of three runs
        with np.load(folder / "reference.npz", allow_pickle=False) as arrays:
            return {key.replace("__", "/"): arrays[key] for key in arrays.files}

    return cached("grounding-dino", upstream_grounding_dino.__file__, make)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, reference):
    """The official container: under "model", keys with `module.`, and the two entries nobody loads."""
    weights = {key[6:]: torch.empty(tuple(shape)) for key, shape in reference.items() if key.startswith("shape/")}
    fill(weights)
    weights |= {key[6:]: torch.from_numpy(array) for key, array in reference.items() if key.startswith("whole/")}
    state = {f"module.{name}": tensor for name, tensor in weights.items()}
    state["module.label_enc.weight"] = torch.zeros(2001, 256)
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    path = tmp_path_factory.mktemp("grounding-dino") / "groundingdino.pth"
    torch.save({"model": state}, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def detector(checkpoint):
    model, arch = load_grounding_dino(load_state(checkpoint))
    return GroundingDino(model, arch, Vocabulary({piece: place for place, piece in enumerate(official_vocabulary())}))


@pytest.fixture(scope="module")
def prompts(detector):
    return [caption_prompts(Text(CAPTIONS[name]), detector.vocabulary)[0] for name in NAMES]


@pytest.fixture(scope="module")
def proposals(detector, prompts):
    with torch.inference_mode():
        pixels = [detector.preprocess(photograph) for photograph in photographs().values()]
        features = encode_images(detector.model, pixels)
        return propose(detector.model, features, encode_prompts(detector.model, prompts, torch.device("cpu")))


def upstreams_choice(proposals, reference):
    """Positions that upstream took its queries from, in the batch's padded numbering."""
    choices = []
    for row, name in enumerate(NAMES):
        best = torch.from_numpy(reference[f"{name}/rank"]).topk(900)[1]
        choices.append(torch.nonzero(~proposals.image.padding[row])[:, 0][best])
    return torch.stack(choices)


@pytest.fixture(scope="module")
def refined(detector, proposals, reference):
    with torch.inference_mode():
        return refine(detector.model, proposals, upstreams_choice(proposals, reference))


def test_pixels_are_upstreams(detector, reference):
    for name, photograph in photographs().items():
        np.testing.assert_array_equal(detector.preprocess(photograph).numpy(), reference[f"{name}/pixels"])


def test_first_stage_agrees(proposals, reference):
    for row, name in enumerate(NAMES):
        ours = proposals.rank[row][~proposals.image.padding[row]].numpy()
        theirs = reference[f"{name}/rank"]
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
        assert theirs.std() > 0.5  # else agreement would mean little


def test_queries_are_the_same_but_for_ties(proposals, reference):
    """Positions whose ranks tie to within rounding may change places; nothing else may."""
    ours = torch.topk(proposals.rank, 900, dim=1)[1]
    theirs = upstreams_choice(proposals, reference)
    for row in range(len(NAMES)):
        moved = ours[row] != theirs[row]
        assert moved.float().mean() < 0.02
        gap = (proposals.rank[row][ours[row]] - proposals.rank[row][theirs[row]]).abs()
        assert gap[moved].numel() == 0 or gap[moved].max() < TOLERANCE


def test_logits_and_boxes_agree_with_upstream(refined, reference):
    for row, name in enumerate(NAMES):
        theirs = reference[f"{name}/raw_logits"]
        finite = np.isfinite(theirs)
        np.testing.assert_array_equal(finite, np.isfinite(refined.logits[row].numpy()))
        np.testing.assert_allclose(refined.logits[row].numpy()[finite], theirs[finite], atol=TOLERANCE)
        np.testing.assert_allclose(refined.boxes[row].numpy(), reference[f"{name}/raw_boxes"], atol=TOLERANCE)


def test_detections_are_those_of_upstreams_predict(detector, prompts, refined, reference):
    """Every box of ours is one of `predict`'s with its score; it drops those that only [CLS] or "." speaks for."""
    for row, name in enumerate(NAMES):
        size = photographs()[name].shape[:2]
        scores, found = refined.logits[row].sigmoid().numpy(), refined.boxes[row].numpy()
        thresholds = {"box_threshold": 0.5, "text_threshold": 0.4}
        ours = select(scores, found, prompts[row], image_size=size, text_index=0, **thresholds)
        boxes = reference[f"{name}/boxes"] * np.array([size[1], size[0]] * 2)
        theirs = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        distance = np.abs(ours.boxes[:, None] - theirs.clip(0, [size[1], size[0]] * 2)[None]).max(-1)
        assert distance.min(axis=1).max() < 1
        # upstream's score may be that of "." or [CLS]; it is never lower than the best word's
        assert (reference[f"{name}/logits"][distance.argmin(axis=1)] > ours.scores - TOLERANCE).all()
        words = [
            int(place) for place, token in zip(prompts[row].places, prompts[row].tokens, strict=True) if token.readable
        ]
        spoken_for = 1 / (1 + np.exp(-reference[f"{name}/raw_logits"][:, words].max(axis=1))) > 0.5
        assert len(ours.scores) == spoken_for.sum() > 5
