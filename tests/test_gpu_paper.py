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
    [("backbone", 600, 7.5), ("text", 250, 0.3), ("fusion", 1150, 14.0), ("decoder", 900, 1.8)],
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
    assert len(detector.attention) == 12 + 2 * 6
    assert sum(masked for _, _, masked, _ in detector.attention) == 12 + 6
    assert not any(cudnn for *_, cudnn in detector.attention)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_codes_are_chosen_in_true_float32(gpu):
    """Convolutions of float32 would be TF32."""
    counter = gpu.paper.vqgan(CUDA, images=2)
    full = [kernel.name for kernel in counter.kernels if kernel.count.flops and kernel.dtype == torch.float32]
    assert full == ["addmm"] * 3  # `quant_conv`, and an image at a time among all codes
    assert counter.waits == ["item of ()", "_to_copy of (2, 16, 16)"]


def test_sams_encoder_keeps_to_its_bounds(gpu):
    counter, _ = gpu.paper.sam("vit-b", CUDA, images=2)
    count = counter.of("encode")
    assert counter.waits == []
    assert 150 < count.kernels <= 340
    assert 4.0 < count.bytes / 2 / 1e9 <= 6.5
    assert [cudnn for *_, cudnn in counter.attention] == [False] * 12
    # One product a block that isn't a linear layer: of queries and distances. A part of a tensor as what `proj` takes
    # would be another, and its bias a pass of its own.
    assert sum(kernel.name == "bmm" for kernel in counter.kernels if "encode" in kernel.inside) == 12


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
