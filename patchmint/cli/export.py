"""`patchmint export`: a data set's images and instances for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from patchmint.cli.inspect.shared import DatasetArgument, progress_bar
from patchmint.jobs.columns import ColumnsOption
from patchmint.jobs.printable import many


def export_command(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    to: Annotated[
        Literal["coco", "yolo", "odvg", "label-studio", "cvat", "fiftyone"],
        typer.Option(help="Whose files: COCO's, Ultralytics YOLO's, Grounding DINO's trainers', Label Studio's, ..."),
    ],
    where: Annotated[
        str, typer.Option(metavar="SQL", help="Only samples like this: as in `patchmint inspect find --where`.")
    ] = "",
    columns: ColumnsOption = None,
) -> None:
    """Write images and what was found in them for another tool: boxes, words, and masks where they are stored.

    Masks are there if the data set was built with labels.instances: true. A category is a phrase's words in lower case.
    Images are written unchanged; those that EXIF turns as upright PNG.
    """
    from patchmint.datasets.dataset import open_dataset
    from patchmint.inspection.export.run import export

    opened = open_dataset(dataset, columns=columns)
    with progress_bar("export") as progress:
        count = export(opened, out, to, where, progress)
    layout = opened.manifest.layout if opened.manifest is not None else None
    if layout is not None and not layout.instances and to not in ("yolo", "odvg"):
        typer.echo("the data set stores no masks (labels.instances): boxes alone are written", err=True)
    typer.echo(f"{many(count, 'image')} written to {out}", err=True)
