"""Which samples, or rejects, are like this? Looked up in their tables; no tar is opened."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.ledger import iter_rejects
from patchmint.datasets.rows import iter_tables, rows_at
from patchmint.errors import InputError
from patchmint.inspection.find.sql import Conditions
from patchmint.samples import Fault, Reject
from patchmint.shards.rejects import SCHEMA as REJECTS
from patchmint.types import Integers, Progress

_BEST = "nullif(list_max(scores), -1)"  # -1: the model gives no scores
_COLUMNS = ["key", "id", "texts", "label_shares", "phrases", "scores"]
_OF_DOCUMENTS = ["images", "share_images", "share_texts"]


@dataclass(frozen=True)
class Search:
    """What samples must be like; all that is given must hold.

    Attributes:
        texts: words that must stand in some text, whatever their case; each in one of its own.
        phrases: the same of phrases.
        key: a pattern for the key, with *, ? and [a-f]; empty for any.
        min_score: of the best phrase's score, 0..1; samples without a scored phrase don't match.
        max_score: of the same.
        min_share: of some text's label share, 0..1; with `max_share`, of the same text's.
        max_share: of the same.
        where: a condition in SQL over the sidecar's columns; empty for none.
        sort: what to sort by, in SQL; may end in asc or desc. Empty: in the data set's order.
    """

    texts: Sequence[str] = ()
    phrases: Sequence[str] = ()
    key: str = ""
    min_score: float | None = None
    max_score: float | None = None
    min_share: float | None = None
    max_share: float | None = None
    where: str = ""
    sort: str = ""


@dataclass(frozen=True)
class Found:
    """A sample that was found.

    Attributes:
        index: its position in the data set.
        shard: the tar.
        key: its name.
        id: the source's name for it.
        images: how many it has; 1: it is a picture, or a document of one.
        texts: all of them.
        label_shares: per text, of a document per image and text that labels it, 0..1; empty where there are no labels.
        pairs: image and text of each of these; of a picture empty.
        phrases: that were found in it.
        best_score: of the phrases, 0..1; None where there is none.
    """

    index: int
    shard: str
    key: str
    id: str
    images: int
    texts: list[str]
    label_shares: list[float]
    pairs: list[tuple[int, int]]
    phrases: list[str]
    best_score: float | None


def find_samples(
    dataset: Dataset, search: Search, limit: int = 0, progress: Progress | None = None
) -> tuple[int, Integers]:
    """Look through the sidecars, a shard at a time; samples marked wrong are found only where SQL names `wrong`.

    Args:
        dataset: where.
        search: what for.
        limit: positions wanted; 0: all.
        progress: told after each shard.

    Returns:
        How many samples match, and the positions of the first `limit`, in order: int64.

    Raises:
        InputError: a range is empty, an SQL condition can't be used, or the data set has no labels to search by.
        ShardError: a sidecar is damaged.
        StorageError: one can't be read.
    """
    if _needs_labels(search) and dataset.manifest is not None and dataset.manifest.layout.min_coverage is None:
        raise InputError(
            f"{dataset.uri} has no labels, so no phrases, scores or label shares; search by --text, --key or --where"
        )
    own, values = _conditions(search)
    if leaves_out_wrong(dataset, search):
        own.append("NOT wrong")
    with Conditions(dataset.schema, own, values, where=search.where, sort=search.sort) as conditions:
        for _, table in iter_tables(dataset, conditions.columns, progress):
            conditions.add(table)
        return conditions.total, conditions.numbers(limit)


def leaves_out_wrong(dataset: Dataset, search: Search) -> bool:
    """Whether samples that somebody marked as wrong aren't found: unless SQL names the column."""
    return dataset.has_edits and not re.search(r"\bwrong\b", f"{search.where} {search.sort}", re.IGNORECASE)


def count_wrong(dataset: Dataset) -> int:
    """Samples that somebody marked as wrong. Raises ShardError or StorageError as `find_samples`."""
    return sum(sum(table["wrong"].to_pylist()) for _, table in iter_tables(dataset, ["wrong"]))


def read_found(dataset: Dataset, indices: Integers) -> Iterator[Found]:
    """The rows of samples, in the order of their positions as given.

    Raises:
        ShardError: a sidecar is damaged.
        StorageError: one can't be read.
    """
    columns = [*_COLUMNS, *_OF_DOCUMENTS] if dataset.has_documents else _COLUMNS
    for index, row in _rows_at(dataset, indices, columns):
        scores = [score for score in row["scores"] if score >= 0]
        yield Found(
            index=index,
            shard=dataset.place(index)[0].tar,
            key=row["key"],
            id=row["id"],
            images=row.get("images", 1),
            texts=row["texts"],
            label_shares=[round(share, 6) for share in row["label_shares"]],
            pairs=list(zip(row.get("share_images", ()), row.get("share_texts", ()), strict=True)),
            phrases=row["phrases"],
            best_score=round(max(scores), 4) if scores else None,
        )


