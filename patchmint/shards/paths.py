"""Names of files: the manifest's, and those that belong to a unit. Quick to import."""

from __future__ import annotations

import re

from patchmint.shards.versions import VERSION

MANIFEST_PATH = "dataset.json"
SHARDS_PATH = "shards.json"
PLAN_PATH = "plan.parquet"
COMMITS = "commits"
COLUMNS = "columns"
SHARDS, SIDECARS, REJECTS = PUBLISHED = "shards", "sidecars", "rejects"
"""Folders of units' files."""

PREFIX = r"([a-z0-9_-]{0,39}[a-z_-])?"
"""What shards' names may begin with: not with a last digit, or the unit's number couldn't be told from it."""

_TAR = re.compile(rf"{SHARDS}/({PREFIX[1:-2]}|)([0-9]{{6,}})\.tar")
_RECORD_PATH = re.compile(rf"{COMMITS}/([0-9]{{6,}})\.json")


def column_place(uri: str) -> tuple[str, str]:
    """The place of the data set whose column a path or URI would be, and the column's name; both empty: of none."""
    base, _, rest = uri.rstrip("/").rpartition(f"/{COLUMNS}/")
    return (base, rest) if base and "/" not in rest else ("", "")


def plan_path(number: int) -> str:
    """Where the plan is (0), or that of the first, second... retry."""
    return PLAN_PATH if number == 0 else f"plan.retry-{number}.parquet"


def unit_name(unit: int) -> str:
    """A unit's number as it stands in file names: 3 is "000003"."""
    return f"{unit:06d}"


def record_path(unit: int) -> str:
    """Where a unit's commit record is."""
    return f"{COMMITS}/{unit_name(unit)}.json"


def unit_of_record(path: str) -> int | None:
    """The unit whose commit record has this path; None for any other file."""
    match = _RECORD_PATH.fullmatch(path)
    unit = int(match[1]) if match else -1
    return unit if unit >= 0 and record_path(unit) == path else None


def canonical_paths(unit: int, prefix: str = "", version: int = VERSION) -> tuple[str, str, str]:
    """The names under which a unit's files are published, in the order of publishing: readers look for the tar.

    Args:
        unit: its number.
        prefix: what shards' names begin with (`output.prefix`).
        version: of the format.

    Returns:
        Those of the table of rejects, of the sidecar and of the tar.
    """
    name = unit_name(unit)
    folder = sidecar_folder(version)
    return f"{REJECTS}/{name}.parquet", f"{folder}/{prefix}{name}.parquet", f"{SHARDS}/{prefix}{name}.tar"


def sidecar_folder(version: int) -> str:
    """Where a version of the format has its sidecars: those of 1 lie beside the tars."""
    return SIDECARS if version > 1 else SHARDS


def tar_of(sidecar: str) -> str:
    """The tar that a sidecar is of."""
    return f"{SHARDS}/{sidecar.rpartition('/')[2].removesuffix('.parquet')}.tar"


def prefix_and_unit(path: str) -> tuple[str, int] | None:
    """What a shard's name begins with, and its unit; None where the path is no shard's."""
    match = _TAR.fullmatch(path)
    return (match[1], int(match[2])) if match else None
