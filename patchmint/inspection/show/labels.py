"""Labels of one text of a stored sample, checked: a lone tar may be anybody's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchmint.errors import ShardError
from patchmint.shards.reader import StoredSample

Grid = npt.NDArray[np.uint8]


def text_labels(sample: StoredSample, text: int) -> tuple[Grid, Grid | None]:
    """The selector and the coverage of a text.

    Returns:
        uint8 (rows * views, cols), 0 or 1; and uint8 of the same shape, 255 = all of the patch, or None where the
        sample has none. Where there are no labels at all the first is empty.

    Raises:
        ShardError: they don't fit the sample's texts or its grid.
    """
    grid, selector, coverage = sample.document.grid, sample.selector, sample.coverage
    if selector is None:
        return np.zeros((0, 0), np.uint8), None
    wanted = (len(sample.document.texts), grid.rows * grid.views, grid.cols)
    if any(array is not None and (array.shape != wanted or array.dtype != np.uint8) for array in (selector, coverage)):
        raise ShardError(
            f"sample {sample.key!r} has labels that don't fit its texts and its grid, {wanted} of uint8; run "
            "`patchmint inspect verify` on it"
        )
    return selector[text], coverage[text] if coverage is not None else None
