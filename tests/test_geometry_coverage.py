"""Coverage, against fractions pixel by pixel and against brute-force supersampling."""

import math
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from patchmint.errors import InputError
from patchmint.geometry import (
    GRID_PRESETS,
    Fit,
    NativeGrid,
    OverlapGrid,
    PatchGrid,
    Resize,
    TileGrid,
    coverage_from_logits,
    coverage_share,
    coverage_to_uint8,
    grid_preset,
)
from patchmint.geometry.rle import decode_mask, encode_masks
from patchmint.geometry.tiles import BestFit, NearestAspect, PanAndScan

SMALL = {
    "pad": PatchGrid(3, 3, 5, Fit.PAD),
    "crop": PatchGrid(5, 5, 3, Fit.CROP, input_size=(17, 17)),
    "squash": PatchGrid(3, 7, 2, Fit.SQUASH, input_size=(7, 14)),
    "anyres": PatchGrid(2, 2, 4, Fit.ANYRES, canvases=((8, 24), (24, 8), (16, 16), (8, 8))),
    "interpolated": PatchGrid(4, 5, 3, Fit.ANYRES, (13, 16), ((26, 32),), max_tiles=1),
    "tiles": TileGrid(13, 4, 2, NearestAspect(1, 6), "last"),
    "padded tiles": TileGrid(12, 4, 1, BestFit(4), "last"),
    "crops": TileGrid(8, 4, 1, PanAndScan(4, 3, 1.2), "first"),
    "overlap": OverlapGrid(20, 4, 2, 4, 2),
    "native": NativeGrid(4, 2, 8, Resize.SMART, 64, 400),
    "edge": NativeGrid(3, 1, 3, Resize.EDGE, 0, 40),
}
PRESETS = ["llava-1.5-pretrain", "llava-1.5-finetune", "llava-1.6-original", "siglip-so400m-384", "seed-224"]
SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (13, 13), (15, 17), (19, 14), (3, 60), (60, 3), (23, 31)]


def exact_borders(grid, size, frame):
    """For each view the cell borders as fractions of mask pixels: (rows + 1), (cols + 1)."""
    for view in grid.place(size).views:
        yield [
            [Fraction(border * axis.numerator - axis.shift, axis.denominator) * seen / length for border in borders]
            for axis, borders, seen, length in zip(
                (view.y, view.x), (view.y_borders, view.x_borders), frame, size, strict=True
            )
        ]


def exact_coverage(mask, grid, size):
    """Share of each cell under the mask: every cell, every pixel, in fractions."""
    rows = []
    for y, x in exact_borders(grid, size, mask.shape):
        for top, bottom in pairwise(y):
            row = []
            for left, right in pairwise(x):
                covered = Fraction(0)
                for j in range(max(math.floor(top), 0), min(math.ceil(bottom), mask.shape[0])):
                    for i in range(max(math.floor(left), 0), min(math.ceil(right), mask.shape[1])):
                        if mask[j, i]:
                            covered += (min(right, i + 1) - max(left, i)) * (min(bottom, j + 1) - max(top, j))
                row.append(covered / ((right - left) * (bottom - top)))
            rows.append(row)
    widest = max(map(len, rows))  # a narrower view is filled up with cells that are nowhere
    return [row + [Fraction(0)] * (widest - len(row)) for row in rows]


def check(mask, grid, size):
    shares = exact_coverage(mask, grid, size)
    levels = [[math.ceil(share * 255) for share in row] for row in shares]
    placement = grid.place(size)
    for layout in (mask, np.asfortranarray(mask), mask.astype(np.uint8) * 200, mask[::-1][::-1]):
        ours = coverage_share(layout, placement)
        assert ours.shape == placement.shape
        np.testing.assert_allclose(ours, np.array(shares, dtype=float), rtol=0, atol=1e-12)
        assert ((ours == 0) == (np.array(shares) == 0)).all()
        assert coverage_to_uint8(ours).tolist() == levels


@pytest.mark.parametrize("fit", SMALL)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_fractions(fit, size):
    rng = np.random.default_rng(size[0] * 100 + size[1])
    for density in (0.05, 0.5, 0.95):
        check(rng.random(size) < density, SMALL[fit], size)


