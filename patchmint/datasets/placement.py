"""The patch grid of a stored sample, laid on its image."""

from __future__ import annotations

from patchmint.config.annotator import resolve_grid
from patchmint.datasets.dataset import Dataset
from patchmint.datasets.extension import stored_grid
from patchmint.errors import ConfigError, ShardError
from patchmint.geometry import Fit, PatchGrid, Placement
from patchmint.shards.schema import SampleDocument


def sample_placement(dataset: Dataset, document: SampleDocument) -> Placement:
    """Lay the data set's grid on a sample's image.

    The build's settings tell the grid exactly. Without them (a lone tar, an unfinished build) it is the document's, and
    of `anyres` the first view only: a document doesn't tell the canvases.

    Raises:
        ShardError: the document names no grid of ours.
    """
    size = (document.image.height, document.image.width)
    grid = document.grid
    try:
        if dataset.manifest is not None:
            return resolve_grid(stored_grid(dataset.manifest)).place(size)
        fit = Fit.SQUASH if grid.fit == Fit.ANYRES else Fit(grid.fit)
        return PatchGrid(grid.rows, grid.cols, grid.patch_px, fit).place(size)
    except (ConfigError, ValueError) as error:
        raise ShardError(f"sample {document.key!r} has a grid that can't be used: {error}; run verify") from error
