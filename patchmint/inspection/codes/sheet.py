"""Contact sheets of codes: the images that contain one, with the cells where it is."""

from __future__ import annotations

from collections.abc import Sequence

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import dataset_notice, iter_stored
from patchmint.errors import ImageError
from patchmint.geometry import PatchGrid
from patchmint.images.decode import decode_image
from patchmint.inspection.codes.index import Code, CodeIndex, parse_code
from patchmint.inspection.codes.query import CodeReport, RankedCode, Ranking, find_cells
from patchmint.pictures.contact_sheet import Tile, TileGroup, draw_contact_sheet, draw_tile
from patchmint.pictures.labels import Rectangle
from patchmint.shards.endings import DOCUMENT, IMAGE
from patchmint.shards.layout import TokensLayout
from patchmint.shards.reader import StoredSample
from patchmint.types import Progress, RgbImage

_TILES_A_CODE = 6
_WORDS = 4


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
    wanted = {image.index: (code, image.count) for image in report.shown}
    tiles = _tiles(dataset, index, tokens, [wanted], progress)[0]
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
    rows = _tiles(dataset, index, tokens, wanted, progress)
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
    progress: Progress | None,
) -> list[list[Tile]]:
    """Tiles of several codes in one pass over the samples: each image is decoded once, and let go again."""
    limit = dataset.max_megapixels
    positions = sorted({position for images in wanted for position in images})
    tiles: dict[tuple[int, int], Tile] = {}
    for position, sample in iter_stored(dataset, positions, (IMAGE, DOCUMENT, f"{tokens.member}.npy"), progress):
        image = _decoded(sample, limit)
        for row, images in enumerate(wanted):
            if position in images:
                code, count = images[position]
                found = find_cells(sample, index, code, count)
                boxes = _boxes(sample, tokens.cells, found)
                picture = None if image is None else draw_tile(image, boxes)
                note = f"{count} times" + ("" if image is not None else ", can't be decoded")
                tiles[row, position] = Tile(picture, sample.key, note)
    return [[tiles[row, position] for position in images] for row, images in enumerate(wanted)]


def _decoded(sample: StoredSample, megapixels: float) -> RgbImage | None:
    try:
        return decode_image(sample.image, max_megapixels=megapixels).pixels
    except ImageError:
        return None


def _boxes(sample: StoredSample, cells: PatchGrid | None, found: Sequence[tuple[int, ...]]) -> list[Rectangle]:
    if cells is None:
        return []
    placement = cells.place((sample.document.image.height, sample.document.image.width))
    return [placement.cell_box(row, col) for row, col in found]
