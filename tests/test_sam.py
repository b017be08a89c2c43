import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.utils.transforms import ResizeLongestSide
from skimage import data

from patchmint.errors import ConfigError, InputError, WeightsMismatchError
from patchmint.geometry import Fit, PatchGrid, RleMasks, grid_preset
from patchmint.geometry.rle import area, decode_mask
from patchmint.labelers.sam.arch import OFFICIAL, TINY, SamArch, infer_arch
from patchmint.labelers.sam.masker import SamMasker
from patchmint.labelers.sam.masks import SamMasks, input_size, resize
from patchmint.labelers.sam.model import build_sam, load_sam, untrained
from patchmint.weights.architecture import ARCH_METADATA_KEY
from patchmint.weights.loading import load_state

PHOTO = data.astronaut()[:400]  # 400 x 512


@pytest.fixture(scope="module")
def model():
    return untrained(TINY, seed=2)


@pytest.fixture
def watch():
    """Have a function see all outputs of a module."""
    with ExitStack() as hooks:
        yield lambda module, see: hooks.callback(module.register_forward_hook(lambda *call: see(call[-1])).remove)


def random_boxes(seed, count, height, width):
    corners = np.random.default_rng(seed).random((count, 2, 2)) * (width, height)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


def stacked(masks):
    return np.stack([decode_mask(rle) for rle in masks.rles()]).astype(bool)


def upstream_masks(model, image, boxes):
    """One box at a time, the way upstream's README shows."""
    predictor = SamPredictor(model)
    predictor.set_image(image)
    return np.stack([predictor.predict(box=box, multimask_output=False)[0][0] for box in boxes])


def upstream_logits(model, image, boxes):
    """All boxes at once, logits at the picture's size."""
    predictor = SamPredictor(model)
    predictor.set_image(image)
    scaled = predictor.transform.apply_boxes(boxes, image.shape[:2])
    logits, _, _ = predictor.predict_torch(
        None, None, torch.as_tensor(scaled, dtype=torch.float), multimask_output=False, return_logits=True
    )
    return logits[:, 0].numpy()


def assert_same_but_for_rounding(masks, logits):
    """Another batch size adds up in another order: a pixel may differ where its logit is 0 to within rounding."""
    differing = masks != (logits > 0)
    assert np.abs(logits[differing]).max(initial=0) < 1e-5
    assert differing.mean() < 1e-4
    assert logits.std() > 0.01


def test_masks_are_upstreams_bit_for_bit(model):
    boxes = random_boxes(0, 8, 400, 512)
    expected = upstream_masks(model, PHOTO, boxes)
    masks = stacked(SamMasker(model, box_chunk=1).masks([PHOTO], [boxes])[0])
    np.testing.assert_array_equal(masks, expected)
    shares = masks.mean(axis=(1, 2))
    assert (shares > 0.05).all()
    assert (shares < 0.95).all()
    assert np.unique(shares).size == len(boxes)  # the weights do look at the box


@pytest.mark.parametrize(("count", "settings"), [(40, {}), *((10, {"box_chunk": size}) for size in (1, 3, 64))])
def test_any_number_of_boxes_at_once_is_upstreams(model, count, settings):
    boxes = random_boxes(2, count, 400, 512)
    masks = stacked(SamMasker(model, **settings).masks([PHOTO], [boxes])[0])
    assert_same_but_for_rounding(masks, upstream_logits(model, PHOTO, boxes))