@pytest.mark.parametrize("fit", SMALL)
@pytest.mark.parametrize("frame", [(1, 1), (5, 7), (16, 16), (40, 3)], ids=str)
def test_equals_fractions_on_masks_of_another_resolution(fit, frame):
    rng = np.random.default_rng(frame[0])
    for size in ((23, 31), (60, 3), (1, 1), (14, 14)):
        check(rng.random(frame) < 0.4, SMALL[fit], size)


@st.composite
def grids(draw):
    fit = draw(st.sampled_from(Fit))
    rows, cols, patch = draw(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6)))
    if fit is Fit.CROP:
        side = max(rows, cols) * patch + draw(st.integers(0, 3))
        return PatchGrid(rows, cols, patch, fit, (side, side))
    size = (rows * patch + draw(st.integers(0, 3)), cols * patch + draw(st.integers(0, 3)))
    canvases = ()
    if fit is Fit.ANYRES:
        tiles = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3))
        canvases = tuple((high * size[0], wide * size[1]) for high, wide in tiles)
    return PatchGrid(rows, cols, patch, fit, size, canvases)


@settings(max_examples=150)
@given(
    grid=grids(),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    frame=st.none() | st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.02, 0.3, 0.9]),
)
def test_equals_fractions_on_any_grid(grid, size, frame, seed, density):
    check(np.random.default_rng(seed).random(frame or size) < density, grid, size)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    ("size", "frame"),
    [
        *[((427, 640), None), ((333, 481), None), ((100, 2000), None), ((2000, 100), None), ((1, 1), None)],
        *[((1, 700), None), ((700, 1), None), ((1501, 997), (256, 170))],
    ],
    ids=str,
)
def test_agrees_with_supersampling(name, size, frame):
    """Presets at their real size: sample points in every cell, look each up in the mask, count.

    A pixel border that crosses a cell is off by half a sample at most, hence the tolerance.
    """
    grid = grid_preset(name)
    shape = frame or size
    rng = np.random.default_rng(7)
    y, x = np.mgrid[: shape[0], : shape[1]]
    centre_y, centre_x = rng.uniform(0.3, 0.7, 2) * shape
    mask = ((y - centre_y) / shape[0]) ** 2 + ((x - centre_x) / shape[1]) ** 2 < 0.1
    mask |= (x // 7 + y // 5) % 9 == 0
    mask[shape[0] // 2, shape[1] // 2] = True  # the one pixel of a 1 x N image that a centre crop shows
    samples = 61
    parts = []
    for top_bottom, left_right in exact_borders(grid, size, shape):
        rows, cols = (
            np.array([float(a + (b - a) * (2 * k + 1) / (2 * samples)) for a, b in pairwise(e) for k in range(samples)])
            for e in (top_bottom, left_right)
        )
        places = (np.clip(np.floor(at).astype(int), -1, end) + 1 for at, end in zip((rows, cols), shape, strict=True))
        seen = np.pad(mask, 1)[np.ix_(*places)]
        parts.append(seen.reshape(grid.rows, samples, grid.cols, samples).mean(axis=(1, 3)))
    expected = np.concatenate(parts)
    ours = coverage_share(mask, grid.place(size))
    assert np.abs(ours - expected).max() < 0.06
    assert np.abs(ours - expected).mean() < 0.01
    assert (ours[expected > 0] > 0).all()
    assert expected.max() > 0


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *product(
            PRESETS, [(1, 1), (336, 336), (427, 640), (333, 481), (97, 1999), (1999, 97), (1, 5000), (3001, 1000)]
        ),
        *((name, size) for name in GRID_PRESETS if name not in PRESETS for size in ((333, 481), (1501, 1203))),
    ],
    ids=str,
)
def test_full_and_empty_masks_are_exact(name, size):
    placement = grid_preset(name).place(size)
    full = coverage_share(np.ones(size, dtype=bool), placement)
    np.testing.assert_allclose(full, placement.inside, rtol=0, atol=1e-9)
    assert (full[placement.inside == 1] > 254.5 / 255).all()
    levels = coverage_to_uint8(full)
    assert (levels[placement.inside == 1] == 255).all()
    assert ((levels == 0) == (placement.inside == 0)).all()
    assert not coverage_share(np.zeros(size, dtype=bool), placement).any()


