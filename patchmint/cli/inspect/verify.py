"""`patchmint inspect verify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from patchmint.cli.inspect.shared import JsonOption, console_for_data, print_json, progress_bar
from patchmint.errors import InputError
from patchmint.jobs.printable import printable

if TYPE_CHECKING:
    from patchmint.shards.checks import Finding
    from patchmint.storage import Storage

_SHOWN = 200


def verify_command(
    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET", help="A data set's folder, a folder of tars, or one tar; s3://..., hf://..."),
    ],
    deep: Annotated[bool, typer.Option("--deep", help="Decode every image too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check checksums, members, arrays, labels, keys and counts; tars that others wrote as far as that goes.

    Exits with 0 if there are no faults, with 1 if there are, with 2 if there is nothing to check.
    """
    with progress_bar("verify") as progress:
        found = list(_verify(dataset, deep, progress))
    if as_json:
        print_json({"dataset": dataset, "findings": [asdict(finding) for finding in found]})
    else:
        _print(dataset, found)
    if found:
        raise typer.Exit(1)


def _verify(dataset: str, deep: bool, progress: Callable[[int, int], None] | None) -> Iterator[Finding]:
    from patchmint.datasets.columns import finished_columns
    from patchmint.datasets.dataset import open_tar
    from patchmint.datasets.verify import verify_all, verify_column
    from patchmint.shards.paths import MANIFEST_PATH, PLAN_PATH, column_place
    from patchmint.shards.verify import verify_tars
    from patchmint.storage import open_storage

    if dataset.endswith(".tar"):
        storage, name = open_tar(dataset)
        return verify_tars(storage, [name], decode=_decoder(storage) if deep else None, progress=progress)
    storage = open_storage(dataset)
    if storage.exists(MANIFEST_PATH) or storage.exists(PLAN_PATH) or next(storage.list("commits"), None):
        decode = _decoder(storage) if deep else None
        base, name = column_place(dataset)
        if base and finished_columns(open_storage(base), [name]):
            return verify_column(open_storage(base), name, decode=decode, progress=progress)
        return verify_all(storage, decode=decode, progress=progress)
    return verify_tars(storage, _tars(storage, dataset), decode=_decoder(storage) if deep else None, progress=progress)


def _tars(storage: Storage, dataset: str) -> Sequence[str]:
    paths = [entry.path for entry in storage.list() if entry.path.endswith(".tar")]
    if not paths:
        raise InputError(
            f"{dataset!r} holds neither a data set (dataset.json, plan.parquet) nor tars; give a build's output "
            "folder, or a tar"
        )
    return paths


def _decoder(storage: Storage) -> Callable[[bytes], tuple[int, int]]:
    """Decodes under the limit that the build had."""
    from patchmint.errors import ShardError, StorageError
    from patchmint.images.decode import decode_image
    from patchmint.shards.manifest import image_limit, read_manifest

    megapixels = image_limit(None)
    with suppress(StorageError, ShardError):  # verify says so
        megapixels = image_limit(read_manifest(storage))
    return lambda data: decode_image(data, max_megapixels=megapixels).size


def _print(dataset: str, found: Sequence[Finding]) -> None:
    console = console_for_data()
    if not found:
        console.print(f"{escape(printable(dataset))}: no faults found", highlight=False)
        return
    table = Table(Column("shard", no_wrap=True), Column("key", overflow="fold"), "code", Column(overflow="fold"))
    table.columns[-1].header = "what is wrong"
    for finding in islice(found, _SHOWN):
        cells = (finding.shard, finding.key, finding.code, finding.message)
        table.add_row(*(escape(printable(cell)) for cell in cells))
    console.print(table)
    counts = Counter(finding.code for finding in found)
    summary = ", ".join(f"{code} {count}" for code, count in counts.most_common())
    more = f" ({len(found) - _SHOWN} more; --json has all)" if len(found) > _SHOWN else ""
    typer.echo(f"{len(found)} findings: {summary}{more}", err=True)
