"""Tries a request to a store again, where obstore doesn't: it gives up where a reply's body breaks off."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

from obstore import exceptions

from patchmint.storage import stores

_Value = TypeVar("_Value")


class Repeats:
    """How long to go on with one request."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + stores.PATIENCE
        self._pause = 0.1

    def wait(self, error: Exception) -> None:
        """Wait a little before the next try.

        Raises:
            Exception: this error again, if it isn't a passing one or has lasted too long.
        """
        if re.search("status code: 4", str(error)) or time.monotonic() > self._deadline:
            raise error
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, 2.0)


def repeated(request: Callable[[], _Value]) -> _Value:
    """The result of a request that may be made twice without harm."""
    repeats = Repeats()
    while True:
        try:
            return request()
        except exceptions.GenericError as error:
            repeats.wait(error)