@pytest.mark.parametrize("grid", [PatchGrid(n, n, 1, Fit.SQUASH) for n in (3, 7, 24, 27)], ids=lambda g: str(g.rows))
@pytest.mark.parametrize("factor", [1, 3, 7, 11, 49, 331])
def test_borders_on_pixel_borders_leave_no_sliver(grid, factor):
    """A cell's neighbours are full, the cell is empty: it must count exactly 0, or its label would flip."""
    length = grid.rows * factor
    for patch_px in (1, 3, 14, 17):
        scaled = PatchGrid(grid.rows, grid.cols, patch_px, Fit.SQUASH)
        for cell in range(grid.rows):
            mask = np.ones((length, 1), dtype=bool)
            mask[cell * factor : (cell + 1) * factor] = False
            expected = np.ones(grid.rows)
            expected[cell] = 0
            placement = scaled.place((length, 1))
            share = coverage_share(mask, placement)[:, 0]
            assert share[cell] == 0
            np.testing.assert_allclose(share, expected, rtol=1e-15)
            assert coverage_to_uint8(share).tolist() == (expected * 255).tolist()


@pytest.mark.parametrize("size", [(427, 640), (333, 481), (1999, 97), (3000, 4000)], ids=str)
@pytest.mark.parametrize("name", PRESETS)
def test_one_pixel_touches_the_cells_it_overlaps_and_no_other(name, size):
    grid = grid_preset(name)
    placement = grid.place(size)
    borders = list(exact_borders(grid, size, size))
    rng = np.random.default_rng(1)
    # On both sides of cell borders, where rounding could push a pixel over, and anywhere.
    rows = [math.floor(v) + d for v in borders[0][0][5:7] for d in (-1, 0)] + rng.integers(size[0], size=4).tolist()
    cols = [math.floor(v) + d for v in borders[0][1][9:11] for d in (-1, 0)] + rng.integers(size[1], size=4).tolist()
    mask = np.zeros(size, dtype=bool)
    for row, col in zip(rows, cols, strict=True):
        row, col = min(max(row, 0), size[0] - 1), min(max(col, 0), size[1] - 1)
        mask[row, col] = True
        levels = coverage_to_uint8(coverage_share(mask, placement))
        mask[row, col] = False
        expected = []
        for y, x in borders:
            high = [max(min(b, row + 1) - max(a, row), 0) / (b - a) for a, b in pairwise(y)]
            wide = [max(min(b, col + 1) - max(a, col), 0) / (b - a) for a, b in pairwise(x)]
            expected += [[math.ceil(h * w * 255) for w in wide] for h in high]
        assert levels.tolist() == expected


def test_levels_round_up_but_never_past_an_exact_level():
    shares = np.array([[0.0, 1e-300, 1e-12, 1 / 255, 1.0000001 / 255, 2 / 255, 254 / 255, 254.001 / 255, 1.0]])
    assert coverage_to_uint8(shares).tolist() == [[0, 1, 1, 1, 2, 2, 254, 255, 255]]
    assert coverage_to_uint8(np.arange(256) / 255).tolist() == list(range(256))
    assert coverage_to_uint8(np.arange(256) * (1 / 255)).tolist() == list(range(256))


def test_long_runs_of_rows_do_not_overflow_a_byte():
    """More than 255 rows in one segment: the sums are made in bytes."""
    for size in ((256, 4), (4, 256), (1021, 3), (3, 1021), (20_000, 2)):
        placement = PatchGrid(2, 2, 4, Fit.SQUASH).place(size)
        for order in "CF":
            np.testing.assert_array_equal(coverage_share(np.ones(size, bool, order), placement), np.ones((2, 2)))


def test_masks_decoded_from_rle_give_the_same():
    mask = np.random.default_rng(3).random((481, 333)) < 0.3
    placement = grid_preset("llava-1.6").place((481, 333))
    decoded = decode_mask(encode_masks(mask[None])[0])
    assert not decoded.flags.c_contiguous
    np.testing.assert_allclose(coverage_share(decoded, placement), coverage_share(mask, placement), rtol=0, atol=1e-12)


def test_a_mask_is_not_changed():
    mask = np.full((9, 9), 7, dtype=np.uint8)
    mask.flags.writeable = False
    coverage_share(mask, grid_preset("seed-224").place((9, 9)))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (5,), (1, 5, 5), ()], ids=str)
