"""Pulls a checkpoint: resumable, verified before it gets its final name, safe with several processes at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit, urlunsplit

import requests

from patchmint.errors import WeightsCorruptError, WeightsError, WeightsMissingError
from patchmint.storage.cache import claimed
from patchmint.storage.local import sync_folder
from patchmint.version import __version__
from patchmint.weights.checksums import record_sha256, sha256_of
from patchmint.weights.container import describe, inspect, read_head, sniff
from patchmint.weights.registry import Checkpoint
from patchmint.weights.store import REINSTALL, check_file, file_of

ProgressCall = Callable[[int, int | None], None]
"""Called with the bytes done so far and the total, None where it isn't known."""

Notice = Callable[[str], None]
"""Called with one line of text for a person."""

_TRIES = 4
"""Failed attempts in a row, none of which brought new bytes, before giving up."""

_FIRST_WAIT = 1.0
"""Seconds before the first retry; doubles with each."""

_TIMEOUTS = (15.0, 60.0)
"""Seconds to connect, and between two packets."""

_CHUNK = 1 << 16
"""Bytes at a time; a broken connection loses at most this much of what came."""


def pull(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    url: str | None = None,
    progress: ProgressCall | None = None,
    notice: Notice | None = None,
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
        with claimed(part, say) as file:
            # Another process may have finished it while this one waited.
            if target.is_file() and check_file(target, checkpoint).status == "ok":
                part.unlink()
                return target
            if checkpoint.size is None or file.seek(0, os.SEEK_END) != checkpoint.size:
                has_sum = checkpoint.sha256 is not None
                transfer = _Transfer(source, target, checkpoint.size, has_sum, progress, say)
                try:
                    _fetch(transfer, file, note)
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
                record_sha256(target, sha256, _without_login(source))
            sync_folder(folder)
    except WeightsMissingError as error:
        error.names = (checkpoint.name,)
        raise
    except TimeoutError as error:
        raise WeightsMissingError(f"{checkpoint.name}: {error}", names=[checkpoint.name]) from error
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
            f"broken. Mend it with\n  {REINSTALL}"
        )
    say(f"{checkpoint.name} comes with patchmint, nothing needs pulling: {found.detail}")
    return path


def _verify(part: Path, source: str, checkpoint: Checkpoint) -> str:
    """Check the bytes that came; returns their sha256."""
    size = part.stat().st_size
    sha256 = sha256_of(part)
    shown = _without_login(source)
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


@dataclass(frozen=True)
class _Transfer:
    """What to fetch, and what is known of it.

    Attributes:
        url: where from.
        target: the file's final path, named in messages; its folder is where the space is needed.
        size: the published size in bytes, or None.
        verifiable: whether a published checksum will tell a wrong splice after a resume.
        progress: called with bytes done and the total.
        notice: called with lines for a person.
    """

    url: str
    target: Path
    size: int | None
    verifiable: bool
    progress: ProgressCall | None
    notice: Notice

    @property
    def by_hand(self) -> str:
        """What to do when the address doesn't serve the file."""
        return (
            f"get the file by hand and put it at {self.target}, or take a mirror with `--url`, "
            "or use its local path in place of the name"
        )


class _TryAgainError(Exception):
    """This attempt failed in a way that may pass."""


def _fetch(transfer: _Transfer, file: BinaryIO, note: Path) -> None:
    """Bring `file` (open for appending, perhaps with a first part in it) up to the whole of `transfer.url`.

    Args:
        transfer: what to fetch.
        file: opened with mode "ab+"; on any error it keeps what has come, for the next call to resume.
        note: path of a small file that remembers which version of which address the partial bytes are from.

    Raises:
        WeightsMissingError: the server can't be reached or refuses, or the disk is too small.
        WeightsCorruptError: the server sends a web page, or a file of another size than published.
    """
    tries = 0
    most = _end(file)
    while True:
        try:
            _attempt(transfer, file, note)
            return
        except _TryAgainError as problem:
            tries = 0 if _end(file) > most else tries + 1
            most = max(most, _end(file))
            if tries >= _TRIES:
                raise WeightsMissingError(
                    f"{_without_login(transfer.url)} could not be fetched: {problem} ({_TRIES} attempts without "
                    f"progress). What has come is kept: run the same command again to resume; or {transfer.by_hand}"
                ) from problem
            wait = _FIRST_WAIT * 2**tries
            transfer.notice(f"{problem}; trying again in {wait:g} s")
            time.sleep(wait)


