"""`limits.max_reject_share`: over everything, and over the recent past."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from patchmint.errors import BuildError
from patchmint.pipeline.driver.contracts import Progress
from patchmint.pipeline.orders import UnitResult, Working
from patchmint.samples import count_parts

MIN_REJECTS_TO_STOP = 10
"""Below this many rejects no share stops a build: one bad photograph of fifteen is no wrong config."""

_RECENT_SAMPLES = 20_000
_FOUND_AT_WORK = frozenset(
    {
        "image-missing",
        "image-unreadable",
        "image-damaged",
        "out-of-memory",
        "not-annotatable",
        "model-error",
        "kills-worker",
        "hangs-worker",
    }
)
"""Those that something which has broken meanwhile may cause. What a source's own records lack lies in heaps: all of
LLaVA's conversations without an image stand at its end."""


class RejectLimit:
    """Stops a build in which too much is rejected."""

    def __init__(self, share: float, rejected: int, samples: int) -> None:
        """Begin.

        Args:
            share: that is allowed.
            rejected: in units finished in earlier runs; single texts of samples, here and below, aside.
            samples: in those units.
        """
        self._share = share
        self._rejected, self._samples = rejected, samples
        # sums over units in work: limits are looked at whenever any of many workers says anything
        self._working: dict[int, tuple[int, int, int]] = {}  # rejects, those of them found at work, samples
        self._sums = (0, 0, 0)
        self._recent: deque[tuple[int, int]] = deque()
        self._recent_rejected = self._recent_samples = 0

    def add(self, result: UnitResult) -> None:
        """A unit is finished."""
        parts = count_parts(result.rejects)
        self._rejected += sum(result.rejects.values()) - parts
        self._samples += result.planned - parts
        found = _found_at_work(result.rejects)
        self._recent.append((found, result.planned))
        self._recent_rejected += found
        self._recent_samples += result.planned
        while self._recent_samples - self._recent[0][1] >= _RECENT_SAMPLES:
            found, planned = self._recent.popleft()
            self._recent_rejected -= found
            self._recent_samples -= planned

    def set_working(self, worker: int, news: Working | None) -> None:
        """How far a worker is with its unit; None: it has none."""
        all_before, found_before, samples_before = self._working.pop(worker, (0, 0, 0))
        all_now, found_now, samples_now = now = _counts(news)
        if news is not None:
            self._working[worker] = now
        rejected, found, samples = self._sums
        self._sums = (
            rejected + all_now - all_before,
            found + found_now - found_before,
            samples + samples_now - samples_before,
        )

    def check(self, progress: Progress) -> None:
        """Raises BuildError if too much was rejected."""
        rejected, found, samples = self._sums
        self._check(self._rejected + rejected, self._samples + samples, "", progress)
        if self._recent_samples >= _RECENT_SAMPLES:
            recent = self._recent_samples + samples
            self._check(self._recent_rejected + found, recent, " lately", progress)

    def _check(self, rejected: int, samples: int, when: str, progress: Progress) -> None:
        if rejected <= max(MIN_REJECTS_TO_STOP, self._share * samples):
            return
        found = progress.all_rejects().most_common()
        reasons = f" (in this run {', '.join(f'{count} {reason}' for reason, count in found)})" if found else ""
        raise BuildError(
            f"{rejected} of {samples} samples were rejected{when}, more than limits.max_reject_share "
            f"({self._share:g}) allows{reasons}. If the data set is like "
            "that, raise limits.max_reject_share and run the same command again; else fix the config and build "
            "into another folder"
        )


def _counts(news: Working | None) -> tuple[int, int, int]:
    if news is None:
        return 0, 0, 0
    parts = count_parts(news.rejects)
    return sum(news.rejects.values()) - parts, _found_at_work(news.rejects), news.samples - parts


def _found_at_work(rejects: Mapping[str, int]) -> int:
    return sum(count for reason, count in rejects.items() if reason in _FOUND_AT_WORK)
