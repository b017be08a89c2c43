"""What a data set is: of a finished one its dataset.json, of others what records, tables and the first sample say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from patchmint.datasets.dataset import Dataset, open_tar, sidecar_of
from patchmint.shards.endings import sample_endings, unnumbered
from patchmint.shards.reader import Member, iter_members, read_sample
from patchmint.shards.sidecar import read_table, schema_of
from patchmint.storage import Storage

if TYPE_CHECKING:  # a finished data set tells all in dataset.json, at once
    from patchmint.shards.reader import StoredSample


@dataclass(frozen=True)
class Summary:
    """What a data set is. What isn't known is None or empty.

    Attributes:
        dataset: its URI.
        state: finished, unfinished or tar.
        notice: a warning that belongs on every use; empty where there is none.
        models: by role: name, sha256, size, licence.
        versions: of the libraries that decide the bytes.
        config: the settings of the last command, as dataset.json has them.
        held: those that made what the shards hold (`held_settings`).
        layout: grid, min_coverage, tokens, features.
        members: of every sample: ending, dtype, shape; without dataset.json those of the first sample. Of documents
            without the images' numbers.
        totals: units, units_done, planned, written, rejected and absent (by reason), texts, label_share, shards, bytes;
            of documents also images.
        columns: of the data set, finished ones: name, whether it is read, what it holds, samples, bytes.
    """

    dataset: str
    state: str
    notice: str
    models: dict[str, dict[str, Any]]
    versions: dict[str, str]
    config: dict[str, Any]
    held: dict[str, Any]
    layout: dict[str, Any]
    members: list[dict[str, Any]]
    totals: dict[str, Any]
    columns: list[dict[str, Any]] = field(default_factory=list)


def summarise(dataset: Dataset) -> Summary:
    """Say what a data set is.

    Raises:
        ShardError: dataset.json, a record, a sidecar or the first sample is damaged.
        StorageError: it can't be read.
    """
    return _by_manifest(dataset) or _by_samples(dataset)


def _by_manifest(dataset: Dataset) -> Summary | None:
    from patchmint.shards.manifest import held_settings

    manifest = dataset.manifest
    if manifest is None:
        return None
    told = manifest.model_dump(mode="json")
    return Summary(
        dataset=dataset.uri,
        state="finished" if dataset.finished else "unfinished",
        notice=manifest.notice,
        models=told["models"],
        versions=told["versions"],
        config=told["config"],
        held=held_settings(manifest),
        layout=told["layout"],
        members=told["members"],
        # dataset.json of before a retry knows nothing of its units
        totals=told["totals"] | {"units_done": manifest.totals.units} if dataset.finished else _totals_so_far(dataset),
        columns=_columns(dataset),
    )


def _columns(dataset: Dataset) -> list[dict[str, Any]]:
    from patchmint.datasets.columns import finished_columns, held

    read = {column.name for column in dataset.columns}
    return [
        {
            "name": name,
            "read": name in read,
            "holds": sorted(held(told["layout"])),
            "samples": told["totals"]["written"],
            "bytes": told["totals"]["bytes"],
        }
        for name, told in finished_columns(dataset.storage).items()
    ]


def _by_samples(dataset: Dataset) -> Summary:
    from patchmint.datasets.reader import sample_at

    lone = dataset.uri.endswith(".tar")
    first = sample_at(dataset, 0) if dataset.samples else None
    return Summary(
        dataset=dataset.uri,
        state="tar" if lone else "unfinished",
        notice=first.key_json.notice if first else "",
        models={},
        versions={},
        config={},
        held={},
        layout=_layout(first) if first and not dataset.foreign else {},
        members=_members(first) if first else [],
        totals=_totals_of_tar(dataset) if lone else _totals_so_far(dataset),
    )


def _layout(sample: StoredSample) -> dict[str, Any]:
    told = sample.key_json
    tokens, features = told.tokens, told.features
    return {
        "grid": told.images[0].grid.model_dump(exclude={"views"}),
        "min_coverage": None,
        "tokens": tokens.model_dump(mode="json") if tokens.member else None,
        "features": features.model_dump(mode="json") if features is not None else None,
        **({"documents": True} if sample.parts else {}),
    }


def _members(sample: StoredSample) -> list[dict[str, Any]]:
    members: dict[str, dict[str, Any]] = {}
    for name in sample.members:
        array = sample.array(name) if name.endswith(".npy") else None
        ending = unnumbered(name) if sample.parts else name
        dtype = array.dtype.name if array is not None else "text" if ending in ("json", "txt") else "bytes"
        shape = [str(length) for length in array.shape] if array is not None else []
        members.setdefault(ending, {"ending": ending, "dtype": dtype, "shape": shape})
    return list(members.values())


def _totals_so_far(dataset: Dataset) -> dict[str, Any]:
    """From the records of the units that are done."""
    from patchmint.datasets.ledger import Ledger
    from patchmint.shards.manifest import Totals

    ledger = Ledger.read(dataset.storage)
    totals = Totals.of(
        list(ledger.records.values()), ledger.planned, ledger.rejects(), ledger.absent, ledger.planned_images
    )
    return totals.model_dump() | {"units": len(ledger.units), "units_done": len(ledger.records)}


def _totals_of_tar(dataset: Dataset) -> dict[str, Any]:
    from patchmint.datasets.rows import iter_tables
    from patchmint.shards.records import mean_share

    texts = images = 0
    shares: list[float] = []
    kind = ["images"] if dataset.has_documents else []
    for _, table in iter_tables(dataset, ["texts", "label_shares", *kind]):
        images += sum(table["images"].to_pylist()) if kind else 0
        texts += sum(map(len, table["texts"].to_pylist()))
        shares += (value for row in table["label_shares"].to_pylist() for value in row)
    return {
        "units": None,
        "units_done": None,
        "planned": None,
        "written": dataset.samples,
        "rejected": None,
        "absent": None,
        "texts": texts,
        "label_share": mean_share(shares),
        "shards": 1,
        "bytes": dataset.shards[0].size,
        **({"images": {"written": images}} if kind else {}),
    }


@dataclass(frozen=True)
class ListedSample:
    """Members that stand together in a tar and share what is before the first dot of their names.

    Attributes:
        key: that.
        offset: first byte of the first member's header.
        size: bytes of all members, headers and padding included.
        members: what follows the key; with what it is in brackets where that is no file.
    """

    key: str
    offset: int
    size: int
    members: tuple[str, ...]


def list_tar(uri: str) -> Iterator[ListedSample]:
    """List a tar: one of ours from its sidecar (its samples have members of one layout), others from their headers.

    Raises:
        InputError: there is no such tar.
        ShardError: it is no tar, or it is cut; or the table is damaged.
        StorageError: it can't be read.
    """
    storage, name = open_tar(uri)
    sidecar = sidecar_of(storage, name)
    return _from_sidecar(storage, name, sidecar) if sidecar else _from_headers(storage, name)


def _from_sidecar(storage: Storage, name: str, sidecar: str) -> Iterator[ListedSample]:
    schema = schema_of(storage, sidecar)
    documents = "images" in schema.names
    rows = read_table(storage, sidecar, schema, ["key", "offset", "size", *(["images"] if documents else [])])
    first: dict[str, None] = {}
    for row in rows.to_pylist():
        first = first or dict.fromkeys(map(unnumbered, read_sample(storage, name, row["offset"], row["size"]).members))
        arrays = [ending for ending in first if ending.endswith(".npy")]
        members = sample_endings(arrays, row["images"], documents=True) if documents else tuple(first)
        yield ListedSample(row["key"], row["offset"], row["size"], members)


def _from_headers(storage: Storage, name: str) -> Iterator[ListedSample]:
    with storage.open(name) as file:
        for key, group in groupby(iter_members(file, name, headers_only=True), key=lambda member: member.key):
            members = list(group)
            offset = members[0].offset
            yield ListedSample(key, offset, members[-1].end - offset, tuple(map(_shown, members)))


def _shown(member: Member) -> str:
    return member.ending if member.kind == "file" else f"{member.ending} ({member.kind})".lstrip()