@pytest.mark.parametrize("image_batch", [1, 2, 4])
def test_a_batch_of_unlike_pictures_gives_what_each_gives_alone(model, image_batch):
    images = [PHOTO, np.ascontiguousarray(PHOTO.transpose(1, 0, 2)), PHOTO[:80, :50], PHOTO[:40], data.coffee()]
    boxes = [random_boxes(index, 1 + index, *image.shape[:2]) for index, image in enumerate(images)]
    results = SamMasker(model, image_batch=image_batch).masks(images, boxes)
    for image, array, masks in zip(images, boxes, results, strict=True):
        assert_same_but_for_rounding(stacked(masks), upstream_logits(model, image, array))


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 512, 400),
        (0, 0, 0, 0),
        (512, 400, 512, 400),
        (100, 50, 100, 300),
        (300, 200, 100, 50),
        (-50, -50, 700, 600),
        (10.25, 20.5, 10.75, 20.625),
    ],
    ids=["whole picture", "first corner", "last corner", "a line", "corners swapped", "beyond", "under a pixel"],
)
def test_odd_boxes_are_treated_as_upstream_does(model, box):
    boxes = np.array([box], dtype=np.float32)
    masks = stacked(SamMasker(model).masks([PHOTO], [boxes])[0])
    np.testing.assert_array_equal(masks, upstream_masks(model, PHOTO, boxes))


def test_pictures_without_boxes_are_not_encoded(model, watch):
    batches = []
    watch(model.image_encoder.patch_embed, lambda output: batches.append(len(output)))
    nothing = np.zeros((0, 4), dtype=np.float32)
    some = random_boxes(0, 2, 400, 512)
    masker = SamMasker(model, image_batch=2)
    assert masker.masks([], []) == []
    assert [masks.rles() for masks in masker.masks([PHOTO, PHOTO], [nothing, nothing])] == [(), ()]
    assert batches == []
    results = masker.masks([PHOTO] * 5, [some, nothing, some, nothing, some])
    assert batches == [2, 1]
    assert [len(masks) for masks in results] == [2, 0, 2, 0, 2]
    assert results[0].rles() == results[2].rles()


@pytest.mark.parametrize("coverage", ["exact", "fast"])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 2000), (2000, 1), (3, 2), (60, 1200), (1201, 61), (129, 128), (1000, 700)]
)
def test_extreme_shapes(model, coverage, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, width, height], [0, 0, width / 2, height / 2]], dtype=np.float32)
    masks = SamMasker(model, coverage=coverage).masks([image], [boxes])[0]
    assert [rle["size"] for rle in masks.rles()] == [[height, width]] * 2
    share = masks.coverage([0, 1], PatchGrid(3, 3, 8, Fit.PAD).place((height, width)))
    assert ((share >= 0) & (share <= 1)).all()
    if max(height, width) < 256 * min(height, width):  # upstream rounds a side to 0 beyond
        np.testing.assert_array_equal(stacked(masks), upstream_logits(model, image, boxes) > 0)


