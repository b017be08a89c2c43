"""`patchmint inspect stats`."""

from __future__ import annotations


def stats_command() -> None:
    """Statistics."""
    raise NotImplementedError
