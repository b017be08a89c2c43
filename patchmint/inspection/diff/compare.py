"""What changed between two builds: settings, keys, texts, phrases, labels, codes and features.

Not compared: images (but how many a document has), the order of a document's parts, boxes and coverage.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchmint.datasets.dataset import Dataset, spread
from patchmint.datasets.rows import iter_tables
from patchmint.inspection.diff.members import Codes, Features, Labels, compare_members
from patchmint.inspection.find.search import read_keys
from patchmint.shards.manifest import held_settings
from patchmint.shards.verify_tar import key_hash
from patchmint.types import Integers, Progress

# What the members are follows from the layout, and the config's digest from the config.
_DERIVED = {"schema", "members", "config_digest"}

Records = npt.NDArray[np.void]
_ROW = np.dtype(
    [
        ("key", np.uint64),
        ("images", np.int32),
        ("texts", np.uint32),
        ("phrases", np.uint32),
        ("phrase_count", np.uint32),
        ("share_count", np.uint32),
        ("share_sum", np.float32),
    ]
)
_COLUMNS = ["key", "texts", "label_shares", "phrases", "phrase_texts", "scores"]
_OF_DOCUMENTS = ["images", "phrase_images"]


@dataclass(frozen=True)
class Change:
    """A field of dataset.json that two builds have otherwise.

    Attributes:
        field: its name, with dots: "config.labels.box_threshold".
        values: under "a" and "b" what each says; without what it doesn't have.
    """

    field: str
    values: Mapping[str, object]


def compare_settings(a: Dataset, b: Dataset) -> list[Change]:
    """Config, models, versions, layout and totals, in the order of their names; nothing where one has no manifest.

    The config is that which made what the shards hold (`held_settings`), whichever command did.
    """
    if a.manifest is None or b.manifest is None:
        return []
    sides = {name: dict(_flat(dataset)) for name, dataset in (("a", a), ("b", b))}
    changes = []
    for field in sorted(sides["a"].keys() | sides["b"].keys()):
        values = {name: side[field] for name, side in sides.items() if field in side}
        if len(values) < len(sides) or values["a"] != values["b"]:
            changes.append(Change(field, values))
    return changes


def describe_gaps(a: Dataset, b: Dataset) -> list[str]:
    """What can't be compared since a build isn't finished, or is one tar."""
    gaps = [f"{dataset.uri} isn't finished; units left: {dataset.unbuilt}" for dataset in (a, b) if dataset.unbuilt]
    without = [dataset.uri for dataset in (a, b) if dataset.manifest is None]
    if without:
        gaps.append(f"settings aren't compared: no dataset.json in {' and '.join(without)}")
    return gaps


def _flat(dataset: Dataset) -> Iterator[tuple[str, object]]:
    if dataset.manifest is not None:
        document = dataset.manifest.model_dump(mode="json") | {"config": held_settings(dataset.manifest)}
        yield from _leaves("", {name: value for name, value in document.items() if name not in _DERIVED})


def _leaves(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{prefix}.{name}" if prefix else str(name), inner)
    else:
        yield prefix, value


@dataclass(frozen=True)
class Some:
    """Some samples.

    Attributes:
        count: how many there are.
        first: the keys of the first of them.
    """

    count: int
    first: list[str]


@dataclass(frozen=True)
class Difference:
    """What is otherwise in B than in A.

    Attributes:
        settings: fields of dataset.json.
        gaps: what couldn't be compared, and why; no difference by itself.
        samples: of A, of B, and of both.
        only_a: keys that only A has.
        only_b: keys that only B has.
        images: samples of both with another number of images.
        texts: samples of both with other texts.
        phrases: samples of both with other phrases or scores.
        phrase_counts: phrases that were found in the samples of both, in A and in B.
        label_shares: mean over the texts of the samples of both, in A and in B; None where there are no labels.
        labels: patch by patch.
        codes: cell by cell.
        features: number by number.
    """

    settings: list[Change]
    gaps: list[str]
    samples: tuple[int, int, int]
    only_a: Some
    only_b: Some
    images: Some
    texts: Some
    phrases: Some
    phrase_counts: tuple[int, int]
    label_shares: tuple[float | None, float | None]
    labels: Labels
    codes: Codes
    features: Features

    @property
    def is_same(self) -> bool:
        """Whether nothing that was compared differs, and nothing was in the way of comparing it."""
        samples = (self.only_a, self.only_b, self.images, self.texts, self.phrases)
        members = (self.labels, self.codes, self.features)
        return (
            not self.settings
            and not any(some.count for some in samples)
            and not any(part.obstacle or part.changed or part.other_shape for part in members)
            and self.label_shares[0] == self.label_shares[1]
        )


def compare(a: Dataset, b: Dataset, *, samples: int = 0, top: int = 20, progress: Progress | None = None) -> Difference:
    """Compare two data sets, sample by sample where they have the same keys.

    Args:
        a: the older.
        b: the newer.
        samples: compare labels, codes and features of so many, evenly spread over those that both have; 0: of all.
        top: so many keys of each kind are named.
        progress: told of shards while the sidecars are read, and then of samples.

    Raises:
        ShardError: something of theirs is damaged.
        StorageError: it can't be read.
    """
    rows_a, rows_b = digest_rows(a, progress), digest_rows(b, progress)
    pairs = pair(rows_a, rows_b)
    common_a, common_b = rows_a[pairs.a], rows_b[pairs.b]
    chosen = spread(len(pairs.a), samples)
    labels, codes, features = compare_members(a, b, (pairs.a[chosen], pairs.b[chosen]), top, progress)
    return Difference(
        settings=compare_settings(a, b),
        gaps=describe_gaps(a, b),
        samples=(a.samples, b.samples, len(pairs.a)),
        only_a=_some(a, pairs.only_a, top),
        only_b=_some(b, pairs.only_b, top),
        images=_some(a, pairs.a[common_a["images"] != common_b["images"]], top),
        texts=_some(a, pairs.a[common_a["texts"] != common_b["texts"]], top),
        phrases=_some(a, pairs.a[common_a["phrases"] != common_b["phrases"]], top),
        phrase_counts=(int(np.sum(common_a["phrase_count"])), int(np.sum(common_b["phrase_count"]))),
        label_shares=(mean_label_share(common_a), mean_label_share(common_b)),
        labels=labels,
        codes=codes,
        features=features,
    )


def _some(dataset: Dataset, indices: Integers, top: int) -> Some:
    return Some(len(indices), list(read_keys(dataset, indices[:top])))


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
    names = [*_COLUMNS, *_OF_DOCUMENTS] if dataset.has_documents else _COLUMNS
    for _, table in iter_tables(dataset, names, progress):
        columns = {name: table[name].to_pylist() for name in names}
        found = ("phrases", "phrase_texts", "scores", "phrase_images")
        phrases = zip(*(columns[name] for name in found if name in columns), strict=True)
        part = rows[first : first + table.num_rows]
        part["images"] = columns.get("images", 1)
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
