"""Triton's kernels by its interpreter, on a CPU, against what torch computes; run by `test_kernels.py`.

The interpreter has to be chosen before Triton is imported, so these tests have a process of their own.
"""

import pytest
import torch
from torch import nn

from patchmint.compute import kernels, norms
from patchmint.compute.compiled import kernels_ran
from patchmint.labelers.grounding_dino import deformable
from patchmint.labelers.grounding_dino.deformable import deformable_attention, level_table
from patchmint.labelers.sam import attention

# numpy tells of a place that is no number, and it is meant to stay none
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
]

CPU = torch.device("cpu")
SHAPES = ((5, 7), (3, 1), (1, 2))  # also levels of one column and of one row; three points in each: no power of two
POSITIONS = sum(height * width for height, width in SHAPES)


@pytest.fixture(scope="module")
def module():
    """What is taken of upstream's `MultiScaleDeformableAttention`, whose import takes longer than all tests here."""
    torch.manual_seed(0)
    module = nn.Module()
    module.num_heads, module.num_levels, module.num_points = 2, 3, 3
    for name, width in (("value_proj", 24), ("output_proj", 24), ("sampling_offsets", 36), ("attention_weights", 18)):
        setattr(module, name, nn.Linear(24, width))
    return module


def inputs(*, batch, queries, numbers):
    """Many references beyond the border, and offsets of many positions."""
    generator = torch.Generator().manual_seed(batch + numbers)
    query = 9 * torch.randn(batch, queries, 24, generator=generator)
    reference = torch.rand(batch, queries, 3, numbers, generator=generator) * 1.6 - 0.3
    value = torch.randn(batch, POSITIONS, 24, generator=generator)
    padding = torch.zeros(batch, POSITIONS, dtype=torch.bool)
    padding[1:, 30:] = True  # whole levels that have nothing but padding
    return query, reference, value, padding


def both(monkeypatch, module, query, reference, value, padding, shapes=SHAPES):
    """The kernel's answers and the other way's."""
    levels = level_table(shapes, CPU)
    found = []
    before = kernels_ran.total()
    for kernel in (True, False):
        monkeypatch.setattr(deformable, "_in_one_kernel", lambda _, kernel=kernel: kernel)
        with torch.inference_mode():
            found.append(deformable_attention(module, query, reference, value, levels, padding))
    assert kernels_ran.total() == before + 1
    return found


@pytest.mark.parametrize(("batch", "queries", "numbers"), [(1, 5, 2), (3, 5, 4), (2, 1, 2), (2, 4, 4)])
def test_deformable_attention_in_one_kernel_is_that_of_many(monkeypatch, module, batch, queries, numbers):
    ours, theirs = both(monkeypatch, module, *inputs(batch=batch, queries=queries, numbers=numbers))
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "equal"), [(torch.float16, 0.98), (torch.bfloat16, 0.5)])
def test_short_numbers_are_summed_up_in_float32(monkeypatch, module, dtype, equal):
    query, reference, value, padding = inputs(batch=2, queries=3, numbers=4)
    with torch.autocast("cpu", dtype):
        ours, theirs = both(monkeypatch, module, query, reference, value, padding)
    assert ours.dtype == theirs.dtype == dtype
    # Either rounds the sums once, and they may lie at an edge; the interpreter cuts bfloat16 off.
    assert (ours == theirs).float().mean() > equal
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)


def test_a_level_without_positions_adds_nothing(monkeypatch, module):
    query, reference, value, padding = inputs(batch=2, queries=4, numbers=2)
    padding[:, 35:38] = True
    _, theirs = both(monkeypatch, module, query, reference, value, padding)
    kept = [*range(35), *range(38, POSITIONS)]
    shapes = (SHAPES[0], (3, 0), SHAPES[2])
    ours, _ = both(monkeypatch, module, query, reference, value[:, kept], padding[:, kept], shapes)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_places_that_are_no_numbers_give_none(monkeypatch, module):
    query, reference, value, padding = inputs(batch=2, queries=3, numbers=2)
    reference[0, 1] = torch.nan
    reference[1, 2] = 1e30
    ours, _ = both(monkeypatch, module, query, reference, value, padding)
    assert ours[0, 1].isnan().all()
    assert ours.isnan().sum() == 24
    torch.testing.assert_close(ours[1, 2], module.output_proj.bias)


