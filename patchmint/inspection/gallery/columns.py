"""Chunks of the sidecars for the page's filters: numbers of many samples in a few bytes each, texts by themselves."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.rows import rows_at
from patchmint.inspection.gallery.scripts import packed
from patchmint.types import Integers

INDEX_CHUNK = 10_000
"""Samples of one file of numbers."""

TEXTS_CHUNK = 2_000
"""Samples of one file of texts: some MB at most, since a page must hold one of them while it searches."""

SCALE = 20_000
"""Shares and scores are sent as whole numbers of this fraction. An even one stands for itself, an odd one for all that
lies between its neighbours, so that a bound of up to four decimals, as `inspect find` takes it, is held exactly."""

NONE = 65_535
"""Stands for a sample that has no score."""

_STEPS = (np.arange(SCALE // 2 + 1) / (SCALE // 2)).astype(np.float32)
# In single precision, as the sidecar has its numbers.


def index_document(dataset: Dataset, indices: Integers) -> dict[str, str]:
    """Numbers of samples at ascending positions, packed as uint16.

    Returns:
        `shares`: the label shares of each sample's texts, ascending, each once, one sample after the other; `counts`:
        how many of them each sample has; `score`: each sample's best score.
    """
    rows = [row for _, row in rows_at(dataset, indices, ["label_shares", "scores"])]
    every = iter(_levels([share for row in rows for share in row["label_shares"]]).tolist())
    shares = [sorted(set(islice(every, len(row["label_shares"])))) for row in rows]
    best = _levels([max(row["scores"], default=-1) for row in rows])
    return {
        "shares": packed(np.array([level for own in shares for level in own], np.uint16)),
        "counts": packed(np.array([len(own) for own in shares], np.uint16)),
        "score": packed(best),
    }


def texts_document(dataset: Dataset, indices: Integers) -> dict[str, list[Any]]:
    """Keys and texts of samples at ascending positions."""
    rows = [row for _, row in rows_at(dataset, indices, ["key", "texts"])]
    return {"keys": [row["key"] for row in rows], "texts": [row["texts"] for row in rows]}


def _levels(numbers: Iterable[float]) -> npt.NDArray[np.uint16]:
    """Numbers 0..1 as `SCALE` has them; `NONE` for -1, which is "not known"."""
    values = np.array(numbers, np.float32)
    below = np.searchsorted(_STEPS, np.clip(values, 0, 1), side="right") - 1
    levels = 2 * below + (_STEPS[below] < values)
    return np.where(values >= 0, levels, NONE).astype(np.uint16)
