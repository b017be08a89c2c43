"""What the models do on a GPU, counted without one: no pass of a model waits, and none does more than it should.

Bounds are a little above what is counted now; lower them when you make something quicker.
"""

from types import SimpleNamespace

import pytest
import torch
from builds import benchmark_modules

CUDA = torch.device("cuda")

pytestmark = pytest.mark.official


@pytest.fixture(scope="module")
def gpu():
    paper, counts = benchmark_modules("gpu_paper", "gpu_counts")
    return SimpleNamespace(paper=paper, counts=counts)


@pytest.fixture(scope="module")
def detector(gpu):
    """A pass of one image with one caption."""
    with gpu.counts.counting() as counter:
        gpu.paper.detect(counter, CUDA, captions=1, images=1)
    return counter


@pytest.mark.parametrize(
    ("stage", "kernels", "gbytes"),
    [("backbone", 355, 4.0), ("text", 245, 0.2), ("fusion", 750, 4.7), ("decoder", 500, 1.0)],
)
def test_a_stage_of_the_detector_never_waits_and_keeps_to_its_bounds(detector, stage, kernels, gbytes):
    count = detector.of(stage)
    assert count.blocking_copies == 0
    assert kernels / 2 < count.kernels <= kernels
    assert gbytes / 2 < count.bytes / 1e9 <= gbytes


def test_a_detectors_pass_waits_for_its_answers_only(detector):
    assert detector.waits == ["_to_copy of (1, 900, 12)", "_to_copy of (1, 900, 4)"]


def test_attention_of_many_shapes_is_not_cudnns(detector):
    """It would make a plan for each length of text."""
    assert len(detector.attention) == 12 + 12 + 2 * 6
    assert sum(masked for _, _, masked, _ in detector.attention) == 12 + 12 + 6
    assert not any(cudnn for *_, cudnn in detector.attention)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_codes_are_chosen_in_true_float32(gpu):
    """Convolutions of float32 would be TF32."""
    counter = gpu.paper.vqgan(CUDA, images=2)
    full = [kernel.name for kernel in counter.kernels if kernel.count.flops and kernel.dtype == torch.float32]
    assert full == ["addmm"] * 3  # `quant_conv`, and an image at a time among all codes
    assert counter.waits == ["item of ()", "_to_copy of (2, 16, 16)"]


def test_images_of_the_tokenizer_are_read_and_written_as_little_as_can_be(gpu):
    """No weight is cast in a pass, and no norm takes channels-last images apart but those of attention and the last."""
    counter = gpu.paper.vqgan(CUDA, images=2)
    names = [kernel.name for kernel in counter.kernels]
    assert names.count("silu_of_norm") == 24
    assert names.count("native_group_norm") == 4
    assert names.count("clone") <= 4  # those, where torch shows it
    assert names.count("_to_copy") <= 21 < names.count("convolution")
    assert 0.5 < counter.total.bytes / 2 / 1e9 <= 0.88


def test_no_weight_of_the_vision_encoder_is_cast_in_a_pass(gpu):
    assert 300 < gpu.paper.vit(CUDA, images=2).kernels <= 450  # 140 more if they were


def test_sams_encoder_keeps_to_its_bounds(gpu):
    counter, _ = gpu.paper.sam("vit-b", CUDA, images=2)
    count = counter.of("encode")
    assert counter.waits == []
    assert 150 < count.kernels <= 220
    assert 3.0 < count.bytes / 2 / 1e9 <= 4.9
    assert [cudnn for *_, cudnn in counter.attention] == [False] * 8
    assert sum(kernel.name == "attention_by_rows" for kernel in counter.kernels) == 4
    # One product a block that isn't a linear layer: of queries and distances. A part of a tensor as what `proj` takes
    # would be another, and its bias a pass of its own.
    assert sum(kernel.name == "bmm" for kernel in counter.kernels if "encode" in kernel.inside) == 12


@pytest.mark.skipif(not torch.__version__.startswith("2.11"), reason="slow; `make test-torch211` runs it")
def test_what_is_compiled_does_with_half_the_passes(gpu):
    with gpu.counts.counting() as counter:
        gpu.paper.detect(counter, CUDA, captions=1, images=5, compiled=True)  # half a pass, or the backbone isn't
    for stage, kernels, gbytes in (("backbone", 160, 21.0), ("fusion", 620, 22.5), ("decoder", 385, 5.0)):
        count = counter.of(stage)
        assert kernels / 2 < count.kernels <= kernels
        assert gbytes / 2 < count.bytes / 1e9 <= gbytes  # of the pass; the backbone's is padded to nine images
    encoder, _ = gpu.paper.sam("vit-b", CUDA, images=2, compiled=True)
    assert encoder.of("encode").bytes / 2 / 1e9 < 5.5


def test_fusing_joins_what_no_product_parts(gpu):
    """A norm, an activation and sums around a product: one kernel before it, one behind it, and what they pass on."""
    with gpu.counts.counting() as counter, torch.inference_mode():
        x, weight = torch.empty(64, 32, device=CUDA), torch.empty(32, 32, device=CUDA)
        counter.clear()

        @counter.compiled
        def block(x):
            normed = torch.nn.functional.layer_norm(x * 2 + 1, (32,))
            return torch.relu(normed @ weight) + x

        block(x)
    assert [kernel.name for kernel in counter.kernels] == ["fused", "mm", "fused"]
    size = 64 * 32 * 4
    assert [kernel.count.bytes for kernel in counter.kernels] == [2 * size, 2 * size + 32 * 32 * 4, 3 * size]


def test_counting_sees_waits_and_products(gpu):
    with gpu.counts.counting() as counter, torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        boxes = torch.empty(2, 9, 10, 4, device=CUDA, dtype=torch.bfloat16)
        boxes[..., [1, 0, 2, 3]]
        layer = torch.nn.Linear(4, 8, device=CUDA)
        layer(boxes[:, :8, :8])
        (boxes > 0).any().item()
        boxes.to("cpu", non_blocking=True)
    assert len(counter.waits) == 2
    products = [kernel for kernel in counter.kernels if kernel.count.flops]
    assert [kernel.name for kernel in products] == ["bmm"]
    assert products[0].count.flops == 2 * 2 * 64 * 4 * 8
