"""`patchmint inspect diff`."""

from __future__ import annotations


def diff_command() -> None:
    """What changed between two builds."""
    raise NotImplementedError