def _without_login(url: str) -> str:
    """The address without a user name and password, for messages and notes."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _attempt(transfer: _Transfer, file: BinaryIO, note: Path) -> None:
    headers = {"Accept-Encoding": "identity", "User-Agent": f"patchmint/{__version__}"}
    offset = _end(file)
    if offset:
        headers |= _resume_headers(transfer, offset, note)
    if offset and "Range" not in headers:
        transfer.notice("the partial file can't be resumed safely; starting over")
        file.truncate(0)
        offset = 0
    try:
        with requests.get(transfer.url, headers=headers, stream=True, timeout=_TIMEOUTS) as response:
            if response.status_code == 416 and offset:
                _check_complete(response, file, offset)
                return
            _check_status(transfer, response)
            total = _total(transfer, response, file, offset)
            if response.status_code == 206:
                transfer.notice(f"resuming at {offset / 1e6:.1f} MB")
            _write_note(note, transfer.url, response)
            _receive(transfer, response, file, total)
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _TryAgainError(_reason(error)) from error
    except requests.RequestException as error:
        raise WeightsMissingError(
            f"{_without_login(transfer.url)} could not be fetched: {type(error).__name__}; "
            f"check the address, or {transfer.by_hand}"
        ) from error


def _resume_headers(transfer: _Transfer, offset: int, note: Path) -> dict[str, str]:
    """Headers that ask for the rest; none where a splice of two versions could go unseen."""
    try:
        saved = json.loads(note.read_text(encoding="utf-8"))
        validator = str(saved["validator"]) if saved["url"] == _without_login(transfer.url) else ""
    except (OSError, ValueError, KeyError, TypeError):
        validator = ""
    wanted = {"Range": f"bytes={offset}-"}
    if validator:
        return wanted | {"If-Range": validator}
    return wanted if transfer.verifiable else {}


def _write_note(note: Path, url: str, response: requests.Response) -> None:
    etag = response.headers.get("ETag", "")
    # A weak ETag doesn't promise equal bytes (RFC 9110, 13.1.5); a date is the next best validator.
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    note.write_text(json.dumps({"url": _without_login(url), "validator": validator}) + "\n", encoding="utf-8")


def _check_complete(response: requests.Response, file: BinaryIO, offset: int) -> None:
    """The server has nothing behind `offset`: either everything is here, or its file is another one."""
    match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
    if not (match and int(match[1]) == offset):
        file.truncate(0)
        raise _TryAgainError("the server's file is shorter than the partial one; starting over")


def _check_status(transfer: _Transfer, response: requests.Response) -> None:
    status = f"the server answered {response.status_code} {response.reason}"
    if response.status_code == 429 or response.status_code >= 500:
        raise _TryAgainError(status)
    if response.status_code not in (200, 206):
        raise WeightsMissingError(f"{_without_login(transfer.url)} could not be fetched: {status}; {transfer.by_hand}")
    if "html" in response.headers.get("Content-Type", "").lower():
        raise _web_page(transfer)


def _total(transfer: _Transfer, response: requests.Response, file: BinaryIO, offset: int) -> int | None:
    """The whole file's size as the server tells it; empties `file` where the server begins at the beginning."""
    total: int | None
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != offset:
            file.truncate(0)
            raise _TryAgainError("the server resumed at another place than asked; starting over")
        total = None if match[2] == "*" else int(match[2])
    else:
        if offset:
            transfer.notice("the server can't resume, or its file has changed; starting over")
            file.truncate(0)
            offset = 0
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None
    if total is not None and transfer.size not in (None, total):
        raise WeightsCorruptError(
            f"{_without_login(transfer.url)} serves {total} bytes, published are {transfer.size}: it is another file; "
            f"{transfer.by_hand}"
        )
    needed = (total or transfer.size or 0) - offset
    free = shutil.disk_usage(transfer.target.parent).free
    if needed > free:
        raise WeightsMissingError(
            f"{transfer.target.parent} has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed; "
            "free some space or choose another folder (`--to`, or the PATCHMINT_WEIGHTS variable)"
        )
    return total


def _receive(transfer: _Transfer, response: requests.Response, file: BinaryIO, total: int | None) -> None:
    done = _end(file)
    for chunk in response.iter_content(_CHUNK):
        if done == 0 and sniff(chunk[:512]) == "html":
            raise _web_page(transfer)
        done += len(chunk)
        if transfer.size is not None and done > transfer.size:
            raise WeightsCorruptError(
                f"{_without_login(transfer.url)} serves more than the {transfer.size} bytes that the file has; "
                f"it is another file, or the address is wrong: {transfer.by_hand}"
            )
        file.write(chunk)
        if transfer.progress is not None:
            transfer.progress(done, total or transfer.size)
    if total is not None and done < total:
        raise _TryAgainError(f"the connection ended after {done} of {total} bytes")


def _web_page(transfer: _Transfer) -> WeightsCorruptError:
    return WeightsCorruptError(
        f"{_without_login(transfer.url)} served a web page in place of the file: the link has moved or wants a login; "
        f"{transfer.by_hand}"
    )


def _end(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _reason(error: requests.RequestException) -> str:
    """What went wrong, without the address: after a redirect it may carry a signature."""
    if isinstance(error, requests.Timeout):
        return "the server didn't answer in time"
    cause = error.args[0] if error.args else error
    text = str(getattr(cause, "reason", cause))
    return "the connection failed" + (f" ({text})" if "://" not in text and "url:" not in text else "")
