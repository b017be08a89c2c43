"""What the page must know before anything else."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import dataset_notice
from patchmint.errors import ShardError
from patchmint.inspection.gallery.columns import INDEX_CHUNK, NONE, SCALE, TEXTS_CHUNK
from patchmint.inspection.gallery.remake import Offer
from patchmint.pictures.labels import PALETTE
from patchmint.version import __version__


def meta_document(dataset: Dataset, shown: int, masks: Offer, decoded: Offer) -> dict[str, Any]:
    """Counts, forms and what can be switched on.

    The data set is named by the last part of its address: the gallery may be shown to those whom paths don't concern.

    Args:
        dataset: what is shown.
        shown: samples of it that are in the gallery, evenly spread.
        masks: whether masks can be switched on.
        decoded: whether decoded pictures can.

    Raises:
        StorageError: the first sample, which tells an unfinished build's notice, can't be read.
    """
    manifest = dataset.manifest
    name = dataset.uri.rstrip("/").rpartition("/")[2]
    if name in ("", ".", ".."):
        name = dataset.storage.uri.rstrip("/").rpartition("/")[2]
    notice = ""
    with suppress(ShardError):  # a damaged first sample; its card says so
        notice = dataset_notice(dataset)
    return {
        "version": __version__,
        "name": name,
        "shown": shown,
        "samples": dataset.samples,
        "shards": sum(bool(shard.samples) for shard in dataset.shards),
        "rejected": sum(shard.rejected for shard in dataset.shards),
        "unbuilt": dataset.unbuilt,
        "notice": notice,
        "min_coverage": manifest.layout.min_coverage if manifest is not None else None,
        "index_chunk": INDEX_CHUNK,
        "texts_chunk": TEXTS_CHUNK,
        "scale": SCALE,
        "none": NONE,
        "palette": [f"rgb({red} {green} {blue})" for red, green, blue in PALETTE],
        "masks": {"available": masks.available, "remark": masks.remark},
        "decoded": {"available": decoded.available, "remark": decoded.remark},
    }
