"""What verify finds, as values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MAX_PER_SHARD = 100
"""A wholly broken shard says so this often, and then how often more."""


@dataclass(frozen=True)
class Finding:
    """Something that isn't as the format says.

    Attributes:
        shard: the file it is in; empty for the data set as a whole.
        key: the sample; empty where it is none of a sample.
        code: to count by, such as "selector-coverage".
        message: for people.
    """

    shard: str
    key: str
    code: str
    message: str


class Findings:
    """Collects the findings of one shard, and only counts what comes after the first hundred.

    Args:
        shard: the file.
    """

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._found: list[Finding] = []
        self._more = 0

    def add(self, code: str, message: str, key: str = "") -> None:
        """Add a finding."""
        if len(self._found) < MAX_PER_SHARD:
            self._found.append(Finding(self._shard, key, code, message))
        else:
            self._more += 1

    def extend(self, problems: Iterable[tuple[str, str]], key: str = "") -> bool:
        """Add problems (code, message); True if there were any."""
        before = len(self)
        for code, message in problems:
            self.add(code, message, key)
        return len(self) > before

    def to_list(self) -> list[Finding]:
        """All that are kept, in order, and one that counts the rest."""
        if not self._more:
            return list(self._found)
        return [*self._found, Finding(self._shard, "", "more", f"{self._more} more findings in this shard")]

    def __len__(self) -> int:
        return len(self._found) + self._more
