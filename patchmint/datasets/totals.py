"""The two totals of dataset.json that say whether it is of what is there; the whole of it takes longer to import."""

from __future__ import annotations

import json
from typing import Any

NO_DOCUMENT = (ValueError, LookupError, TypeError, RecursionError)
"""What reading a document that isn't of its form raises."""


def read_totals(manifest: bytes) -> tuple[int, int]:
    """Units and written samples.

    Raises:
        ShardError: it isn't of the format's form.
    """
    try:
        totals = json.loads(manifest)["totals"]
        units, written = totals["units"], totals["written"]
        if is_count(units) and is_count(written):
            return units, written
    except NO_DOCUMENT:
        pass
    from patchmint.shards.manifest import parse_manifest

    checked = parse_manifest(manifest).totals  # says what is wrong
    return checked.units, checked.written


def is_count(value: Any) -> bool:
    """Whether it is a whole number that can count things."""
    return isinstance(value, int) and value >= 0
