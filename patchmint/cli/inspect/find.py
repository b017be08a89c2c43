"""`patchmint inspect find`."""

from __future__ import annotations


def find_command() -> None:
    """Find samples."""
    raise NotImplementedError
