"""`patchmint inspect gallery`."""

from __future__ import annotations

from contextlib import suppress
from getpass import getuser
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from patchmint.cli.inspect.shared import (
    CodesOption,
    DatasetArgument,
    GridOption,
    JsonOption,
    console_for_data,
    print_json,
    progress_bar,
)
from patchmint.jobs.columns import ColumnsOption
from patchmint.jobs.printable import many, printable

if TYPE_CHECKING:
    from patchmint.datasets.dataset import Dataset
    from patchmint.inspection.gallery.site import Site

_SAMPLES = 500


def gallery_command(
    dataset: DatasetArgument,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder to write: needs no server, opens from a disk.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve it on 127.0.0.1 instead of writing it.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port for --serve. 0: any free port.")] = 8765,
    samples: Annotated[
        int | None,
        typer.Option(min=0, help=f"Number of samples, evenly spaced. 0: all. Default: {_SAMPLES}; all with --serve."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=64, max=4096, help="Longest side of the pictures in pixels. Default: 512; 1024 with --edit."),
    ] = None,
    masks: Annotated[bool, typer.Option(help="Show masks: stored ones, or made again from the boxes.")] = True,
    decoded: Annotated[bool, typer.Option(help="Draw the codes, where possible.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a gallery, if OUT holds nothing else.")] = False,
    edit: Annotated[
        bool, typer.Option("--edit", help="With --serve: correct instances in the browser; saved to a file of edits.")
    ] = False,
    edits: Annotated[
        Path | None,
        typer.Option(help="File of edits, for `patchmint correct`. Default: DATASET.edits.jsonl beside it."),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who edits, kept with each edit. Default: the user's name.")] = None,
    masker: Annotated[
        str | None, typer.Option(help="SAM that outlines drawn boxes, by name or path. Default: the labels'.")
    ] = None,
    grid: GridOption = None,
    columns: ColumnsOption = None,
    codes: CodesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a gallery: photos with boxes, patches, coverage, masks and decoded codes, to look through in a browser.

    Ends with 0, also when a server is stopped with Ctrl-C; with 2 for bad usage or input.
    """
    if (out is None) != serve:
        raise typer.BadParameter("give either a folder to write (OUT) or --serve")
    if edit and not serve:
        raise typer.BadParameter("--edit needs --serve: a folder has nobody to save what is edited")
    if edit and columns is not None:
        raise typer.BadParameter("--edit takes the data set as `patchmint correct` reads it: leave out --columns")
    if not edit and (edits or by or masker):
        raise typer.BadParameter("--edits, --by and --masker are for --edit")
    from patchmint.datasets.dataset import open_dataset
    from patchmint.inspection.gallery.edits import PendingEdits
    from patchmint.inspection.gallery.site import GallerySettings, Site

    chosen = samples if samples is not None else (0 if serve else _SAMPLES)
    opened = open_dataset(dataset, columns=columns).on_grid(grid).with_codes(codes)
    pending = PendingEdits(edits or _edits_file(opened)) if edit else None
    site = Site(opened, GallerySettings(chosen, size or (1024 if edit else 512), masks, decoded, masker), pending)
    if out is None:
        _serve(site, port, by, as_json)
    else:
        _write(site, out, force, as_json)


def _write(site: Site, out: Path, force: bool, as_json: bool) -> None:
    from patchmint.inspection.gallery.folder import write_gallery

    with progress_bar("gallery") as progress:
        written = write_gallery(site, out, force=force, progress=progress)
    shown, total = len(site.positions), site.dataset.samples
    if written.problems:
        cards = "1 card says" if written.problems == 1 else f"{written.problems:,} cards say"
        typer.echo(f"{cards} that something of its sample can't be shown, and why", err=True)
    if as_json:
        remarks = {"masks": site.masks, "decoded": site.decoded}
        print_json(
            {"dataset": site.dataset.uri, "out": str(written.folder), "samples": shown, "of": total}
            | {"files": written.files, "bytes": written.size, "problems": written.problems}
            | {name: {"available": offer.available, "remark": offer.remark} for name, offer in remarks.items()}
        )
        return
    console = console_for_data()
    count = f"all {many(total, 'sample')}" if shown == total else f"{shown:,} of {many(total, 'sample')}, evenly spread"
    lines = [f"{count}; {many(written.files, 'file')}, {written.size / 1e6:.1f} MB", *_remarks(site)]
    lines.append(f"open {written.folder / 'index.html'} in a browser")
    for line in lines:
        console.print(escape(printable(line)), highlight=False, soft_wrap=True)


def _edits_file(dataset: Dataset) -> Path:
    if not dataset.storage.is_local:
        raise typer.BadParameter(f"{dataset.uri} isn't on this machine: name a file of --edits that is")
    folder = Path(dataset.uri).absolute()
    return folder.with_name(f"{folder.name}.edits.jsonl")


def _serve(site: Site, port: int, by: str | None, as_json: bool) -> None:
    from patchmint.inspection.gallery.editing import Editing
    from patchmint.inspection.gallery.server import GalleryServer

    editing = Editing(site, site.pending, by or getuser()) if site.pending is not None else None
    with GalleryServer(site, port, editing) as server, suppress(KeyboardInterrupt):
        if as_json:
            print_json({"dataset": site.dataset.uri, "url": server.url, "samples": len(site.positions)})
        else:
            for line in (*_remarks(site), f"{server.url}   (Ctrl-C ends it)"):
                typer.echo(printable(line))
        if editing is not None:
            Thread(target=editing.load_ahead, daemon=True).start()
        server.serve_forever()


def _remarks(site: Site) -> list[str]:
    named = {"masks": site.masks, "decoded pictures": site.decoded}
    return [
        f"{name}: {offer.remark}" if offer.available else f"no {name}: {offer.remark}"
        for name, offer in named.items()
        if offer.remark
    ] + _edit_remarks(site)


def _edit_remarks(site: Site) -> list[str]:
    if site.pending is None:
        return []
    file, uri = site.pending.path, site.dataset.uri
    outlines = "" if site.outlines.available else f"drawn boxes are their masks: {site.outlines.remark}"
    saved = f"edits are saved in {file}; `patchmint correct {uri} {file}` applies them"
    return [line for line in (outlines, saved) if line]
