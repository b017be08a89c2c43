"""`patchmint inspect info`."""

from __future__ import annotations


def info_command() -> None:
    """What the data set is."""
    raise NotImplementedError
