"""`patchmint inspect gallery`."""

from __future__ import annotations


def gallery_command() -> None:
    """Make a gallery."""
    raise NotImplementedError
