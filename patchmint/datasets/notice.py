"""The warning that belongs on every use of a data set."""

from __future__ import annotations

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.samples import sample_at


def dataset_notice(dataset: Dataset) -> str:
    """What says that untrained or demo models made it; of an unfinished build or a lone tar, by its first sample.

    Returns:
        Empty where there is none.

    Raises:
        ShardError: the sample is damaged.
        StorageError: it can't be read.
    """
    if dataset.manifest is not None:
        return dataset.manifest.notice
    return sample_at(dataset, 0).document.notice if dataset.samples else ""
