"""Contact sheets: cells where they belong, whatever the image's shape; words that fit."""

import numpy as np
import pytest

from patchmint.errors import InputError
from patchmint.geometry import Fit, PatchGrid
from patchmint.pictures.contact_sheet import TILE_PX, Tile, TileGroup, draw_contact_sheet, draw_tile
from patchmint.pictures.labels import PALETTE


def bright(tile):
    """Pixels that keep the image's white."""
    return (tile > 240).all(axis=2)


def white(height, width):
    return np.full((height, width, 3), 255, np.uint8)


def orange(tile):
    return (tile == PALETTE[0]).all(axis=2)


@pytest.mark.parametrize("size", [(88, 176), (176, 88), (352, 352), (44, 44)])
@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_a_cell_is_outlined_where_it_lies(size, fit):
    grid = PatchGrid(4, 4, 16, Fit(fit))
    tile = draw_tile(white(*size), [grid.place(size).cell_box(1, 2)])
    assert tile.shape == (TILE_PX, TILE_PX, 3)
    height, width = (round(TILE_PX * side / max(size)) for side in size)
    # The square of fit pad is the tile; otherwise the cell is a quarter of the image each way, which is centred.
    room = (TILE_PX, TILE_PX) if fit == "pad" else (height, width)
    top = (TILE_PX - room[0]) / 2 + room[0] / 4
    left = (TILE_PX - room[1]) / 2 + room[1] / 2
    rows, cols = np.nonzero(orange(tile))
    edges = (rows.min(), rows.max() + 1, cols.min(), cols.max() + 1)
    # The outline has a pixel on either side of the border.
    expected = (top - 1, top + room[0] / 4 + 1, left - 1, left + room[1] / 4 + 1)
    assert np.abs(np.array(edges) - expected).max() <= 0.5
    inside = bright(tile)[edges[0] + 3 : edges[1] - 3, edges[2] + 3 : edges[3] - 3]
    assert inside.all()
    assert bright(tile).sum() < room[0] * room[1] / 16, "all else is dimmed"


def test_cells_in_the_margin_are_drawn_and_touching_ones_are_one_area():
    place = PatchGrid(4, 4, 16, Fit.PAD).place((50, 100))
    margin = draw_tile(white(50, 100), [place.cell_box(0, 0)])
    rows, cols = np.nonzero(orange(margin))
    assert rows.max() + 1 == cols.max() + 1 == TILE_PX // 4 + 1
    two = draw_tile(white(50, 100), [place.cell_box(1, 1), place.cell_box(1, 2)])
    assert not orange(two)[TILE_PX // 4 + 4 : TILE_PX // 2 - 4, TILE_PX // 2 - 3 : TILE_PX // 2 + 3].any()


def test_without_boxes_nothing_is_dimmed_and_any_image_will_do():
    assert bright(draw_tile(white(10, 10), [])).all()
    for size in ((1, 1), (1, 4000), (4000, 1)):
        tile = draw_tile(white(*size), [(0, 0, 0.01, 0.01), (-900, -900, 9e9, 9e9)])
        assert tile.shape == (TILE_PX, TILE_PX, 3)
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="a tile needs a uint8 image"):
            draw_tile(wrong, [])


def test_tiles_stand_in_rows_below_their_heading():
    picture = np.full((TILE_PX, TILE_PX, 3), (10, 200, 30), np.uint8)
    tiles = [Tile(picture, f"key{number}", "3 times") for number in range(7)]
    one = draw_contact_sheet([TileGroup("", tiles[:6])], title="")
    two = draw_contact_sheet([TileGroup("", tiles)], title="")
    assert (one == (10, 200, 30)).all(axis=2).sum() == 6 * TILE_PX**2
    assert (two == (10, 200, 30)).all(axis=2).sum() == 7 * TILE_PX**2
    assert two.shape[0] == 2 * one.shape[0]
    full = draw_contact_sheet(
        [TileGroup("code 1", tiles[:2]), TileGroup("code 2", [Tile(None, "k", "can't be decoded")])],
        title="codes",
        notice="demo models",
    )
    assert full.shape[1] == one.shape[1]
    assert (full[:5] == (255, 200, 0)).all(axis=2).mean() > 0.9
    assert np.array_equal(two, draw_contact_sheet([TileGroup("", tiles)], title=""))


def test_words_of_any_kind_stay_on_their_tile():
    picture = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    words = ["k" * 80, "猫がソファに座る" * 30, "\x1b[2J\u202e\n" * 9, "<b>" * 50]
    sheet = draw_contact_sheet([TileGroup(word, [Tile(picture, word, word)]) for word in words], title=words[1])
    background = (24, 26, 31)
    right = sheet[:, 2 * TILE_PX :]
    rows = (right != background).any(axis=(1, 2)).sum()
    assert rows < sheet.shape[0] / 3, "only headings and the title reach over the first tile"
    assert draw_contact_sheet([], title="").ndim == 3