@pytest.mark.parametrize("width", [16, 48])
def test_sams_attention_over_a_picture_in_a_kernel_of_our_own_is_that_of_longer_vectors(monkeypatch, width):
    """Heads as wide as a power of two, and as two of them; rows and columns weigh as much as what they hold.

    In float16 only: the interpreter has no products of bfloat16.
    """
    generator = torch.Generator().manual_seed(width)
    batch, heads, side = 2, 2, 16
    projected = torch.randn(batch, side, side, 3, heads, width, generator=generator).half()
    parts = projected.permute(3, 0, 4, 1, 2, 5)[:, :, None, None]
    rows, cols = torch.randn(2, 2 * side - 1, width, generator=generator)
    distances = attention.distance_table(rows, cols).half() * width**-0.5
    before = kernels_ran.total()
    with torch.inference_mode():
        ours = attention.attend_fused(*parts, distances)
        assert kernels_ran.total() == before + 1
        monkeypatch.setattr(attention, "_by_rows", lambda _: False)
        theirs = attention.attend_fused(*parts.float(), distances.float())
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.2
    torch.testing.assert_close(ours.float(), theirs, atol=0.005, rtol=0.005)


@pytest.mark.parametrize(("channels", "keep"), [(24, True), (80, False), (4, True)])
def test_the_norm_of_a_sum_in_one_kernel_is_torchs(monkeypatch, channels, keep):
    """Rows far from zero, with little in them, and none of a number that programs share evenly."""
    monkeypatch.setattr(kernels, "NUMBERS_AT_ONCE", 128)
    generator = torch.Generator().manual_seed(channels)
    x, y = (torch.randn(3, 7, channels, generator=generator) * scale for scale in (1, 0.01))
    x[0, 0] += 100
    norm = nn.LayerNorm(channels)
    nn.init.normal_(norm.weight, generator=generator)
    nn.init.normal_(norm.bias, generator=generator)
    with torch.inference_mode():
        summed, normed = kernels.norm_of_sum(x, y.half(), norm.weight, norm.bias, norm.eps, torch.float32, keep=keep)
        expected = x + y.half()
        assert torch.equal(summed, expected if keep else torch.empty(0))
        torch.testing.assert_close(normed, norm(expected), atol=5e-5, rtol=1e-4)
        low = kernels.norm_of_sum(x, y.half(), norm.weight, norm.bias, norm.eps, torch.float16, keep=keep)[1]
    assert low.dtype == torch.float16
    torch.testing.assert_close(low.float(), normed, atol=0.01, rtol=0.002)


def test_a_network_norms_sums_with_the_kernel_or_without(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 3, 24, generator=generator), torch.randn(5, 2, 3, 24, generator=generator).transpose(0, 1)
    norm = nn.LayerNorm(24)
    with torch.inference_mode():
        expected = norms.add_and_norm(x, y, norm, torch.float32)
        monkeypatch.setattr(norms, "_in_one_kernel", lambda _: True)
        before = kernels_ran.total()
        for failed in (False, True):
            monkeypatch.setattr(norms._kernel, "_failed", failed)
            for ours, theirs in zip(norms.add_and_norm(x, y, norm, torch.float32), expected, strict=True):
                torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(norms.norm_of_sum(x, y, norm), expected[1])
    assert kernels_ran.total() == before + 2


def test_a_network_activates_group_norms_with_the_kernel_or_without(monkeypatch):
    x = torch.randn(2, 8, 4, 5, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    norm = nn.GroupNorm(4, 8)
    found = []
    for failed in (False, True):
        monkeypatch.setattr(norms._group_kernel, "_failed", failed)
        with torch.inference_mode():
            found.append(norms._silu_of_norm(x, norm.weight, norm.bias, 4, norm.eps, torch.float16))
            expected = norms.silu_of_norm(x, norm, torch.float16)
    for ours in found:
        assert (ours.dtype, ours.stride()) == (torch.float16, x.stride())
        torch.testing.assert_close(ours.float(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(("channels", "groups", "sides"), [(16, 4, (9, 7)), (8, 8, (3, 2)), (32, 2, (8, 8))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_activation_of_a_group_norm_in_two_kernels_is_torchs(monkeypatch, channels, groups, sides, dtype):
    """Also of fewer places than parts, and of an image of nearly one value, on whose last bits codes hang."""
    monkeypatch.setattr(kernels, "NUMBERS_AT_ONCE", 2 * channels)
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(3, channels, *sides, generator=generator)
    x[1] = 3 + 1e-2 * x[1]
    x[2] += torch.linspace(0, 50, sides[0] * sides[1]).view(sides)  # parts, and tiles of a part, differ
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    norm = nn.GroupNorm(groups, channels, eps=1e-6)
    nn.init.normal_(norm.weight, generator=generator)
    nn.init.normal_(norm.bias, generator=generator)
    with torch.inference_mode():
        ours = kernels.silu_of_norm(x, norm.weight, norm.bias, groups, norm.eps, dtype)
        theirs = nn.functional.silu(norm.double()(x.double()))
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    small = dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, atol=1e-4 if small else 2e-3, rtol=1e-4 if small else 2e-3)
