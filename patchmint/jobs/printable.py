"""Text for terminals and logs: from files, and counts of things."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text without control characters, which could move the cursor or recolour the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def many(count: int, what: str) -> str:
    """A count as people say it: "1 unit", "1,024 samples"."""
    return f"{count:,} {what}{'s' if count != 1 else ''}"
