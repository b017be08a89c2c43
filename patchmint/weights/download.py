"""Pulls a checkpoint: resumable, verified before it gets its final name, safe with several processes at once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from patchmint.errors import WeightsCorruptError, WeightsError, WeightsMissingError
from patchmint.weights.container import describe, inspect, read_head, sniff
from patchmint.weights.registry import Checkpoint
from patchmint.weights.store import REINSTALL, Progress, check_file, file_of, record_sha256, sha256_of
from patchmint.weights.transfer import Notice, Transfer, fetch, without_login


def pull(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    url: str | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
    retry_wait: float = 1.0,
) -> Path:
    """Bring a checkpoint into a folder, unless it is there already or comes with the package.

    Bytes arrive in `FILENAME.part`, which a later call resumes. Only after size and sha256 are verified (where none is
    published: the file's own structure) is it renamed to `FILENAME`, in one step.

    Args:
        checkpoint: what to pull.
        folder: where to; created if need be.
        url: a mirror to take in place of `checkpoint.url`; the same checks apply.
        progress: called now and then with bytes done and the total (None = not known).
        notice: called with lines for a person, such as "resuming at 12.0 MB".
        retry_wait: seconds before the first retry after a broken connection; doubles each time.

    Returns:
        The path of the verified file.

    Raises:
        WeightsMissingError: the server can't be reached or doesn't have it, or the disk is full.
        WeightsCorruptError: the server sent a web page, or other bytes than published; or a bundled file isn't right.
        WeightsUnsafeError: a file without a published checksum holds pickled code.
    """
    say = notice or (lambda _: None)
    if checkpoint.bundled:
        return _bundled(checkpoint, say)
    target = folder / checkpoint.filename
    part = target.with_name(target.name + ".part")
    note = part.with_name(part.name + ".json")
    source = url or checkpoint.url
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.is_file():
            found = check_file(target, checkpoint)
            if found.status == "ok":
                say(f"{checkpoint.name} is already there: {found.detail}")
                return target
            say(f"{target} is replaced: {found.detail}")
        with _claimed(part, say) as file:
            # Another process may have finished it while this one waited.
            if target.is_file() and check_file(target, checkpoint).status == "ok":
                part.unlink()
                return target
            if checkpoint.size is None or file.seek(0, os.SEEK_END) != checkpoint.size:
                has_sum = checkpoint.sha256 is not None
                transfer = Transfer(source, target, checkpoint.size, has_sum, progress, say, retry_wait)
                try:
                    fetch(transfer, file, note)
                except WeightsError:
                    if file.seek(0, os.SEEK_END) == 0:
                        part.unlink()
                        note.unlink(missing_ok=True)
                    raise
            file.flush()
            os.fsync(file.fileno())
            try:
                sha256 = _verify(part, source, checkpoint)
            except WeightsError:
                part.unlink()
                note.unlink(missing_ok=True)
                raise
            part.replace(target)
            note.unlink(missing_ok=True)
            if checkpoint.sha256 is None:
                record_sha256(target, sha256, without_login(source))
            _sync_folder(folder)
    except WeightsError as error:
        error.names = (checkpoint.name,)
        raise
    except OSError as error:
        raise WeightsMissingError(
            f"{checkpoint.name} can't be written to {target}: {error.strerror or error}; "
            "free some space, or choose another folder (`--to`, or the PATCHMINT_WEIGHTS variable)",
            names=[checkpoint.name],
        ) from error
    return target


def _bundled(checkpoint: Checkpoint, say: Notice) -> Path:
    path = file_of(checkpoint)
    found = check_file(path, checkpoint)
    if found.status != "ok":
        raise WeightsCorruptError(
            f"{checkpoint.name} comes with patchmint, but {path} isn't right ({found.detail}): the installation is "
            f"broken. Mend it with\n  {REINSTALL}",
            names=[checkpoint.name],
        )
    say(f"{checkpoint.name} comes with patchmint, nothing needs pulling: {found.detail}")
    return path


@contextmanager
def _claimed(part: Path, say: Notice) -> Iterator[BinaryIO]:
    """The partial file, opened for appending by this process alone; waits while another holds it."""
    while True:
        with part.open("ab+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for another process that is pulling {part.name.removesuffix('.part')}")
                fcntl.flock(file, fcntl.LOCK_EX)
            # The other process may have renamed or removed the file under our hands: then it isn't ours to write to.
            if _same_file(file, part):
                yield file
                return


def _same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _verify(part: Path, source: str, checkpoint: Checkpoint) -> str:
    """Check the bytes that came; returns their sha256."""
    size = part.stat().st_size
    sha256 = sha256_of(part)
    shown = without_login(source)
    if checkpoint.size not in (None, size) or checkpoint.sha256 not in (None, sha256):
        kind = sniff(read_head(part))
        looks = f" It is {describe(kind)}." if kind in ("html", "lfs-pointer", "empty") else ""
        raise WeightsCorruptError(
            f"what {shown} served is not {checkpoint.name}: got {size} bytes with sha256 {sha256}, "
            f"expected {checkpoint.size} bytes with sha256 {checkpoint.sha256}.{looks} It was deleted; "
            "pull again, take a mirror with `--url`, or use a local file's path in place of the name"
        )
    if checkpoint.sha256 is None and checkpoint.kind != "vocabulary":
        try:
            inspect(part)
        except WeightsError as error:
            raise type(error)(f"what {shown} served was deleted: {error}") from error
    return sha256


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
