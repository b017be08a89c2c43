"""Output into a pipe whose reader may leave: `patchmint ... | head`."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Pipe(io.FileIO):
    """The end of a pipe that data goes into; ends the program where nobody reads any more."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except BrokenPipeError:
            # What is still buffered goes nowhere, when the interpreter ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            raise SystemExit(0) from None


@contextmanager
def quiet_pipe() -> Iterator[None]:
    """In the block, a program whose stdout is a pipe ends quietly and with 0 when the pipe's reader has left.

    Characters that the terminal's encoding lacks are written as "?".
    """
    given = sys.stdout
    if given is not sys.__stdout__ or not isinstance(given, io.TextIOWrapper):  # somebody catches it, as tests do
        yield
        return
    given.reconfigure(errors="replace")
    if not stat.S_ISFIFO(os.fstat(given.fileno()).st_mode):
        yield
        return
    given.flush()
    raw = _Pipe(given.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), given.encoding, "replace")
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout = given
