"""Grids and their placement, against the same geometry written down a second time in fractions."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchmint.errors import ConfigError
from patchmint.geometry import Fit, PatchGrid, grid_preset
from patchmint.geometry.presets import fixed_presets

SIZES = [
    *[(1, 1), (1, 7), (7, 1), (2, 3), (335, 336), (336, 336), (337, 335), (427, 640), (481, 333), (333, 481)],
    *[(100, 2000), (2000, 100), (51, 1021), (1, 1000), (1000, 1), (672, 1344), (3001, 2003)],
]


def reference_offset_and_scale(grid, size):
    """For each view ((top, scale_y), (left, scale_x)): input pixel p shows original position top + p * scale.

    Follows the published code step by step: LLaVA's `expand2square`, CLIP's resize and crop, LLaVA's anyres.
    """
    height, width = size
    in_h, in_w = grid.input_size
    if grid.fit is Fit.SQUASH:
        yield (Fraction(0), Fraction(height, in_h)), (Fraction(0), Fraction(width, in_w))
    elif grid.fit is Fit.PAD:
        side = max(size)
        paste_y, paste_x = (side - height) // 2, (side - width) // 2
        yield (Fraction(-paste_y), Fraction(side, in_h)), (Fraction(-paste_x), Fraction(side, in_w))
    elif grid.fit is Fit.CROP:
        edge = grid.short_edge or in_h
        if height <= width:
            new_h, new_w = edge, int(edge * width / height)
        else:
            new_h, new_w = int(edge * height / width), edge
        top, left = int((new_h - in_h) / 2.0), int((new_w - in_w) / 2.0)
        scale_y, scale_x = Fraction(height, new_h), Fraction(width, new_w)
        yield (top * scale_y, scale_y), (left * scale_x, scale_x)
    else:
        yield (Fraction(0), Fraction(height, in_h)), (Fraction(0), Fraction(width, in_w))
        best_fit, most, least_waste = (0, 0), 0, math.inf
        for canvas_h, canvas_w in grid.canvases:
            scale = min(canvas_w / width, canvas_h / height)
            effective = min(int(width * scale) * int(height * scale), width * height)
            waste = canvas_w * canvas_h - effective
            if effective > most or (effective == most and waste < least_waste):
                best_fit, most, least_waste = (canvas_h, canvas_w), effective, waste
        canvas_h, canvas_w = best_fit
        if canvas_w / width < canvas_h / height:
            new_w, new_h = canvas_w, min(math.ceil(height * (canvas_w / width)), canvas_h)
        else:
            new_h, new_w = canvas_h, min(math.ceil(width * (canvas_h / height)), canvas_w)
        paste_y, paste_x = (canvas_h - new_h) // 2, (canvas_w - new_w) // 2
        scale_y, scale_x = Fraction(height, new_h), Fraction(width, new_w)
        for top in range(0, canvas_h, in_h):
            for left in range(0, canvas_w, in_w):
                yield ((top - paste_y) * scale_y, scale_y), ((left - paste_x) * scale_x, scale_x)


def reference_borders(grid, size):
    """Of every view the borders of its rows, and of its columns, in original pixels, exact."""
    for (top, scale_y), (left, scale_x) in reference_offset_and_scale(grid, size):
        yield (
            [top + row * grid.patch_px * scale_y for row in range(grid.rows + 1)],
            [left + col * grid.patch_px * scale_x for col in range(grid.cols + 1)],
        )


def shares_inside(borders, length):
    """How much of each row or column lies in the image, exact."""
    return [max(min(end, length) - max(start, 0), 0) / (end - start) for start, end in pairwise(borders)]


GRIDS = {
    **fixed_presets(),
    "small pad": PatchGrid(3, 3, 5, Fit.PAD),
    "small crop": PatchGrid(5, 5, 3, Fit.CROP, input_size=(17, 17)),
    "oblong squash": PatchGrid(3, 7, 2, Fit.SQUASH, input_size=(7, 14)),
    "small anyres": PatchGrid(2, 2, 4, Fit.ANYRES, canvases=((8, 24), (24, 8), (16, 16), (8, 8))),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cells_and_edges_lie_where_the_published_code_puts_them(name, size):
    grid = GRIDS[name]
    placement = grid.place(size)
    expected = list(reference_borders(grid, size))
    assert placement.shape == placement.inside.shape == (len(expected) * grid.rows, grid.cols)
    for index, (rows, cols) in enumerate(expected):
        for row, (y0, y1) in enumerate(pairwise(map(float, rows)), index * grid.rows):
            for col, (x0, x1) in enumerate(pairwise(map(float, cols))):
                # The nearest floats to the exact borders, not merely close ones.
                assert placement.cell_box(row, col) == (x0, y0, x1, y1)
        inside = placement.inside[index * grid.rows : (index + 1) * grid.rows]
        exact = np.outer(shares_inside(rows, size[0]), shares_inside(cols, size[1]))  # of fractions
        np.testing.assert_allclose(inside, exact.astype(float), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(inside == 0, exact == 0)
        np.testing.assert_array_equal(inside == 1, exact == 1)
    for frame in (None, size, (256, 192), (1, 1)):
        factor_y, factor_x = (Fraction(f, s) for f, s in zip(frame or size, size, strict=True))
        for view, (rows, cols) in zip(placement.views, expected, strict=True):
            y, x = placement.edges(view, frame)
            assert y.tolist() == [float(border * factor_y) for border in rows]
            assert x.tolist() == [float(border * factor_x) for border in cols]
            assert (np.diff(y) > 0).all()
            assert (np.diff(x) > 0).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_padding_and_squashing_show_every_pixel_once(size):
    for name in ("llava-1.5-finetune", "seed-224"):
        placement = grid_preset(name).place(size)
        ((y, x),) = (placement.edges(view) for view in placement.views)
        areas = np.outer(np.diff(y), np.diff(x)) * placement.inside
        assert areas.sum() == pytest.approx(size[0] * size[1], rel=1e-12)


def test_siglip_never_looks_at_the_last_six_pixels():
    placement = grid_preset("siglip-so400m-384").place((768, 1536))
    assert placement.cell_box(26, 26) == (26 * 14 * 4.0, 26 * 14 * 2.0, 378 * 4.0, 378 * 2.0)


@given(
    name=st.sampled_from(sorted(GRIDS)),
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    across=st.floats(0, 1),
    down=st.floats(0, 1),
)
def test_input_and_original_map_both_ways(name, height, width, across, down):
    grid = GRIDS[name]
    placement = grid.place((height, width))
    for view, ((top, scale_y), (left, scale_x)) in zip(
        placement.views, reference_offset_and_scale(grid, (height, width)), strict=True
    ):
        for axis, start, scale, length, share in (
            (view.y, top, scale_y, height, down),
            (view.x, left, scale_x, width, across),
        ):
            position = share * length
            there = axis.to_input(position)
            assert there == pytest.approx(float((Fraction(position) - start) / scale), rel=1e-12, abs=1e-9)
            assert axis.to_original(there) == pytest.approx(position, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("cell", [(-1, 0), (0, -1), (24, 0), (0, 24)])
def test_there_is_no_cell_outside_the_grid(cell):
    with pytest.raises(IndexError, match="no cell"):
        grid_preset("llava-1.5-finetune").place((10, 10)).cell_box(*cell)


@pytest.mark.parametrize(
    ("size", "canvas", "resized"),
    [
        ((400, 1200), (336, 1008), (336, 1008)),
        ((1200, 400), (1008, 336), (1008, 336)),
        ((800, 801), (672, 672), (672, 672)),
        ((500, 1000), (336, 672), (336, 672)),
        ((1001, 500), (1008, 336), (673, 336)),
        ((427, 640), (672, 672), (449, 672)),
        # Any image within 336 x 336 loses nothing on either oblong canvas: the first listed wins.
        ((200, 300), (672, 336), (225, 336)),  # 200 * 1.12 is a little over 224 in floats; LLaVA rounds that up
        ((336, 336), (672, 336), (336, 336)),
        # Nothing of it is left on any canvas by LLaVA's count, so the smallest wins.
        ((1, 2000), (672, 336), (1, 336)),
    ],
)
def test_anyres_canvas(size, canvas, resized):
    assert grid_preset("llava-1.6").anyres_canvas(size) == (canvas, resized)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, "at least 1"),
        ({"cols": -1}, "at least 1"),
        ({"patch_px": 0}, "at least 1"),
        ({"fit": "zoom"}, "choose one of pad, crop, squash, anyres"),
        ({"input_size": (20, 300)}, "smaller than"),
        ({"input_size": (-1, 300)}, "smaller than"),
        ({"fit": "crop", "input_size": (28, 42)}, "square"),
        ({"fit": "anyres"}, "list of canvases"),
        ({"canvases": ((28, 28),)}, "list of canvases"),
        ({"fit": "anyres", "canvases": ((28, 30),)}, "a multiple"),
        ({"fit": "anyres", "canvases": ((0, 28),)}, "a multiple"),
        ({"short_edge": 40}, "short_edge is for fit crop"),
        ({"fit": "crop", "short_edge": 20}, "at least the input's side of 28 px"),
    ],
)
def test_contradictory_grids_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        PatchGrid(**({"rows": 2, "cols": 2, "patch_px": 14, "fit": "pad"} | fields))


def test_a_grid_is_a_value():
    grid = PatchGrid(24, 24, 14, "pad")
    assert grid == grid_preset("llava-1.5-finetune")
    assert hash(grid) == hash(grid_preset("llava-1.5-finetune"))
    assert grid.fit is Fit.PAD
    assert grid.place((3, 4)) == grid.place((3, 4))


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ConfigError, match="no pixels"):
        grid_preset("seed-224").place((0, 5))


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'llava-1\.5-pretrain'"):
        grid_preset("llava-1.5-pretrian")
    with pytest.raises(ConfigError, match=r"did you mean 'llava-1\.5-hf' or 'llava-1\.5-\w+' or 'llava-1\.5-\w+'\? "):
        grid_preset("llava-1.5")
    with pytest.raises(ConfigError, match=r"patch_px and fit, or a processor$"):
        grid_preset("")