def read_keys(dataset: Dataset, indices: Integers) -> Iterator[str]:
    """The keys of samples, in the order of their positions as given.

    Raises:
        ShardError: a sidecar is damaged.
        StorageError: one can't be read.
    """
    for _, row in _rows_at(dataset, indices, ["key"]):
        yield row["key"]


def _needs_labels(search: Search) -> bool:
    bounds = (search.min_score, search.max_score, search.min_share, search.max_share)
    return bool(search.phrases) or any(bound is not None for bound in bounds)


def _conditions(search: Search) -> tuple[list[str], dict[str, object]]:
    own: list[str] = []
    values: dict[str, object] = {}
    for column, wanted in (("texts", search.texts), ("phrases", search.phrases)):
        for number, words in enumerate(wanted):
            name = f"{column}_{number}"
            own.append(f"len(list_filter({column}, lambda t: contains(lower(t), lower(${name})))) > 0")
            values[name] = words
    if search.key:
        own.append("key GLOB $key")
        values["key"] = search.key
    score = _range("score", _BEST, search.min_score, search.max_score, values)
    share = _range("share", "s", search.min_share, search.max_share, values)
    if score:
        own.append(score)
    if share:
        own.append(f"len(list_filter(label_shares, lambda s: {share})) > 0")
    return own, values


def _range(name: str, of: str, least: float | None, most: float | None, values: dict[str, object]) -> str:
    """Compared as the sidecar has them, in single precision, so that a bound itself is inside."""
    if least is not None and most is not None and least > most:
        raise InputError(f"no {name} is from {least} to {most}; give the smaller number to --min-{name}")
    parts = []
    for sign, bound, edge in ((">=", least, "min"), ("<=", most, "max")):
        if bound is not None:
            values[f"{edge}_{name}"] = bound
            parts.append(f"{of} {sign} ${edge}_{name}::FLOAT")
    return " AND ".join(parts)


def _rows_at(dataset: Dataset, indices: Integers, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows at positions in any order; where they aren't ascending, all are held."""
    if np.all(indices[1:] > indices[:-1]):
        yield from rows_at(dataset, indices, columns)
        return
    found = dict(rows_at(dataset, np.sort(indices), columns))
    for index in indices.tolist():
        yield index, found[index]


def find_rejects(
    dataset: Dataset, *, reason: str = "", key: str = "", where: str = "", sort: str = "", limit: int = 0
) -> tuple[int, list[Reject]]:
    """Look through the tables of rejects. What a retry took up isn't there; what it rejected again is there once.

    Args:
        dataset: where.
        reason: such as "image-missing"; empty for any.
        key: a pattern for the key, with *, ? and [a-f]; empty for any.
        where: a condition in SQL over the columns of these tables; empty for none.
        sort: what to sort by, in SQL; may end in asc or desc. Empty: in the data set's order.
        limit: rejects wanted; 0: all.

    Returns:
        How many match, and the first `limit` of them, in order.

    Raises:
        InputError: an SQL condition can't be used, or it is one tar.
        ShardError: a table is damaged.
        StorageError: one can't be read.
    """
    if dataset.uri.endswith(".tar"):
        raise InputError(f"{dataset.uri} is one tar; rejects stand beside the shards: give the data set's folder")
    own = [f"{column} {sign} ${column}" for column, sign, value in _given(reason, key) if value]
    values = {column: value for column, _, value in _given(reason, key) if value}
    with Conditions(REJECTS, own, values, where=where, sort=sort) as conditions:
        for table in iter_rejects(dataset):
            conditions.add(table)
        total, numbers = conditions.total, conditions.numbers(limit)
    return total, _read(dataset, numbers)


def _given(reason: str, key: str) -> tuple[tuple[str, str, str], ...]:
    return ("reason", "=", reason), ("key", "GLOB", key)


def _read(dataset: Dataset, numbers: Integers) -> list[Reject]:
    ascending = np.sort(numbers)
    found: dict[int, Reject] = {}
    first = 0
    for table in iter_rejects(dataset):
        begin, end = np.searchsorted(ascending, [first, first + table.num_rows])
        chosen = ascending[begin:end]
        for number, row in zip(chosen.tolist(), table.take(pa.array(chosen - first)).to_pylist(), strict=True):
            fault = Fault(row["stage"], row["reason"], row["message"])
            found[number] = Reject(row["ordinal"], row["key"], row["id"], fault, image=row["image"])
        first += table.num_rows
    return [found[number] for number in numbers.tolist()]