def test_masks_of_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match="at least one pixel"):
        coverage_share(np.zeros(shape, dtype=bool), grid_preset("seed-224").place((5, 5)))


def postprocess_masks(logits, side, used, size):
    """Reference for upstream's `Sam.postprocess_masks` and threshold."""
    large = functional.interpolate(torch.from_numpy(logits)[None, None], (side, side), mode="bilinear")
    part = large[..., : used[0], : used[1]]
    return (functional.interpolate(part, size, mode="bilinear")[0, 0] > 0).numpy()


def low_res_logits(kind, n, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 1, n, n, generator=generator)
    if kind == "noise":
        return noise[0, 0].numpy()
    smooth = functional.interpolate(torch.randn(1, 1, 5, 5, generator=generator) - 0.5, (n, n), mode="bicubic")
    return (8 * smooth + 0.3 * noise)[0, 0].numpy()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", ["objects", "noise"])
@pytest.mark.parametrize(
    ("size", "low", "side"),
    [
        *[((427, 640), 256, 1024), ((333, 481), 256, 1024), ((1501, 997), 256, 1024), ((100, 2000), 256, 1024)],
        *[((2000, 100), 256, 1024), ((1, 1), 256, 1024), ((1, 300), 256, 1024), ((97, 64), 16, 64), ((50, 40), 7, 30)],
        *[((50, 40), 16, 16), ((9, 5), 1, 4), ((4001, 3), 64, 256)],
    ],
    ids=str,
)
def test_logits_give_the_coverage_of_the_full_resolution_mask(name, kind, size, low, side):
    check_logits(grid_preset(name).place(size), kind, low, side)


@pytest.mark.parametrize("kind", SMALL)
def test_logits_give_it_on_every_kind_of_grid(kind):
    for size in ((23, 31), (60, 13)):
        check_logits(SMALL[kind].place(size), "objects", 16, 64)


def check_logits(placement, kind, low, side):
    size = placement.image_size
    used = tuple(max(1, int(edge * side / max(size) + 0.5)) for edge in size)
    for seed in range(2):
        logits = np.stack([low_res_logits(kind, low, seed), low_res_logits(kind, low, seed + 100)])
        made = [postprocess_masks(each, side, used, size) for each in logits]
        expected = coverage_share(made[0], placement)
        ours = coverage_from_logits(logits[:1], placement, input_side=side, used=used)
        assert ours.shape == placement.shape
        # All cells alike, but for a pixel whose logit is 0 to within rounding.
        assert (np.abs(ours - expected) > 1e-12).sum() <= 2
        union = coverage_from_logits(logits, placement, input_side=side, used=used)
        assert (np.abs(union - coverage_share(made[0] | made[1], placement)) > 1e-12).sum() <= 2


@pytest.mark.parametrize("value", [-3.0, 0.0, 3.0])
def test_logits_of_one_sign_fill_all_or_nothing(value):
    placement = grid_preset("llava-1.5-finetune").place((427, 640))
    logits = np.full((1, 256, 256), value, dtype=np.float32)
    share = coverage_from_logits(logits, placement, input_side=1024, used=(683, 1024))
    np.testing.assert_allclose(share, placement.inside * (value > 0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("logits", "side", "used", "message"),
    [
        (np.zeros((1, 4, 5)), 16, (16, 16), "n, n"),
        (np.zeros((1, 0, 0)), 16, (16, 16), "n, n"),
        (np.zeros((4, 4)), 16, (16, 16), "n, n"),
        (np.zeros((1, 32, 32)), 16, (16, 16), "n of 1 to 16"),
        (np.zeros((1, 4, 4)), 16, (0, 16), "take up"),
        (np.zeros((1, 4, 4)), 16, (16, 17), "take up"),
        (np.full((1, 4, 4), np.nan), 16, (16, 16), "NaN"),
        (np.full((1, 4, 4), np.inf), 16, (16, 16), "NaN"),
    ],
)
def test_unfit_logits_are_refused(logits, side, used, message):
    with pytest.raises(InputError, match=message):
        coverage_from_logits(logits, grid_preset("seed-224").place((16, 16)), input_side=side, used=used)
