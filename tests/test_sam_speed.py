"""SAM's own forward against upstream's, tensor by tensor, and masks of pictures with many boxes."""

import threading
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything.modeling.image_encoder import add_decomposed_rel_pos
from skimage import data

from patchmint.compute.devices import computing_in
from patchmint.geometry import RleMasks, grid_preset
from patchmint.labelers.sam import attention
from patchmint.labelers.sam.arch import TINY
from patchmint.labelers.sam.image_encoder import ImageEncoder
from patchmint.labelers.sam.mask_decoder import MaskDecoder
from patchmint.labelers.sam.masker import SamMasker
from patchmint.labelers.sam.masks import Behind, MaskCollector, PackedMasks, SamMasks
from patchmint.labelers.sam.model import build_sam, untrained

PHOTO = data.astronaut()[:400]  # 400 x 512


@pytest.fixture(scope="module")
def model():
    """Weights so large that attention isn't even, and no bias that is zero."""
    sam = untrained(TINY, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name or name.endswith("bias") or "attn" in name:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    return sam


def random_boxes(count):
    corners = np.random.default_rng(0).random((count, 2, 2)) * (512, 400)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


@pytest.mark.parametrize("window", [5, 8, 3])
def test_embeddings_are_upstreams(window):
    """Windows that don't divide 8 patches, one that is all of them, and ones of which two sides are cut."""
    sam = untrained(replace(TINY, window_size=window), seed=3)
    squares = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for block in sam.image_encoder.blocks:
            block.attn.qkv.bias += torch.randn_like(block.attn.qkv.bias)
            block.attn.rel_pos_h += torch.randn_like(block.attn.rel_pos_h)
        expected = sam.image_encoder(squares).permute(0, 2, 3, 1)
        torch.testing.assert_close(ImageEncoder(sam.image_encoder, torch.float32)(squares), expected)


@pytest.mark.parametrize("way", ["_attend_added", "_attend_lengthened"])
@pytest.mark.parametrize("at_once", [2**21, 200, 30])
def test_every_way_of_attending_is_upstreams(way, at_once, monkeypatch):
    """The last is for bfloat16; in blocks of heads, of rows, and of both."""
    monkeypatch.setattr(attention, "_SCORES_AT_ONCE", at_once)
    (query, key, value), rows, cols = attended(3, 2, 5, 5, 4)
    by_row = torch.einsum("ghyxc,ykc->ghyxk", query, attention.relative_table(rows, 5))
    by_col = torch.einsum("ghyxc,xkc->ghyxk", query, attention.relative_table(cols, 5))
    ours = getattr(attention, way)(query / 2, key, value, by_row, by_col)
    torch.testing.assert_close(ours.view(query.shape), upstreams_attention(query, key, value, rows, cols))


def test_attention_for_gpus_is_upstreams():
    """On windows as they lie in a picture, row-major with the channels last."""
    pictures, rows, cols = attended(2, 3, 5, 2, 5, 3, 4)
    windows = [each.permute(0, 1, 3, 5, 2, 4, 6) for each in pictures]
    ours = attention.attend_fused(*windows, attention.distance_table(rows, cols))
    theirs = upstreams_attention(*(each.flatten(0, 2) for each in windows), rows, cols)
    torch.testing.assert_close(ours, theirs.view(ours.shape))


def attended(*shape):
    """Queries, keys and values of a shape, and weights for distances in windows of 5."""
    generator = torch.Generator().manual_seed(0)
    distances = (torch.randn(9, 4, generator=generator) for _ in range(2))
    return [torch.randn(shape, generator=generator) for _ in range(3)], *distances


def upstreams_attention(query, key, value, rows, cols):
    flat = [part.flatten(0, 1).flatten(1, 2) for part in (query, key, value)]
    scores = add_decomposed_rel_pos(flat[0] / 2 @ flat[1].transpose(1, 2), flat[0], rows, cols, (5, 5), (5, 5))
    return (scores.softmax(-1) @ flat[2]).view(query.shape)


def test_logits_of_boxes_of_several_pictures_are_upstreams(model):
    embeddings = torch.randn(3, 8, 8, 32, generator=torch.Generator().manual_seed(0))
    boxes, owners = torch.from_numpy(random_boxes(7)) / 4, torch.tensor([0, 0, 2, 1, 2, 2, 0])
    with torch.inference_mode():
        ours = MaskDecoder(model, torch.float32)(embeddings, boxes, owners)
        for box, owner, logits in zip(boxes, owners, ours, strict=True):
            sparse, dense = model.prompt_encoder(points=None, boxes=box[None], masks=None)
            expected, _ = model.mask_decoder(
                image_embeddings=embeddings[owner].permute(2, 0, 1)[None],
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            torch.testing.assert_close(logits, expected[0, 0], atol=1e-4, rtol=1e-4)


def test_bfloat16_is_near_float32(model):
    squares = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    boxes, owners = torch.from_numpy(random_boxes(7)) / 4, torch.zeros(7, dtype=torch.int64)
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        sam = build_sam(TINY)
        sam.load_state_dict(model.state_dict())
        with torch.inference_mode():
            encoder, decoder = ImageEncoder(sam.image_encoder, dtype), MaskDecoder(sam, dtype)
            assert sam.image_encoder.blocks[0].mlp.lin1.weight.dtype == dtype
            with computing_in(dtype, torch.device("cpu")):
                embeddings = encoder(squares)
                logits = decoder(embeddings, boxes, owners)
        assert embeddings.dtype == logits.dtype == torch.float32
        answers.append((embeddings, logits))
    for full, reduced in zip(*answers, strict=True):
        assert 0 < (full - reduced).std() < 0.03 * full.std()


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_many_boxes_are_compact_and_say_the_same(model, mode):
    boxes = random_boxes(70)
    placement = grid_preset("llava-1.5-finetune").place((400, 512))
    masker = SamMasker(model, coverage=mode)
    many, first, last = masker.masks([PHOTO] * 3, [boxes, boxes[:40], boxes[40:]])
    assert isinstance(many, RleMasks if mode == "exact" else PackedMasks)
    assert isinstance(first, SamMasks)
    assert len(many) == 70
    assert many.rles() == first.rles() + last.rles()
    np.testing.assert_array_equal(many.coverage([], placement), np.zeros(placement.shape))
    for members in ([3], [0, 5, 9], list(range(40))):
        ours, theirs = many.coverage(members, placement), first.coverage(members, placement)
        assert ours.any()
        np.testing.assert_allclose(ours, theirs, atol=1e-2)  # a pixel whose logit is 0 to within rounding
        assert (np.abs(ours - theirs) > 1e-12).sum() <= 2
    np.testing.assert_allclose(many.coverage([45], placement), last.coverage([5], placement), atol=1e-2)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_on_a_gpu_nothing_waits_for_many_masks(model, mode, monkeypatch):
    """They are made compact in a thread, in order, and few wait for it."""
    go, makers = threading.Event(), []

    def made_slowly(collector, logits, original=MaskCollector._made_compact):
        go.wait(20)
        makers.append(threading.current_thread().name)
        return original(collector, logits)

    boxes = random_boxes(70)
    masker = SamMasker(model, coverage=mode, box_chunk=20)
    (expected,) = masker.masks([PHOTO], [boxes])
    monkeypatch.setattr(MaskCollector, "_made_compact", made_slowly)
    masker._behind = Behind(4)
    (later,) = masker.masks([PHOTO], [boxes])
    assert len(later) == 70
    assert makers == []
    fifth = threading.Thread(target=masker._behind.begin, args=(lambda: ([], None),))
    fifth.start()
    fifth.join(0.2)
    assert fifth.is_alive()
    go.set()
    fifth.join()
    assert later.rles() == expected.rles()
    assert {name.partition("_")[0] for name in makers} == {"masks"}
    placement = grid_preset("llava-1.5-finetune").place((400, 512))
    np.testing.assert_array_equal(later.coverage([3, 50], placement), expected.coverage([3, 50], placement))


def test_what_fails_behind_is_told_to_who_asks(model, monkeypatch):
    def fail(*_):
        raise MemoryError("too many masks")

    masker = SamMasker(model)
    masker._behind = Behind(4)
    monkeypatch.setattr(MaskCollector, "_made_compact", fail)
    (later,) = masker.masks([PHOTO], [random_boxes(70)])
    with pytest.raises(MemoryError, match="too many masks"):
        later.rles()


def test_batches_follow_the_size_of_the_model(model):
    """Boxes of all pictures of a batch are decoded together."""
    seen = []
    noted = {"pictures": model.image_encoder.patch_embed, "boxes": model.mask_decoder.output_hypernetworks_mlps[0]}
    with ExitStack() as hooks:
        for name, module in noted.items():
            hook = module.register_forward_hook(lambda *seen_by, name=name: seen.append((name, len(seen_by[-1]))))
            hooks.callback(hook.remove)
        SamMasker(model).masks([PHOTO] * 18, [random_boxes(5)] * 18)
    assert seen == [("pictures", 9), ("boxes", 45)] * 2
