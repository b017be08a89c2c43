"""Errors of the operating system and of obstore, in words: what failed, why, what to do."""

from __future__ import annotations

import errno
import re
import socket
import sys
import tempfile
from contextlib import suppress

from obstore import exceptions

from patchmint.errors import BucketMissingError, DiskFullError, NotFoundError, PlaceError, StorageError

_HINTS = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another place, then run again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another place, then run again"),
    errno.EFBIG: ("the file is larger than the file system or a limit (`ulimit -f`) allows", "raise the limit"),
    errno.EACCES: ("permission denied", "give this user access, or choose another place"),
    errno.EPERM: ("operation not permitted", "give this user access, or choose another place"),
    errno.EROFS: ("the file system is read-only", "choose another place"),
    errno.EISDIR: ("it is a folder", "name a file"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "correct the path"),
    errno.EEXIST: ("a part of the path is a file, not a folder", "correct the path"),
    errno.ENAMETOOLONG: ("the name is too long for this file system", "choose a shorter one"),
    errno.ELOOP: ("its links lead in a circle", "fix the links"),
    errno.EMFILE: ("this process has too many open files", "raise `ulimit -n`"),
}

_STATUS = re.compile(
    r"Error performing [A-Z]+ (?:\S+ )?in \S+?(?:, after \d+ retries, max_retries: \d+, retry_timeout: \S+ )? - "
    r"Server returned non-2xx status code: (\d{3}) "
)
_PASSING_STATUS = (408, 409, 425, 429)
# of a file system that is elsewhere
_PASSING_ERRNO = (
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
)
# 400 where S3's patience with a slow line has ended; 404 of an upload that is finished, where that reply was lost
_PASSING_CODES = ("RequestTimeout", "NoSuchUpload")
_MISSING_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_FULL_STORE = ("QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull")
_REMEDIES = {
    "ExpiredToken": "the credentials in the environment have expired; get new ones, then run again",
    "RequestTimeTooSkewed": "the clocks of this machine and the store differ; set this one right (NTP), then run again",
}


def explain(action: str, shown: str, error: OSError) -> StorageError:
    """The error to raise for an operating system's error.

    Args:
        action: a verb, such as "read".
        shown: the file.
        error: what the system said.
    """
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"can't {action} {shown}: there is no such file; check the path", uri=shown)
    kind = DiskFullError if is_full(error) else StorageError
    return kind(f"can't {action} {shown}: {_hint(error)}", uri=shown)


def explain_place(action: str, shown: str, error: OSError) -> PlaceError:
    """The same where a file of a store passes through this machine's temporary folder, and fails there."""
    folder = "a temporary folder"
    with suppress(OSError):  # where none can be written, it raises
        folder = tempfile.gettempdir()
    where = f"its temporary file in {folder} on {socket.gethostname()}; TMPDIR moves it"
    return PlaceError(f"can't {action} {shown} ({where}): {_hint(error)}", uri=shown)


