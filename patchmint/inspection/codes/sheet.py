"""Contact sheets of codes: the images that contain one, with the cells where it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import dataset_notice, iter_stored
from patchmint.errors import ImageError
from patchmint.geometry import PatchGrid
from patchmint.geometry.native import NativeGrid
from patchmint.images.decode import decode_image
from patchmint.inspection.codes.index import Code, CodeIndex, parse_code
from patchmint.inspection.codes.query import Cells, CodeReport, RankedCode, Ranking, find_cells
from patchmint.pictures.contact_sheet import Tile, TileGroup, draw_contact_sheet, draw_tile
from patchmint.pictures.labels import Rectangle
from patchmint.shards.endings import DOCUMENT, IMAGE
from patchmint.shards.layout import TokensLayout
from patchmint.shards.reader import StoredImage, StoredSample
from patchmint.types import Progress, RgbImage

_TILES_A_CODE = 6
_WORDS = 4
_KEPT = 4
# Decoded images of a sample, which several codes may be in.


def draw_code(
    dataset: Dataset,
    index: CodeIndex,
    tokens: TokensLayout,
    code: Code,
    report: CodeReport,
    progress: Progress | None = None,
) -> RgbImage:
    """A contact sheet of the images that have a code most often: below each its key and how often.

    Args:
        dataset: what is looked into.
        index: its index.
        tokens: what its codes are.
        code: which.
        report: what was found out about it.
        progress: told while images are read.

    Returns:
        HWC uint8 RGB.

    Raises:
        ShardError: a sample is damaged. An image that can't be decoded only leaves an empty tile.
        StorageError: one can't be read.
    """
    wanted: dict[int, tuple[Code, int]] = {}
    for image in report.shown:
        wanted[image.index] = (code, image.count + wanted.get(image.index, (code, 0))[1])
    tiles = _tiles(dataset, index, tokens, [wanted], len(report.shown), progress)[0]
    words = ", ".join(term.text for term in report.words.terms[:_WORDS])
    heading = f"{report.occurrences:,} times in {report.images:,} of {report.samples:,} images"
    title = f"code {report.code}" + (f": {words}" if words else "")
    return draw_contact_sheet([TileGroup(heading, tiles)], title=title, notice=dataset_notice(dataset))


def draw_ranking(
    dataset: Dataset, index: CodeIndex, tokens: TokensLayout, ranking: Ranking, progress: Progress | None = None
) -> RgbImage:
    """A contact sheet of the commonest codes and then of the most concentrated: a row a code, each code once.

    Args:
        dataset: what is looked into.
        index: its index.
        tokens: what its codes are.
        ranking: the codes.
        progress: told while images are read.

    Returns:
        HWC uint8 RGB.

    Raises:
        ShardError: a sample is damaged. An image that can't be decoded only leaves an empty tile.
        StorageError: one can't be read.
    """
    ranked = list({entry.code: entry for entry in (*ranking.commonest, *ranking.concentrated)}.values())
    wanted = []
    for entry in ranked:
        code = parse_code(entry.code, tokens)
        places, counts = index.ranked(code.number, _TILES_A_CODE)
        wanted.append({at: (code, count) for at, count in zip(places.tolist(), counts.tolist(), strict=True)})
    rows = _tiles(dataset, index, tokens, wanted, _TILES_A_CODE, progress)
    groups = [TileGroup(_heading(entry), tiles) for entry, tiles in zip(ranked, rows, strict=True)]
    title = "the commonest codes, then the most concentrated"
    return draw_contact_sheet(groups, title=title, notice=dataset_notice(dataset))


def _heading(entry: RankedCode) -> str:
    counts = f"{entry.occurrences:,} times in {entry.images:,} images, {entry.per_image:.1f} each"
    return f"code {entry.code} · {counts}" + (f" · {entry.word}" if entry.word else "")


def _tiles(
    dataset: Dataset,
    index: CodeIndex,
    tokens: TokensLayout,
    wanted: Sequence[dict[int, tuple[Code, int]]],
    most: int,
    progress: Progress | None,
) -> list[list[Tile]]:
    """Tiles of several codes, `most` of each, in one pass over the samples, each image decoded once."""
    positions = sorted({position for samples in wanted for position in samples})
    tiles: dict[tuple[int, int], list[Tile]] = {}
    for position, sample in iter_stored(dataset, positions, (IMAGE, DOCUMENT, f"{tokens.member}.npy"), progress):
        decoded = lru_cache(_KEPT)(partial(_decoded, sample, dataset.max_megapixels))
        for row, samples in enumerate(wanted):
            if position in samples:
                places = find_cells(sample, index, *samples[position])[:most]
                tiles[row, position] = [
                    _tile(image, decoded(image.number), tokens.cells, cells) for image, cells in places
                ]
    return [
        [tile for position in samples for tile in tiles[row, position]][:most] for row, samples in enumerate(wanted)
    ]


def _decoded(sample: StoredSample, megapixels: float, image: int) -> RgbImage | None:
    try:
        return decode_image(sample.images[image].data, max_megapixels=megapixels).pixels
    except ImageError:
        return None


def _tile(image: StoredImage, pixels: RgbImage | None, grid: PatchGrid | NativeGrid | None, cells: Cells) -> Tile:
    note = f"{len(cells)} times" + ("" if pixels is not None else ", can't be decoded")
    return Tile(None if pixels is None else draw_tile(pixels, _boxes(image, grid, cells)), image.name, note)


def _boxes(image: StoredImage, cells: PatchGrid | NativeGrid | None, found: Cells) -> list[Rectangle]:
    if cells is None:
        return []
    placement = cells.place((image.info.height, image.info.width))
    return [placement.cell_box(row, col) for row, col in found]