def test_memory_does_not_grow_with_the_number_of_boxes():
    script = """
import resource, numpy as np
from patchmint.labelers.sam.arch import TINY
from patchmint.labelers.sam.masker import SamMasker
from patchmint.labelers.sam.model import untrained
masker = SamMasker(untrained(TINY, seed=2))
for height, width, counts in ((300, 400, (64, 500)), (1200, 1600, (2, 28))):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for count in counts:
        low = np.random.default_rng(1).random((count, 2)) * 100
        boxes = np.concatenate([low, low + 200], axis=1).astype(np.float32)
        assert len(masker.masks([image], [boxes])[0].rles()) == count
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    small_64, small_500, large_2, large_28 = map(int, run.stdout.split())
    # All boxes at once would need 500 x 300 x 400 x 4 bytes = 240 MB for the logits alone.
    assert small_500 - small_64 < 80
    # A chunk of 28 boxes at once would need 28 x 1200 x 1600 x 4 bytes = 215 MB.
    assert large_28 - large_2 < 80


def test_boxes_are_decoded_in_chunks_and_without_autograd(model, watch):
    chunks = []
    watch(model.mask_decoder.output_hypernetworks_mlps[0], lambda out: chunks.append((len(out), out.requires_grad)))
    SamMasker(model, box_chunk=3).masks([PHOTO], [random_boxes(0, 7, 400, 512)])
    assert chunks == [(3, False), (2, False), (2, False)]


def test_calls_leave_nothing_behind(model):
    masker = SamMasker(model)
    boxes = random_boxes(0, 3, 300, 400)
    first = masker.masks([PHOTO[:300, :400]], [boxes])[0].rles()
    before = dict(vars(masker))
    masker.masks([PHOTO], [random_boxes(5, 3, 400, 512)])
    assert vars(masker) == before
    assert masker.masks([PHOTO[:300, :400]], [boxes])[0].rles() == first
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_wrong_is_named(model):
    masker = SamMasker(model)
    with pytest.raises(InputError, match="2 images but 1"):
        masker.masks([PHOTO, PHOTO], [random_boxes(0, 1, 9, 9)])
    for boxes in (np.zeros(4), np.zeros((1, 5)), np.array([[0, 0, np.nan, 1]]), np.array([[0, 0, np.inf, 1]])):
        with pytest.raises(InputError, match="boxes of image 0"):
            masker.masks([PHOTO], [boxes.astype(np.float32)])
    with pytest.raises(ConfigError, match="coverage"):
        SamMasker(model, coverage="quick")
    for setting in ({"box_chunk": 0}, {"image_batch": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            SamMasker(model, **setting)


@pytest.mark.parametrize("size", [(400, 512), (512, 400), (33, 77), (1, 1), (1, 100), (1023, 1024), (128, 128), (7, 3)])
@pytest.mark.parametrize("image_size", [128, 1024])
def test_pixels_are_resized_as_upstream_does(size, image_size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = ResizeLongestSide(image_size).apply_image(image)
    np.testing.assert_array_equal(resize(image, input_size(image.shape[:2], image_size)), expected)


def test_a_side_never_vanishes():
    assert input_size((1, 3000), 1024) == (1, 1024)
    assert ResizeLongestSide.get_preprocess_shape(1, 3000, 1024) == (0, 1024)


def ellipses(size, seed, count):
    """Low-res logits like a trained SAM's: smooth, about +-10, cut at 0 along ellipses all over the picture."""
    rng = np.random.default_rng(seed)
    valid = input_size(size, 1024)
    rows, columns = np.mgrid[:256, :256] * 4.0 + 2.0
    logits = []
    for _ in range(count):
        cy, cx = rng.random(2) * valid
        ry, rx = np.exp(rng.uniform(np.log(16), np.log(600), 2))
        distance = np.sqrt(((rows - cy) / ry) ** 2 + ((columns - cx) / rx) ** 2)
        logits.append(np.clip((1 - distance) * min(ry, rx) / 4, -10, 10))
    return torch.tensor(np.stack(logits)[:, None], dtype=torch.float32)


def smooth(size, mode):
    return SamMasks(ellipses(size, seed=0, count=20)[:, 0].numpy(), size, 1024, mode)


@pytest.mark.parametrize("size", [(480, 640), (683, 1000), (375, 500), (1000, 333), (100, 75), (1500, 2000)])
def test_fast_coverage_agrees_with_exact(size):
    placement = grid_preset("llava-1.5-finetune").place(size)
    exact, fast = (
        np.stack([smooth(size, mode).coverage([member], placement) for member in range(20)])
        for mode in ("exact", "fast")
    )
    cells = 20 * (placement.inside > 0).sum()
    flips = ((exact > 0) != (fast > 0)).sum() / cells
    print(f"{size}: cells that flip {flips:.5f}, share mean {np.abs(exact - fast).sum() / cells:.5f}")
    assert exact.sum() / cells > 0.05
    assert flips < 0.005
    assert np.abs(exact - fast).sum() / cells < 0.002
    assert np.abs(exact - fast).max() < 0.15


def test_fast_coverage_lies_where_the_masks_do():
    """A straight edge, in a picture whose part of the input isn't a whole number of logits."""
    size = (333, 1000)
    placement = PatchGrid(1, 1, 10, Fit.SQUASH).place(size)
    ramp = (np.arange(256, dtype=np.float32) * 4 + 2)[None].repeat(256, 0)
    for edge in (100.0, 511.0, 900.0):
        across = SamMasks((edge - ramp)[None], size, 1024, "fast").coverage([0], placement)
        assert abs(across[0, 0] - edge / 1024) < 0.003
    for edge in (100.0, 200.0, 330.0):
        down = SamMasks((edge - ramp.T)[None], size, 1024, "fast").coverage([0], placement)
        assert abs(down[0, 0] - edge / 341) < 0.006
    for logits in (700.0 - ramp, 700.0 - ramp.T):  # a picture squashed into the square, as by SAM 2
        for mode in ("exact", "fast"):
            assert abs(SamMasks(logits[None], size, None, mode).coverage([0], placement)[0, 0] - 700 / 1024) < 0.003


