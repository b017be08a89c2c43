"""Small drawings for the terminal, of plain characters: readable without colour, and in a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SHADES = " ░▒▓█"
_BARS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = "▏▎▍▌▋▊▉█"
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
# The dots of a braille character: four rows of two (Unicode, "Braille Patterns").


def heat_map(values: Sequence[Sequence[float]], width: int) -> list[str]:
    """A map in four shades, the highest value the darkest; a value above nothing is never blank.

    Args:
        values: rows of numbers >= 0.
        width: columns of the terminal; two to a value where there is room, so that cells are square.
    """
    highest = max((value for row in values for value in row), default=0) or 1
    wide = 2 if values and 2 * len(values[0]) <= width else 1
    steps = len(_SHADES) - 1
    return ["".join(_SHADES[-int(-value / highest * steps // 1)] * wide for value in row) for row in values]


def spark_line(counts: Iterable[int]) -> str:
    """A histogram in one line; a bin that isn't empty is never blank."""
    numbers = list(counts)
    highest = max(numbers, default=0) or 1
    return "".join(_BARS[-(-number * (len(_BARS) - 1) // highest)] for number in numbers)


def bar(share: float, width: int) -> str:
    """A bar, to an eighth of a character.

    Args:
        share: 0..1.
        width: characters of a full one.
    """
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    return _EIGHTHS[-1] * whole + (_EIGHTHS[rest - 1] if rest else "")


def dot_grid(cells: Iterable[Sequence[int]], rows: int, cols: int) -> list[str]:
    """A grid of braille dots, two columns and four rows to a character.

    Args:
        cells: (row, col) of each dot.
        rows: of the grid.
        cols: of the grid.
    """
    lines = [[_BRAILLE] * -(-cols // 2) for _ in range(-(-rows // 4))]
    for row, col in cells:
        lines[row // 4][col // 2] |= _DOTS[row % 4][col % 2]
    return ["".join(map(chr, line)) for line in lines]
