"""`patchmint inspect show`."""

from __future__ import annotations


def show_command() -> None:
    """Show one sample."""
    raise NotImplementedError
