"""Whole shards of a data set and its columns: `patchmint compact DATASET NEW`.

A build that makes nothing: it resumes, and runs on Ray, as others do (`python -m patchmint.jobs.compact`). Exit codes
as for `patchmint.jobs.build`.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from patchmint.config.build import BuildConfig
from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.extension import finished_manifest
from patchmint.jobs.build import JsonOption, ProfileOption, RetryFailedOption, SingleDriverOption, carry_out, main
from patchmint.jobs.columns import ColumnsOption
from patchmint.jobs.extend import settings_of
from patchmint.jobs.options import with_settings
from patchmint.shards.plan import load_plan
from patchmint.storage import open_storage

_MADE = ("labels", "grid", "grids", "tokens", "features", "models", "precision")


@with_settings(BuildConfig, but=("source", "sources", "output", "on_bad_image", *_MADE))
def compact_command(
    *,
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="A finished data set: folder or store; hf://... too.")
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Folder or store for the new one.")],
    settings: dict[str, Any],
    columns: ColumnsOption = None,
    retry_failed: RetryFailedOption = False,
    single_driver: SingleDriverOption = False,
    profile: ProfileOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a data set and its columns as one data set of whole shards, as if one build had made everything.

    Images are copied, nothing is made again; samples that a correction marked as wrong are left out. DATASET stays as
    it is. The same command resumes.
    """
    finished_manifest(open_storage(dataset))
    if columns is None and (begun := load_plan(open_storage(new))) is not None:
        columns = begun.config["source"].get("columns", [])  # whatever was added since
    opened = open_dataset(dataset, columns=columns)
    assert opened.manifest is not None
    base = settings_of(opened.manifest, dataset, new, set(), [column.name for column in opened.columns])
    if opened.has_edits:
        base["source"]["where"] = "NOT wrong"
    carry_out(
        BuildConfig.load(base, settings),
        dry_run=False,
        tries=0,
        try_out=None,
        retry_failed=retry_failed,
        single_driver=single_driver,
        profile=profile,
        as_json=as_json,
    )


if __name__ == "__main__":
    main(compact_command)
