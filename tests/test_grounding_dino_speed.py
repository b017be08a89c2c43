"""What makes Grounding DINO fast changes none of its numbers: each short cut against upstream's own long way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from seeded_weights import shake
from skimage import data

from patchmint.compute.devices import computing_in
from patchmint.labelers.grounding_dino import canvas, deformable, encoders, swin
from patchmint.labelers.grounding_dino.arch import TINY
from patchmint.labelers.grounding_dino.canvas import like_pairs
from patchmint.labelers.grounding_dino.deformable import deformable_attention, level_table
from patchmint.labelers.grounding_dino.detector import GroundingDino
from patchmint.labelers.grounding_dino.encoders import encode_images, encode_prompts
from patchmint.labelers.grounding_dino.model import untrained
from patchmint.labelers.grounding_dino.prompts import Vocabulary, caption_prompts
from patchmint.labelers.grounding_dino.transformer import fuse, match
from patchmint.types import Text

CPU = torch.device("cpu")
SHAPES = ((9, 12), (5, 6), (3, 1), (1, 2))  # also levels of one column and of one row
POSITIONS = sum(height * width for height, width in SHAPES)


@pytest.fixture(scope="module")
def model():
    model = untrained(TINY)
    shake(model)
    return model


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_windows_that_attend_in_one_kernel_give_what_upstreams_do(dtype, atol):
    """Shifted and not, of several images, padded windows among them."""
    model = untrained(replace(TINY, swin_depths=(2, 1, 2, 1)), seed=2)
    shake(model)
    pixels = torch.randn(3, 3, 72, 100, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), computing_in(dtype, CPU):
        theirs = model.backbone[0].forward_raw(pixels)
        swin.fuse_windows(model, dtype)
        ours = model.backbone[0].forward_raw(pixels)
    for found, expected in zip(ours, theirs, strict=True):
        assert expected.std() > 0.1
        torch.testing.assert_close(found.float(), expected.float(), atol=atol, rtol=0.03)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, POSITIONS, 256, generator=generator)
    padding = torch.zeros(3, POSITIONS, dtype=torch.bool)
    padding[1, 50:90] = padding[2, -1] = True
    return image, padding, generator


def upstreams_attention(module, query, reference, value, padding):
    """Upstream's own forward; it takes its shapes as a tensor."""
    places = {"reference_points": reference, "spatial_shapes": torch.tensor(SHAPES), "level_start_index": None}
    return module(query=query, value=value, key_padding_mask=padding, **places)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("points_at_once", [2**17, 1000, 1])
def test_deformable_attention_is_upstreams(model, inputs, monkeypatch, width, points_at_once):
    """At points and boxes that lie inside, at the border, half outside and far outside; all at once and in parts."""
    monkeypatch.setattr(deformable, "_POINTS_AT_ONCE", points_at_once)
    value, padding, generator = inputs
    module = model.transformer.encoder.layers[0].self_attn
    query = 30 * torch.randn(3, 40, 256, generator=generator)  # offsets of many positions
    reference = torch.rand(3, 40, 4, width, generator=generator) * 1.6 - 0.3
    with torch.no_grad():
        theirs = upstreams_attention(module, query, reference, value, padding)
        ours = deformable_attention(module, query, reference, value, level_table(SHAPES, CPU), padding)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_deformable_attention_teaches_as_upstreams_does(model, inputs):
    """The demo's detector is trained through it."""
    value, padding, generator = inputs
    module = model.transformer.encoder.layers[0].self_attn
    query = torch.randn(3, 40, 256, generator=generator)
    reference = torch.rand(3, 40, 4, 2, generator=generator) * 0.7 + 0.15

    def slopes(attend):
        leaves = [each.clone().requires_grad_() for each in (query, reference, value)]
        attend(*leaves).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    levels = level_table(SHAPES, CPU)
    ours = slopes(lambda q, r, v: deformable_attention(module, q, r, v, levels, padding))
    theirs = slopes(lambda q, r, v: upstreams_attention(module, q, r, v, padding))
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(mine, other, atol=1e-3 * other.abs().max().item(), rtol=1e-3)


def test_places_that_are_no_numbers_give_none(model, inputs):
    value, padding, generator = inputs
    module = model.transformer.decoder.layers[0].cross_attn
    query = torch.randn(3, 4, 256, generator=generator)
    reference = torch.full((3, 4, 4, 2), 0.5)
    reference[0, 1] = torch.nan
    reference[1, 2] = 1e30
    with torch.no_grad():
        found = deformable_attention(module, query, reference, value, level_table(SHAPES, CPU), padding)
    assert found[0, 1].isnan().all()
    assert found.isnan().sum() == 256
    torch.testing.assert_close(found[1, 2], module.output_proj.bias)