def is_full(error: OSError) -> bool:
    """Whether a disk has no room, or none for this user."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _hint(error: OSError) -> str:
    default = (error.strerror or str(error), "check the disk and the path, then run again")
    return "; ".join(_HINTS.get(error.errno or 0, default))


def explain_store(action: str, shown: str, error: Exception) -> StorageError:
    """The error to raise for an object store's error.

    Args:
        action: a verb, such as "read".
        shown: the object's URI.
        error: what obstore said.
    """
    why, code = _told(error), _tag("Code", error)
    if code in _MISSING_BUCKET or "bucket does not exist" in str(error):
        message = f"can't {action} {shown}: the bucket doesn't exist; make it, or correct its name"
        return BucketMissingError(message, uri=shown)
    if code in _FULL_STORE or status_of(error) == 507:
        message = f"can't {action} {shown}: {why}; the store or its quota is full: make room there, then run again"
        return DiskFullError(message, uri=shown)
    if isinstance(error, FileNotFoundError):
        if action == "write":
            return StorageError(f"can't write {shown}: {why}; check that the bucket exists", uri=shown)
        return NotFoundError(f"can't {action} {shown}: there is no such object; check the path", uri=shown)
    if code in _REMEDIES:
        remedy = _REMEDIES[code]
    elif status_of(error) in (401, 403):
        remedy = "the store refused the credentials in the environment; check them and the bucket's permissions"
    elif "/latest/api/token" in str(error):
        # Without credentials obstore asks the cloud's machine service for them, and fails there.
        remedy = "there are no credentials in the environment; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    else:
        remedy = "check the address, the network and the store's health, then run again"
    return StorageError(f"can't {action} {shown}: {why}; {remedy}", uri=shown)


def is_passing(error: BaseException) -> bool:
    """Whether a request is worth another try: the storage was never reached, is busy, or broke off its answer."""
    error = _of_thread(error)
    status = status_of(error)
    if status is None:
        httpx = sys.modules.get("httpx")  # the Hub's client uses it
        is_cut = httpx is not None and isinstance(error, httpx.HTTPError)
        return is_cut or isinstance(error, exceptions.GenericError) or getattr(error, "errno", 0) in _PASSING_ERRNO
    if hasattr(error, "response") and status == 409:  # on the Hub somebody else's commit came first
        return False
    return status in _PASSING_STATUS or status >= 500 or _tag("Code", error) in _PASSING_CODES


def status_of(error: BaseException) -> int | None:
    """The HTTP status by which a store or the Hub refused a request; None if it gave none.

    obstore (0.12) has no attribute for it. Its message ends with that of object_store's `RetryError`, the same for all
    stores and requests; what follows on other lines, and the reply's body, may say anything.
    """
    reply = getattr(error, "response", None)
    if reply is not None:
        return int(reply.status_code)
    found = _STATUS.search(str(error).partition("\n")[0])
    return int(found[1]) if found else None


def explain_hub(action: str, shown: str, error: BaseException) -> StorageError:
    """The error to raise for one of the Hugging Face Hub's client.

    Args:
        action: a verb, such as "read".
        shown: the file's URI.
        error: what the client raised.
    """
    from huggingface_hub import errors

    error = _of_thread(error)
    status = status_of(error)
    if isinstance(error, errors.EntryNotFoundError):
        return NotFoundError(f"can't {action} {shown}: there is no such file; check the path", uri=shown)
    match error:
        case errors.GatedRepoError():
            remedy = "it is gated; accept its terms on its page, and set HF_TOKEN to a token of that account"
        case errors.RepositoryNotFoundError():
            remedy = "there is no such repository, or it is private; check the name, and set HF_TOKEN to a token for it"
        case errors.RevisionNotFoundError():
            remedy = "it has no such revision; check what follows the @"
        case errors.OfflineModeIsEnabled():
            remedy = "HF_HUB_OFFLINE is set; unset it"
        case _ if status in (401, 403):
            remedy = f"the Hub refused; set HF_TOKEN to a token that may {action} it"
        case _ if status in (409, 412):
            remedy = "somebody else changed it meanwhile; run again"
        case _ if status == 429:
            remedy = "the Hub limits requests; wait some minutes, or set HF_TOKEN to a token with a higher limit"
        case _:
            remedy = f"{_told(error)}; check HF_ENDPOINT, the network and the Hub's health, then run again"
    return StorageError(f"can't {action} {shown}: {remedy}", uri=shown)


def explain_client(action: str, shown: str, error: Exception) -> StorageError:
    """The error to raise for one of boto3's, whose messages hold no secrets."""
    said = _told(error)
    return StorageError(f"can't {action} {shown}: {said}; check the credentials and their permissions", uri=shown)


def _of_thread(error: BaseException) -> BaseException:
    """What went wrong in one of the threads in which the Hub's client uploads."""
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error


def _told(error: BaseException) -> str:
    """What a store said, on one line: no debug dump, and no queries of addresses, which may hold signatures."""
    text = str(error).strip() or type(error).__name__
    line = re.sub(r"<\?xml.*", "", text.splitlines()[0])
    line = re.sub(r"(https?://[^\s?]*)\?\S*", r"\1", line).strip()[:400]
    said = ": ".join(filter(None, (_tag("Code", error), _tag("Message", error))))
    return f"{line} {said}".strip()


def _tag(name: str, error: BaseException) -> str:
    """What an element of a store's reply (S3's and Azure's are XML) holds; "" if there is none."""
    found = re.search(f"<{name}>([^<]*)</{name}>", str(error))
    return found[1] if found else ""
