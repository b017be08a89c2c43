"""`patchmint inspect find`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from patchmint.cli.inspect.shared import DatasetArgument, JsonOption, console_for_data, print_json, progress_bar
from patchmint.errors import InputError
from patchmint.jobs.columns import ColumnsOption
from patchmint.jobs.printable import many, printable
from patchmint.samples import NO_NUMBER

if TYPE_CHECKING:
    from patchmint.datasets.dataset import Dataset
    from patchmint.inspection.find.search import Found, Search
    from patchmint.samples import Reject

_SHOWN = 50
_TEXT = 120
_SHARES = 3

Words = Annotated[
    list[str] | None, typer.Option(metavar="WORDS", help="Words in any text; case-insensitive. May be repeated.")
]
Phrases = Annotated[
    list[str] | None, typer.Option(metavar="WORDS", help="Words in any detected phrase. May be repeated.")
]
Share = Annotated[float | None, typer.Option(min=0, max=1, help="Range of any text's label share.")]
Score = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Range of the best phrase's score; no phrase, no match."),
]


def find_command(
    dataset: DatasetArgument,
    text: Words = None,
    phrase: Phrases = None,
    key: Annotated[
        str, typer.Option(metavar="PATTERN", help="Key; * and ? match anything, square brackets a set.")
    ] = "",
    min_score: Score = None,
    max_score: Score = None,
    min_share: Share = None,
    max_share: Share = None,
    where: Annotated[str, typer.Option(metavar="SQL", help="A condition over the sidecar's columns.")] = "",
    sort: Annotated[str, typer.Option(metavar="SQL", help="What to sort by; may end in asc or desc.")] = "",
    rejects: Annotated[bool, typer.Option("--rejects", help="Search the rejected samples.")] = False,
    columns: ColumnsOption = None,
    reason: Annotated[str, typer.Option(help="Reason of the reject, such as image-missing; with --rejects.")] = "",
    limit: Annotated[
        int | None, typer.Option(min=0, help="Maximum number of rows. 0: all. Default: 50; with --keys all.")
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Print only keys, one per line.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find samples, or rejects, that are like this; all conditions must hold.

    --where and --sort are SQL (DuckDB's) over these columns of the sidecars:
    key, id, ordinal, "offset", size, width, height, format, rows, cols, views,
    texts, label_shares, phrases, phrase_texts, scores, origins, codes, code_counts
    (of further tokenizers codes_NAME, code_counts_NAME; of a grid that depends on
    the image code_rows, code_cols),
    source_name, source_path, source_start; of documents images, and lists by image:
    widths, heights, formats, rows, cols, views, source_paths, source_starts,
    share_images and share_texts beside label_shares, phrase_images; where there are
    corrections wrong, corrected and edits (without `wrong` in a condition, samples
    marked so are left out); with --rejects
    over those of the rejects: ordinal, key, id, stage, reason, message, image (-1:
    the sample); and over index, the place in the data set (or among the rejects),
    from 0 on. A condition sees one sample at a time: no subqueries, window functions
    or aggregates; but list_max, len, ...

    Ends with 0 if something is found, 1 if nothing is, 2 if a condition is bad.
    """
    from patchmint.datasets.dataset import open_dataset
    from patchmint.inspection.find.search import Search

    if keys and as_json:
        raise InputError("--keys and --json exclude each other; drop one")
    shown = limit if limit is not None else 0 if keys else _SHOWN
    if rejects:
        if any(given is not None for given in (text, phrase, min_score, max_score, min_share, max_share)):
            raise InputError("rejects have neither texts nor labels; with --rejects use --reason, --key and --where")
        opened = open_dataset(dataset, columns=())
        total = _find_rejects(opened, (reason, key, where, sort), shown, keys=keys, as_json=as_json)
    else:
        if reason:
            raise InputError("--reason is one of rejects; add --rejects")
        search = Search(
            texts=text or (),
            phrases=phrase or (),
            key=key,
            min_score=min_score,
            max_score=max_score,
            min_share=min_share,
            max_share=max_share,
            where=where,
            sort=sort,
        )
        total = _find_samples(open_dataset(dataset, columns=columns), search, shown, keys=keys, as_json=as_json)
    if not total:
        raise typer.Exit(1)


