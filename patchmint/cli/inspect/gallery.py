"""`patchmint inspect gallery`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
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
from patchmint.jobs.printable import printable

if TYPE_CHECKING:
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
    size: Annotated[int, typer.Option(min=64, max=4096, help="Longest side of the pictures in pixels.")] = 512,
    masks: Annotated[bool, typer.Option(help="Show masks: stored ones, or made again from the boxes.")] = True,
    decoded: Annotated[bool, typer.Option(help="Draw the codes, where possible.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a gallery, if OUT holds nothing else.")] = False,
    grid: GridOption = None,
    codes: CodesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a gallery: photos with boxes, patches, coverage, masks and decoded codes, to look through in a browser.

    Ends with 0, also when a server is stopped with Ctrl-C; with 2 for bad usage or input.
    """
    if (out is None) != serve:
        raise typer.BadParameter("give either a folder to write (OUT) or --serve")
    from patchmint.datasets.dataset import open_dataset
    from patchmint.inspection.gallery.site import GallerySettings, Site

    chosen = samples if samples is not None else (0 if serve else _SAMPLES)
    opened = open_dataset(dataset).on_grid(grid).with_codes(codes)
    site = Site(opened, GallerySettings(chosen, size, masks, decoded))
    if out is None:
        _serve(site, port, as_json)
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
    count = f"all {total:,} samples" if shown == total else f"{shown:,} of {total:,} samples, evenly spread"
    lines = [f"{count}; {written.files:,} files, {written.size / 1e6:.1f} MB", *_remarks(site)]
    lines.append(f"open {written.folder / 'index.html'} in a browser")
    for line in lines:
        console.print(escape(printable(line)), highlight=False, soft_wrap=True)


def _serve(site: Site, port: int, as_json: bool) -> None:
    from patchmint.inspection.gallery.server import GalleryServer

    with GalleryServer(site, port) as server, suppress(KeyboardInterrupt):
        if as_json:
            print_json({"dataset": site.dataset.uri, "url": server.url, "samples": len(site.positions)})
        else:
            for line in (*_remarks(site), f"{server.url}   (Ctrl-C ends it)"):
                typer.echo(printable(line))
        server.serve_forever()


def _remarks(site: Site) -> list[str]:
    named = {"masks": site.masks, "decoded pictures": site.decoded}
    return [
        f"{name}: {offer.remark}" if offer.available else f"no {name}: {offer.remark}"
        for name, offer in named.items()
        if offer.remark
    ]
