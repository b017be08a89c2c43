"""Grids drawn with characters: readable without colour, and about as wide as the image is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_SHADES = "·░▒▓█"
_HALVES = "·▄▀█"
_GAP = "   "


def draw_labels(
    kept: npt.NDArray[Any], coverage: npt.NDArray[np.uint8] | None, width: int, *, titles: Sequence[str]
) -> list[str]:
    """Draw which patches are kept, and how much of each is covered; side by side where there is room.

    A patch is two columns wide, since characters are twice as high as wide; in a narrow terminal one column, and then
    a line has two rows of patches.

    Args:
        kept: (rows, cols), not zero = kept.
        coverage: uint8 (rows, cols), 255 = all of the patch; None: only `kept` is drawn.
        width: columns of the terminal.
        titles: above the one and the other.

    Returns:
        Lines, none wider than `width`.
    """
    halved = 2 * kept.shape[1] > width
    grids = [_halves(kept != 0) if halved else _doubled(kept != 0, "·█")]
    if coverage is not None:
        # Any coverage at all is seen, and only what is nearly whole is drawn as such.
        levels = np.ceil(coverage / 255 * (len(_SHADES) - 1)).astype(np.int64)
        grids.append(_pairs(levels) if halved else _doubled(levels, _SHADES))
    blocks = [[title, *lines] for title, lines in zip(titles, grids, strict=False)]
    wide = [max(map(len, block)) for block in blocks]
    if sum(wide) + len(_GAP) * (len(blocks) - 1) <= width:
        rows = zip(*blocks, strict=True)
        return [_GAP.join(part.ljust(size) for part, size in zip(row, wide, strict=True)).rstrip() for row in rows]
    return [_cut(line, width) for block in blocks for line in block]


def draw_codes(codes: npt.NDArray[Any], width: int) -> list[str]:
    """Draw codes as numbers in their places; what doesn't fit into a line is cut, and the cut is marked.

    Args:
        codes: (rows, cols), or (length,), which is broken into lines.
        width: columns of the terminal.
    """
    digits = len(str(int(codes.max()))) if codes.size else 1
    room = max((width - 2) // (digits + 1), 1)
    if codes.ndim == 1:
        return [_numbers(codes[start : start + room], digits) for start in range(0, len(codes), room)]
    mark = " …" if codes.shape[1] > room else ""
    return [_numbers(row[:room], digits) + mark for row in codes]


def legend(covered: bool) -> str:
    """What the characters mean."""
    shades = f"; share of the patch that is covered: {_SHADES[0]} none, {' '.join(_SHADES[1:-1])} some, █ all"
    return f"█ kept, · not{shades if covered else ''}"


def _numbers(row: npt.NDArray[Any], digits: int) -> str:
    return " ".join(f"{code:>{digits}}" for code in row.tolist())


def _doubled(levels: npt.NDArray[Any], characters: str) -> list[str]:
    return ["".join(characters[int(level)] * 2 for level in row) for row in levels]


def _halves(kept: npt.NDArray[np.bool_]) -> list[str]:
    even = _even(kept)
    return ["".join(_HALVES[2 * int(a) + int(b)] for a, b in zip(*rows, strict=True)) for rows in even]


def _pairs(levels: npt.NDArray[np.int64]) -> list[str]:
    return ["".join(_SHADES[int(level)] for level in rows.max(axis=0)) for rows in _even(levels)]


def _even(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows in pairs: (pairs, 2, cols)."""
    return np.pad(rows, ((0, len(rows) % 2), (0, 0))).reshape(-1, 2, rows.shape[1])


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: max(width - 1, 0)]}…"
