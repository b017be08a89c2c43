"""Which columns are read with a data set, and which of its samples they all have. Quick to import."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from patchmint.datasets.dataset import Column, Dataset, Shard, open_folder
from patchmint.errors import InputError, NotFoundError, ShardError, about
from patchmint.shards.endings import tokenizer_name, told_tokens
from patchmint.shards.paths import COLUMNS, MANIFEST_PATH
from patchmint.storage import Storage, uri_of

CORRECTIONS, NONE = "corrections", "none"
"""Stand for all sparse columns, and for no column."""


def with_columns(dataset: Dataset, chosen: Sequence[str] | None, *, check_files: bool = True) -> Dataset:
    """A data set with columns of its own.

    Args:
        dataset: without any.
        chosen: as for `open_dataset`.
        check_files: as for `open_dataset`.

    Raises:
        InputError, ShardError, StorageError: as for `open_dataset`.
    """
    names = dataset.storage.folders(COLUMNS)
    if not (names or chosen):
        return dataset
    if dataset.manifest_data is None:
        if set(chosen or ()) - {NONE, CORRECTIONS}:
            raise InputError(f"{dataset.uri} isn't finished, so it has no columns; finish its build first")
        return dataset
    told = finished_columns(dataset.storage, names)
    with about(dataset.uri):
        try:
            base = json.loads(dataset.manifest_data)
            own = {name: held(each["layout"]) for name, each in told.items()}
            entries = {name: (each["column"]["base"], int(each["column"]["units"])) for name, each in told.items()}
            sparse = [name for name, each in told.items() if each["column"].get("sparse")]
            whole = held(base["layout"]), base["plan_digest"]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ShardError(f"{MANIFEST_PATH}, or that of a column, isn't of its form: {error!r}") from error
        taken = choose(whole[0], {name: each for name, each in own.items() if name not in sparse}, sparse, chosen)
        if strangers := [name for name in taken if entries[name][0] != whole[1]]:
            raise InputError(
                f"the column {strangers[0]} is of another data set, or of another state of this one; delete its folder "
                "and make it again, or choose other columns (--columns, or columns=)"
            )
        try:
            _check_trust(dataset.uri, told, {name: own[name] for name in taken})
            taken = _trust_over_corrections(told, taken)
        except (LookupError, TypeError) as error:
            raise ShardError(f"{MANIFEST_PATH} of a column of trust isn't of its form: {error!r}") from error
    columns = []
    for name in taken:
        opened = open_folder(uri_of(dataset.storage, f"{COLUMNS}/{name}"), check_files=check_files)
        columns.append(Column(name, opened, entries[name][1], name in sparse))
    joined = replace(dataset, columns=tuple(columns))
    return replace(joined, shards=tuple(_lacking(joined, shard) for shard in dataset.shards))


def _check_trust(uri: str, told: Mapping[str, Mapping[str, Any]], taken: Mapping[str, frozenset[str]]) -> None:
    """Trust is of certain labels: those of the columns that it was computed with.

    Args:
        uri: of the data set.
        told: dataset.json of its columns.
        taken: what the chosen columns hold.

    Raises:
        InputError: other labels were chosen.
    """
    sparse = {name for name in told if told[name]["column"].get("sparse")}
    labels = [name for name, own in taken.items() if "labels" in own and name not in sparse]
    for name in (name for name, own in taken.items() if "trust" in own and name not in sparse):
        read = [each for each in told[name]["config"]["columns"] if each in told]
        if left := [each for each in read if each in sparse and each not in taken]:
            raise InputError(
                f"the column {name} is of corrected labels; choose {' '.join(left)} as well (--columns, or columns=)"
            )
        of = [each for each in read if each not in sparse and "labels" in held(told[each]["layout"])]
        if of != labels:
            raise InputError(
                f"the column {name} is of the labels of {' '.join(of) or 'the build'}, not of those of "
                f"{' '.join(labels) or 'the build'}; choose other columns (--columns, or columns=), or compute trust "
                f"for these: patchmint trust {uri} --name NAME{''.join(f' --columns {each}' for each in labels)}"
            )


def _trust_over_corrections(told: Mapping[str, Mapping[str, Any]], taken: Sequence[str]) -> list[str]:
    """Columns in order, trust after the corrections that it was computed with: what these say of trust is older."""
    ordered = [name for name in taken if not _corrected(told, name)]
    for name in (name for name in taken if name not in ordered):
        after = max(ordered.index(each) for each in _corrected(told, name)) + 1
        ordered.insert(after, name)
    return ordered


def _corrected(told: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """The corrections with whose labels a column of trust was computed."""
    if "trust" not in held(told[name]["layout"]) or told[name]["column"].get("sparse"):
        return []
    return [each for each in told[name]["config"]["columns"] if each in told and told[each]["column"].get("sparse")]


def trust_is_of(dataset: Dataset) -> frozenset[str]:
    """The corrections with whose labels a data set's trust was computed."""
    sparse = {column.name for column in dataset.columns if column.sparse}
    trusts = [
        column.dataset.manifest.config["columns"]
        for column in dataset.columns
        if not column.sparse and column.dataset.manifest is not None and column.dataset.manifest.layout.trust
    ]
    return frozenset(sparse & {name for names in trusts for name in names})