@pytest.mark.parametrize("grid", ["llava-1.5-pretrain", "llava-1.5-finetune", "llava-1.6"])
def test_coverage_without_masks_is_that_of_the_masks(model, grid):
    placement = grid_preset(grid).place((400, 512))
    masks = SamMasker(model).masks([PHOTO], [random_boxes(4, 9, 400, 512)])[0]
    made = RleMasks(masks.rles())
    for members in ([], [3], [0, 5], list(range(9))):
        ours, theirs = masks.coverage(members, placement), made.coverage(members, placement)
        np.testing.assert_allclose(ours, theirs, atol=1e-2)  # a pixel whose logit is 0 to within rounding
        assert (np.abs(ours - theirs) > 1e-12).sum() <= 2
        assert theirs.any() == bool(members)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_sizes_are_upstreams(name):
    with torch.device("meta"):
        ours = build_sam(OFFICIAL[name])
        upstream = sam_model_registry[name.removeprefix("sam-").replace("-", "_")]()
    tensors = ours.state_dict()
    assert {key: value.shape for key, value in tensors.items()} == {
        key: value.shape for key, value in upstream.state_dict().items()
    }
    assert str(ours) == str(upstream)  # kinds and sizes of all layers
    for setting in ("num_heads", "window_size", "img_size", "input_image_size"):
        mine, theirs = ([getattr(m, setting, None) for m in sam.modules()] for sam in (ours, upstream))
        assert mine == theirs, setting
    assert infer_arch(tensors, {}) == OFFICIAL[name]


def test_a_tiny_model_survives_a_file_with_metadata(model, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(model.state_dict(), path, {ARCH_METADATA_KEY: TINY.to_json()})
    loaded = load_sam(load_state(path))
    boxes = random_boxes(0, 4, 400, 512)
    masks = SamMasker(loaded).masks([PHOTO], [boxes])[0].rles()
    assert masks == SamMasker(model).masks([PHOTO], [boxes])[0].rles()
    assert not loaded.training
    assert area(masks[0]) > 0


def test_unknown_weights_are_refused_with_the_known_names(model):
    tensors = model.state_dict()
    for wrong in (tensors, {}, {"image_encoder.patch_embed.proj.weight": torch.tensor(1.0)}):
        with pytest.raises(WeightsMismatchError, match="sam-vit-b, sam-vit-l, sam-vit-h"):
            infer_arch(wrong, {})
    no_blocks = {"image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16)}
    with pytest.raises(WeightsMismatchError, match="of width 768"):
        infer_arch(no_blocks, {})


@pytest.mark.parametrize(
    "text",
    [
        *["", "{}", "[1]", TINY.to_json()[:-1]],
        TINY.to_json().replace('"depth": 2', '"depth": "2"'),
        TINY.to_json().replace('"depth": 2', '"depth": 1'),
        TINY.to_json().replace('"depth": 2', '"depth": 1000000'),
        TINY.to_json().replace('"depth": 2', '"depth": 2, "colour": 3'),
        TINY.to_json().replace('"num_heads": 2', '"num_heads": 3'),
        TINY.to_json().replace('"embed_dim": 32', '"embed_dim": -32'),
    ],
)
def test_damaged_metadata_is_refused(text):
    with pytest.raises(WeightsMismatchError, match=ARCH_METADATA_KEY):
        infer_arch({}, {ARCH_METADATA_KEY: text})


def test_impossible_architectures_are_refused():
    with pytest.raises(ConfigError, match="global_attn_indexes"):
        SamArch(embed_dim=32, depth=2, num_heads=2, global_attn_indexes=(2,))
