"""Versions of the format: which is written, and which are read.

1. One source, whose samples don't name it.
2. `source.name` in KEY.json, `source_name` in the sidecar, `image.source` in the plan's parts: empty in 1. What was
   absent or not chosen is counted, in the plan and in `dataset.json`: nothing in 1. What annotators drew are
   instances with spans and masks, in KEY.json and the plan's parts, and phrases have an origin: boxes alone in 1, and
   the model's. Sidecars lie in `sidecars/`: in 1 beside the tars, where readers of the folder took them for shards.

   A data set may be of documents, have labels on further grids, and instances with masks: in 1 it is of pictures, on
   one grid, without instances.

Lists of shards, commit records and tables of rejects are as in 1.
"""

from __future__ import annotations

VERSION = 2
"""What is written."""


def schema_name(what: str, version: int = VERSION) -> str:
    """The name by which a file says what it is: "patchmint.sample/2"."""
    return f"patchmint.{what}/{version}"


def version_of(what: str, schema: str | None) -> int:
    """The version that a file's schema names.

    Raises:
        ValueError: it is none that is read.
    """
    for version in range(1, VERSION + 1):
        if schema == schema_name(what, version):
            return version
    raise ValueError(f"its schema is {schema!r}, this version of patchmint reads {schema_name(what)!r} and older ones")