@pytest.mark.parametrize("tokens", [1, 7])
def test_fusion_is_upstreams(model, inputs, tokens, monkeypatch):
    image, padding, generator = inputs
    block = model.transformer.encoder.fusion_layers[0]
    for gamma in (block.gamma_v, block.gamma_l):
        monkeypatch.setattr(gamma, "data", gamma.data + 1.0)  # upstream starts at 0.0001, which would hide it
    text = torch.randn(3, tokens, 256, generator=generator)
    text_padding = torch.zeros(3, tokens, dtype=torch.bool)
    text_padding[0, 4:] = True
    with torch.no_grad():
        theirs = block(v=image, l=text, attention_mask_v=padding, attention_mask_l=text_padding)
        ours = fuse(block, image, text, padding, text_padding)
    for mine, other, before in zip(ours, theirs, (image, text), strict=True):
        assert (other - before).std() > 0.1
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def test_scores_of_fusion_are_float32(model, inputs):
    """What a text takes from an image is, whatever products are computed in."""
    image, padding, generator = inputs
    block = model.transformer.encoder.fusion_layers[0]
    text = torch.randn(3, 5, 256, generator=generator)
    answers = []
    for reduced in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            answers.append(fuse(block, image, text, padding, torch.zeros(3, 5, dtype=torch.bool)))
    (image_exact, text_exact), (image_reduced, text_reduced) = answers
    assert torch.equal(text_exact, text_reduced)
    assert not torch.equal(image_exact, image_reduced)


def test_pairs_run_with_their_like():
    shapes = [(10, 10), (100, 134), (10, 11), (10, 10), (134, 100), (10, 40)]
    batches = like_pairs(shapes, [5, 5, 5, 3, 5, 5], CPU)
    assert batches == [[3, 0, 2], [5], [1], [4]]
    assert like_pairs([], [], CPU) == []


def test_as_many_pairs_at_once_as_memory_is_for(monkeypatch):
    monkeypatch.setitem(canvas._POSITIONS_AT_ONCE, "cpu", 350)
    assert [len(batch) for batch in like_pairs([(10, 10)] * 7, [5] * 7, CPU)] == [3, 2, 2]
    assert like_pairs([(100, 100)], [5], CPU) == [[0]]


def test_parts_of_a_call_change_nothing(model, monkeypatch):
    """However little runs at once."""
    detector = GroundingDino(model, TINY, Vocabulary.of_characters(TINY.text_vocabulary))
    photographs = [data.astronaut(), data.coffee(), data.astronaut()[:, ::-1].copy()]
    texts = [[Text("a cat on a sofa"), Text("x")], [Text("red. blue thing")], [Text("the quick fox")]]
    together = detector.detect(photographs, texts)
    monkeypatch.setitem(encoders._PIXELS_AT_ONCE, "cpu", 1)
    monkeypatch.setitem(canvas._POSITIONS_AT_ONCE, "cpu", 1)
    monkeypatch.setattr(encoders, "_TOKENS_AT_ONCE", 1)
    for one, other in zip(together, detector.detect(photographs, texts), strict=True):
        assert len(one.scores) > 0
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        np.testing.assert_array_equal(one.spans, other.spans)
        np.testing.assert_array_equal(one.text_index, other.text_index)


def test_reduced_precision_stays_near(model):
    """All answers are float32, and as near as bfloat16 products let them be."""
    vocabulary = Vocabulary.of_characters(TINY.text_vocabulary)
    exact = GroundingDino(model, TINY, vocabulary)
    reduced_model = untrained(TINY)
    shake(reduced_model)
    reduced = GroundingDino(reduced_model, TINY, vocabulary, precision=torch.bfloat16)
    prompts = caption_prompts(Text("a cat on a sofa. two dogs?"), vocabulary)
    pixels = [exact.preprocess(data.astronaut())]
    answers = []
    for detector in (exact, reduced):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=detector is reduced):
            features = encode_images(detector.model, pixels)
            answers.append(match(detector.model, features, encode_prompts(detector.model, prompts, CPU)))
    layer = reduced_model.transformer.encoder.layers[0]
    assert layer.linear1.weight.dtype == layer.self_attn.value_proj.weight.dtype == torch.bfloat16
    assert layer.self_attn.sampling_offsets.weight.dtype == torch.float32
    assert {each.dtype for each in (answers[1].logits, answers[1].boxes)} == {torch.float32}
    best = [torch.sort(answer.logits[0, :, : len(prompts[0].ids)].amax(-1))[0] for answer in answers]
    assert (best[0] - best[1]).abs().mean() < 0.2 * best[0].std()  # it is 0.05 to 0.25, by the image
    assert (best[0] - best[1]).abs().max() > 0  # else nothing was reduced
