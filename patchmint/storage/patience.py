"""How long a storage that fails is waited for, and what this process waits for now."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from patchmint.storage.failures import is_passing, status_of

_LOG = logging.getLogger(__name__)
_Value = TypeVar("_Value")

PATIENCE = 12.0
"""Seconds for which passing faults are waited out where nobody has asked for more."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_SAID_AFTER = 10.0
_SLICE = 0.5


class Repeats:
    """How long to go on with one request. A context: at its end nothing is waited for any more."""

    def __init__(self, shown: str, seconds: float) -> None:
        """Begin.

        Args:
            shown: what is asked for.
            seconds: how long a passing fault may last.
        """
        self._shown = shown
        self._seconds = seconds
        self._since = time.monotonic()
        self._pause = _FIRST_PAUSE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wait = _waits.pop(id(self), None)
        if wait is not None and wait.said and kind is None:
            _LOG.warning("%s can be used again", self._shown)

    def wait(self, error: Exception) -> None:
        """Wait a little before the next try.

        Raises:
            Exception: this error again, if it isn't a passing one or has lasted too long.
        """
        if not is_passing(error):
            raise error
        self.pause(error)

    def pause(self, error: Exception) -> None:
        """The same, whatever the error.

        Raises:
            Exception: this error again, if it has lasted too long.
        """
        wait = _waits.setdefault(id(self), _Wait(self._since))
        wait.why = f"{self._shown} can't be used ({status_of(error) or 'no answer'})"
        if self._is_over():
            raise error
        if (
            wait.seconds > _SAID_AFTER
            and self._seconds > PATIENCE
            and not any(other.said for other in list(_waits.values()))
        ):
            wait.said = True
            _LOG.warning("%s; trying again for %.0f s", wait.why, self._seconds - wait.seconds)
        # several processes that were cut off together shouldn't come back together
        until = time.monotonic() + self._pause * random.uniform(0.5, 1)  # noqa: S311
        while (left := until - time.monotonic()) > 0 and not self._is_over():
            time.sleep(min(left, _SLICE))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _is_over(self) -> bool:
        return time.monotonic() - self._since > (min(self._seconds, PATIENCE) if _hurry.asked else self._seconds)


@dataclass
class Patience:
    """How long a storage is waited for, by what is known of it.

    Attributes:
        seconds: how long passing faults may last, at each request; None: `PATIENCE`.
        has_answered: one that never has isn't waited for any longer than `PATIENCE`: its address is likely to be wrong.
            Nor is one that has been waited for in vain, until it answers again.
    """

    seconds: float | None = None
    has_answered: bool = False

    @property
    def brief(self) -> float:
        """Seconds for a storage that isn't known to work."""
        return PATIENCE if self.seconds is None else min(PATIENCE, self.seconds)

    @contextmanager
    def repeats(self, shown: str) -> Iterator[Repeats]:
        """A context in which a request is made, again and again if it has to be.

        Args:
            shown: what is asked for.
        """
        seconds = self.seconds if self.has_answered and self.seconds is not None else self.brief
        with Repeats(shown, seconds) as repeats:
            try:
                yield repeats
            except Exception as error:
                self.has_answered = not is_passing(error)
                raise
        self.has_answered = True

    def repeated(self, shown: str, request: Callable[[], _Value]) -> _Value:
        """The result of a request that may be made twice without harm.

        Args:
            shown: what is asked for.
            request: makes it.

        Raises:
            Exception: as `request`, the last time.
        """
        with self.repeats(shown) as repeats:
            while True:
                try:
                    return request()
                except Exception as error:
                    repeats.wait(error)


def trouble() -> str:
    """What keeps this process waiting for a storage, and for how long already; "" if nothing does."""
    wait = min(list(_waits.values()), key=lambda wait: wait.since, default=None)
    return f"{wait.why} for {wait.seconds:.0f} s" if wait is not None else ""


def hurry() -> None:
    """This process is to end: from now on no fault is waited out for longer than `PATIENCE`. For signal handlers."""
    _hurry.asked = True


def _is_said() -> bool:
    return any(wait.said for wait in list(_waits.values()))


@dataclass
class _Wait:
    since: float
    why: str = ""
    said: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since


@dataclass
class _Hurry:
    asked: bool = False


_waits: dict[int, _Wait] = {}
_hurry = _Hurry()
