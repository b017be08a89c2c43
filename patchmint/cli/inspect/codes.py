"""`patchmint inspect codes`."""

from __future__ import annotations


def codes_command() -> None:
    """Which images contain a code."""
    raise NotImplementedError
