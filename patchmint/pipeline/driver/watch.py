"""When a worker counts as hanging, and what was last heard of each."""

from __future__ import annotations

import time
from collections.abc import Iterator

from patchmint.pipeline.orders import Working

_FIRST_TIMEOUT_SECONDS = 1800.0
_LEAST_TIMEOUT_SECONDS = 600.0
_MOST_GAPS = 20


class Watch:
    """Follows the workers that have an order."""

    def __init__(self, sample_timeout: float | None) -> None:
        """Begin.

        Args:
            sample_timeout: see `LimitsConfig`.
        """
        self._timeout = sample_timeout
        self._longest = 0.0
        self._moved: dict[int, float] = {}
        self._news: dict[int, Working] = {}

    def begin(self, worker: int) -> None:
        """It has an order."""
        self._moved[worker] = time.monotonic()

    def hear(self, news: Working) -> None:
        """How far it is."""
        before = self._news.get(news.worker)
        now = time.monotonic()
        if news.waits_for:
            self._moved[news.worker] = now  # that it hangs nobody can say
        elif before is None or news.samples != before.samples:
            if before is not None and not before.waits_for:
                self._longest = max(self._longest, now - self._moved[news.worker])
            self._moved[news.worker] = now
        self._news[news.worker] = news

    def end(self, worker: int) -> Working | None:
        """Its order is over; the last that was heard of it."""
        self._moved.pop(worker, None)
        return self._news.pop(worker, None)

    def overdue(self) -> Iterator[tuple[int, str]]:
        """The workers that haven't finished a sample for too long, and how to say so."""
        limit = self._timeout
        if limit is None:
            limit = max(_LEAST_TIMEOUT_SECONDS, _MOST_GAPS * self._longest) if self._longest else _FIRST_TIMEOUT_SECONDS
        now = time.monotonic()
        for worker, moved in list(self._moved.items()):
            news = self._news.get(worker)
            patience = limit * (news.images if news is not None else 1)
            if now - moved > patience:
                where = f" in {news.doing}" if news is not None and news.doing else ""
                yield worker, f"it hung: no sample was finished for {patience:.0f} s{where} (limits.sample_timeout)"
