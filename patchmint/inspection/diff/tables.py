"""What two data sets' sidecars say of the same keys. 28 bytes a sample, so that ten million of each fit in memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.rows import Progress, iter_tables
from patchmint.shards.verify_tar import key_hash
from patchmint.types import Integers

Records = npt.NDArray[np.void]

_ROW = np.dtype(
    [
        ("key", np.uint64),
        ("texts", np.uint32),
        ("phrases", np.uint32),
        ("phrase_count", np.uint32),
        ("share_count", np.uint32),
        ("share_sum", np.float32),
    ]
)
_COLUMNS = ["key", "texts", "label_shares", "phrases", "phrase_texts", "scores"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """The samples that two data sets have, by key.

    Attributes:
        a: positions in A of the keys that B has too, ascending.
        b: the positions of the same keys in B.
        only_a: positions in A of the keys that B hasn't.
        only_b: positions in B of the keys that A hasn't.
    """

    a: Integers
    b: Integers
    only_a: Integers
    only_b: Integers


def digest_rows(dataset: Dataset, progress: Progress | None = None) -> Records:
    """A record a sample: hashes of key, texts and phrases (with their scores), and what is counted.

    Raises:
        ShardError: a sidecar is damaged.
        StorageError: one can't be read.
    """
    rows = np.zeros(dataset.samples, _ROW)
    first = 0
    for _, table in iter_tables(dataset, _COLUMNS, progress):
        columns = {name: table[name].to_pylist() for name in _COLUMNS}
        phrases = zip(columns["phrases"], columns["phrase_texts"], columns["scores"], strict=True)
        part = rows[first : first + table.num_rows]
        part["key"] = [key_hash(key) for key in columns["key"]]
        part["texts"] = [_digest(texts) for texts in columns["texts"]]
        part["phrases"] = [_digest(of_one) for of_one in phrases]
        part["phrase_count"] = [len(of_one) for of_one in columns["phrases"]]
        part["share_count"] = [len(shares) for shares in columns["label_shares"]]
        part["share_sum"] = [math.fsum(shares) for shares in columns["label_shares"]]
        first += table.num_rows
    return rows


def pair(a: Records, b: Records) -> Pairs:
    """Match the samples of two data sets by the hashes of their keys.

    Args:
        a: of `digest_rows`.
        b: of the other.
    """
    keys_a, keys_b = a["key"], b["key"]
    common, in_a, in_b = np.intersect1d(keys_a, keys_b, return_indices=True)
    order = np.argsort(in_a)
    return Pairs(
        a=in_a[order],
        b=in_b[order],
        only_a=np.flatnonzero(~np.isin(keys_a, common)),
        only_b=np.flatnonzero(~np.isin(keys_b, common)),
    )


def mean_label_share(rows: Records) -> float | None:
    """Mean over the texts of all samples; None where there are no labels."""
    texts = int(rows["share_count"].sum())
    return round(float(rows["share_sum"].sum(dtype=np.float64)) / texts, 6) if texts else None


def _digest(values: Sequence[object]) -> int:
    data = repr(values).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest())