def _find_samples(dataset: Dataset, search: Search, limit: int, *, keys: bool, as_json: bool) -> int:
    from patchmint.inspection.find.search import count_wrong, find_samples, leaves_out_wrong, read_found, read_keys

    with progress_bar("find") as progress:
        total, indices = find_samples(dataset, search, limit, progress)
    if keys:
        _print_keys(read_keys(dataset, indices))
    elif as_json:
        samples = [asdict(found) for found in read_found(dataset, indices)]
        print_json({"dataset": dataset.uri, "found": total, "samples": samples})
    else:
        if total:
            _print_samples(read_found(dataset, indices), search.texts, documents=dataset.has_documents)
        _sum_up(total, len(indices), f"of {many(dataset.samples, 'sample')}")
    if leaves_out_wrong(dataset, search) and (wrong := count_wrong(dataset)):
        typer.echo(f"{wrong} samples are marked wrong and left out; --where wrong finds them", err=True)
    return total


def _find_rejects(dataset: Dataset, search: tuple[str, str, str, str], limit: int, *, keys: bool, as_json: bool) -> int:
    from patchmint.inspection.find.search import find_rejects

    reason, key, where, sort = search
    total, found = find_rejects(dataset, reason=reason, key=key, where=where, sort=sort, limit=limit)
    if keys:
        _print_keys(reject.key for reject in found)
    elif as_json:
        print_json({"dataset": dataset.uri, "found": total, "rejects": [_flat(reject) for reject in found]})
    else:
        if total:
            _print_rejects(found)
        _sum_up(total, len(found), "rejects")
    return total


def _flat(reject: Reject) -> dict[str, str | int]:
    return {
        "ordinal": reject.ordinal,
        "key": reject.key,
        "id": reject.id,
        "stage": reject.fault.stage,
        "reason": reject.fault.reason,
        "message": reject.fault.message,
        **({"image": reject.image} if reject.image != NO_NUMBER else {}),
    }


def _print_keys(keys: Iterable[str]) -> None:
    for key in keys:
        sys.stdout.write(f"{printable(key)}\n")


def _print_samples(samples: Iterable[Found], wanted: Sequence[str], *, documents: bool) -> None:
    table = Table(
        Column("key", overflow="fold"),
        Column("shard", overflow="fold"),
        *([Column("images", justify="right")] if documents else []),
        Column("greatest" if documents else "share", no_wrap=True),
        Column("phrases", justify="right"),
        Column("best", justify="right"),
        Column("text", overflow="fold"),
    )
    for found in samples:
        # of a document there may be hundreds: the greatest
        every = sorted(found.label_shares, reverse=True)[:1] if documents else found.label_shares
        shares = [f"{share:.2f}" for share in every[:_SHARES]]
        table.add_row(
            escape(printable(found.key)),
            escape(printable(found.shard)),
            *([str(found.images)] if documents else []),
            " ".join([*shares, "…"] if len(every) > _SHARES else shares),
            str(len(found.phrases)),
            "" if found.best_score is None else f"{found.best_score:.2f}",
            _shortened(_matching(found.texts, wanted)),
        )
    console_for_data().print(table)


def _print_rejects(rejects: Iterable[Reject]) -> None:
    table = Table(*(Column(name, overflow="fold") for name in ("key", "id", "stage", "reason", "message")))
    for reject in rejects:
        key = reject.key if reject.image == NO_NUMBER else f"{reject.key}.{reject.image}"
        texts = (key, reject.id, reject.fault.stage, reject.fault.reason)
        table.add_row(*(escape(printable(text)) for text in texts), _shortened(reject.fault.message))
    console_for_data().print(table)


def _matching(texts: Sequence[str], wanted: Sequence[str]) -> str:
    """The text that was looked for, or the first."""
    words = wanted[0].lower() if wanted else ""
    return next((text for text in texts if words in text.lower()), texts[0] if texts else "")


def _shortened(text: str) -> str:
    return escape(printable(text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"))


def _sum_up(total: int, shown: int, of: str) -> None:
    more = f"; {shown} shown, --limit 0 shows all" if shown < total else ""
    typer.echo(f"found {total} {of}{more}", err=True)
