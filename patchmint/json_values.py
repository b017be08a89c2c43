"""JSON values: one text for equal values, and what differs between two mappings. Quick to import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: object) -> str:
    """JSON in which equal values have equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between stored settings and present ones: a line a key.

    Args:
        there: the stored ones.
        here: the present ones.
        prefix: what to put before each key.

    Returns:
        Lines such as "labels.box_threshold: 0.35 there, 0.3 here", in order of the keys.
    """
    lines = []
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {_shown(key, there)} there, {_shown(key, here)} here")
    return lines


def _shown(key: str, settings: Mapping[str, Any]) -> str:
    if key not in settings:
        return "not set"
    value = settings[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
