"""The user's cache: what may be deleted, and is then made again."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import platformdirs

FOLDER_VARIABLE = "PATCHMINT_CACHE"
_STILL_SECONDS = 300.0
_LOOK_SECONDS = 0.2


def cache_folder() -> Path:
    """The folder that `PATCHMINT_CACHE` names, else `patchmint` in the user's cache."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("patchmint")


@contextmanager
def claimed(part: Path, say: Callable[[str], object]) -> Iterator[BinaryIO]:
    """A partial file, opened for appending by this process alone, whatever earlier ones have left in it.

    Waits while another process has it, and its file grows.

    Args:
        part: in an existing folder.
        say: takes a line for people that says what is waited for.

    Raises:
        TimeoutError: the other's file hasn't grown for some minutes.
        OSError: it can't be opened.
    """
    while True:
        with part.open("ab+") as file:
            _lock(file, part, say)
            # The other process may have renamed or removed the file under our hands: then it isn't ours to write to.
            if _same_file(file, part):
                yield file
                return


def _lock(file: BinaryIO, part: Path, say: Callable[[str], object]) -> None:
    size, since, said = -1, time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if (now := os.fstat(file.fileno()).st_size) != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > _STILL_SECONDS:
                raise TimeoutError(
                    f"another process has had {part} open for {_STILL_SECONDS:.0f} s and brings nothing; end it"
                ) from None
            if not said:
                say(f"waiting for another process that is pulling {part.name.removesuffix('.part')}")
                said = True
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