def finished_columns(storage: Storage, names: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """What dataset.json of each finished column says, by name.

    Args:
        storage: the data set's.
        names: of the folders in `columns/`; None: look for them.

    Raises:
        ShardError: one isn't JSON.
        StorageError: the storage failed.
    """
    found = {name: _manifest(storage, name) for name in (storage.folders(COLUMNS) if names is None else names)}
    return {name: told for name, told in found.items() if told is not None}


def _manifest(storage: Storage, name: str) -> dict[str, Any] | None:
    """dataset.json of a column; None where it isn't finished."""
    path = f"{COLUMNS}/{name}/{MANIFEST_PATH}"
    try:
        told = json.loads(storage.read(path))
    except NotFoundError:
        return None
    except ValueError as error:
        raise ShardError(f"{path} of {storage.uri} isn't JSON: {error}", uri=uri_of(storage, path)) from error
    return told if isinstance(told, dict) and isinstance(told.get("column"), dict) else None


def _lacking(dataset: Dataset, shard: Shard) -> Shard:
    """A shard without the samples that a column lacks."""
    if not shard.samples or all(column.has_all(shard) for column in dataset.columns):
        return shard
    from patchmint.datasets.rows import read_table  # what was rejected is rare, and `ls` mustn't wait for this import

    as_if = replace(shard, samples=shard.samples - 1, lacking=1)
    kept = read_table(dataset, as_if, ["key"]).num_rows
    return replace(shard, samples=kept, lacking=shard.samples - kept)


def without_wrong(dataset: Dataset) -> Dataset:
    """A data set without the samples that somebody marked as wrong; the others' positions follow each other.

    Raises:
        ShardError: a sidecar is damaged.
        StorageError: one can't be read.
    """
    if not dataset.has_edits:
        return dataset
    from patchmint.datasets.rows import iter_tables

    wrong = {shard.unit: sum(table["wrong"].to_pylist()) for shard, table in iter_tables(dataset, ["wrong"])}
    shards = (
        replace(
            shard, samples=shard.samples - wrong.get(shard.unit, 0), lacking=shard.lacking + wrong.get(shard.unit, 0)
        )
        for shard in dataset.shards
    )
    return replace(dataset, shards=tuple(shards), without_wrong=True)


def with_trust(dataset: Dataset, least: float) -> Dataset:
    """A data set without the samples none of whose texts has labels of so much trust (`rows.trusted`).

    Args:
        dataset: with trust.
        least: 0..1.

    Raises:
        InputError: it has no trust.
        ShardError: a sidecar is damaged.
        StorageError: one can't be read.
    """
    from patchmint.datasets.rows import iter_tables, trusted, trusted_columns

    if not dataset.has_trust:
        raise InputError(f"{dataset.uri} has no trust; `patchmint trust {dataset.uri}` computes it")
    tables = iter_tables(dataset, trusted_columns(dataset))
    kept = {shard.unit: sum(trusted(table, least)) for shard, table in tables}
    shards = (
        replace(shard, samples=count, lacking=shard.lacking + shard.samples - count)
        for shard in dataset.shards
        for count in [kept.get(shard.unit, 0)]
    )
    return replace(dataset, shards=tuple(shards), min_trust=least)


def held(layout: Mapping[str, Any]) -> frozenset[str]:
    """What samples of a layout hold beside images and texts, as messages call it.

    Args:
        layout: as it stands in dataset.json.
    """
    found = {"labels": layout["min_coverage"] is not None}
    names = [tokenizer_name(each["member"]) for each in told_tokens(layout)]
    codes = {f"codes {name}" if name else "codes": True for name in names}
    further = {f"labels on {grid['name']}": True for grid in layout.get("further_grids", ())}
    features = {"features": bool(layout.get("features")), "trust": bool(layout.get("trust"))}
    return frozenset(name for name, made in (found | codes | further | features).items() if made)


def choose(
    base: frozenset[str], columns: Mapping[str, frozenset[str]], sparse: Sequence[str], names: Sequence[str] | None
) -> list[str]:
    """Names of the columns to read, in the order in which they are put over the base.

    Args:
        base: what it holds (`held`).
        columns: the same of each finished column that isn't sparse, by name.
        sparse: names of those that are, in order: they have whole samples in the place of some.
        names: the caller's choice, in which "corrections" stands for all sparse ones, and "none" for no column. None:
            all whose content nobody else has, and the sparse ones.

    Raises:
        InputError: there is no such column; or two hold the same, and it isn't said which is meant.
    """
    if names is None:
        chosen = [name for name, own in columns.items() if not own & base]
        over = list(sparse)
    else:
        known = {*columns, *sparse, CORRECTIONS, NONE}
        if unknown := [name for name in names if name not in known]:
            there = ", ".join(sorted({*columns, *sparse})) or "none"
            raise InputError(f"there is no finished column {unknown[0]!r}; there are: {there}")
        chosen = [name for name in dict.fromkeys(names) if name in columns]
        over = [name for name in sparse if name in names or CORRECTIONS in names]
    for number, name in enumerate(chosen):
        for other in chosen[:number]:
            if shared := columns[name] & columns[other]:
                raise InputError(
                    f"the columns {other} and {name} both hold {', '.join(sorted(shared))}; say which columns to read "
                    f"(--columns, or columns=): one of them, none, or others of {', '.join(columns)}"
                )
    return [*chosen, *over]
