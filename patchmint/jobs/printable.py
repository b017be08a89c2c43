"""Text from files, for terminals and logs."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text without control characters, which could move the cursor or recolour the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
