"""Finds what killed builds have left in a store where no listing shows it: unfinished uploads."""

from __future__ import annotations

from dataclasses import dataclass

from patchmint.shards.lease import LeaseRecord, read_lease
from patchmint.shards.records import ATTEMPTS, run_and_unit
from patchmint.storage import open_storage
from patchmint.storage.uploads import Upload, Uploads

_ROOMS = (f"{ATTEMPTS}/", "plan")
"""What is written in parts: shards, and the plan."""


@dataclass(frozen=True)
class Leftovers:
    """Unfinished uploads of an output.

    Attributes:
        uri: the output.
        uploads: those that no driver is at.
        live: how many may be the work of the driver that has the lease; they stay.
    """

    uri: str
    uploads: list[Upload]
    live: int


def find_leftovers(uri: str) -> Leftovers:
    """Look for unfinished uploads of builds into an output.

    Raises:
        StorageError: it isn't on S3, boto3 isn't installed, or the store can't be asked.
    """
    storage = open_storage(uri)
    uploads = Uploads(storage)
    # listed first: what a driver that begins afterwards uploads isn't among them
    found = uploads.list(_ROOMS)
    holder = read_lease(storage)
    left = [upload for upload in found if holder is None or not _may_be_of(holder, upload)]
    return Leftovers(uri, left, len(found) - len(left))


def abort(leftovers: Leftovers) -> None:
    """Delete what was found.

    Raises:
        StorageError: the store can't be asked.
    """
    uploads = Uploads(open_storage(leftovers.uri))
    for upload in leftovers.uploads:
        uploads.abort(upload)


def _may_be_of(holder: LeaseRecord, upload: Upload) -> bool:
    """Of another run's attempt it isn't; a driver that writes its plan is taken at no word of a clock."""
    room, _, rest = upload.path.partition("/")
    attempt = run_and_unit(rest.partition("/")[0]) if room == ATTEMPTS else None
    return attempt is None or attempt[0] == holder.run
