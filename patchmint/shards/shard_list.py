"""shards.json: the units of a finished data set, a line each, so that nobody needs to look for their files.

What it says is taken from the commit records. Quick to import: `inspect ls` needs nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from patchmint.errors import NotFoundError, ShardError
from patchmint.shards.paths import PREFIX, SHARDS_PATH
from patchmint.storage import Storage, uri_of

SCHEMA = "patchmint.shards/1"


@dataclass(frozen=True)
class ListedUnit:
    """A unit of the plan, or of a retry.

    Attributes:
        unit: its number.
        samples: in its shard; 0: it has none.
        rejected: samples of it that are in no shard.
        bytes: of the tar.
        table_bytes: of the sidecar.
        table_sha256: of the sidecar; empty where there is none. Equal sidecars mean equal indexes.
        texts: of its samples.
        label_share: mean over those texts of the share of their patches that are 1; None without labels.
    """

    unit: int
    samples: int
    rejected: int
    bytes: int
    table_bytes: int
    table_sha256: str
    texts: int
    label_share: float | None


@dataclass(frozen=True)
class ShardList:
    """shards.json.

    Attributes:
        plans: how many plans it covers: the first one and its retries.
        units: in order of their numbers.
        prefix: what shards' names begin with.
        digest: SHA-256 of the file, in hex.
    """

    plans: int
    units: tuple[ListedUnit, ...]
    prefix: str = ""
    digest: str = field(default="", compare=False)


def write_shard_list(storage: Storage, plans: int, units: Iterable[ListedUnit], prefix: str = "") -> None:
    """Write shards.json, a line a unit.

    Raises:
        StorageError: it can't be written.
    """
    lines = ",\n".join(json.dumps(asdict(unit)) for unit in units)
    head = f'"schema": "{SCHEMA}", "plans": {plans}' + (f', "prefix": "{prefix}"' if prefix else "")
    storage.write(SHARDS_PATH, f'{{{head}, "units": [\n{lines}\n]}}\n'.encode())


def read_shard_list(storage: Storage) -> ShardList | None:
    """Read shards.json; None where there is none.

    Raises:
        StorageError: it can't be read.
        ShardError: it isn't of the format's form.
    """
    try:
        data = storage.read(SHARDS_PATH)
    except NotFoundError:
        return None
    try:
        document = json.loads(data)
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']!r}")
        units = tuple(ListedUnit(**entry) for entry in document["units"])
        if not _is_count(document["plans"]) or not all(map(_is_sound, units)):
            raise ValueError("a number is none, or out of range")
        prefix = document.get("prefix", "")
        if not re.fullmatch(PREFIX, prefix):
            raise ValueError(f"shards' names can't begin with {prefix!r}")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ShardError(
            f"{SHARDS_PATH} of {storage.uri} isn't of the form {SCHEMA} ({error}); run the build's command again, "
            "which writes it again",
            uri=uri_of(storage, SHARDS_PATH),
        ) from error
    return ShardList(document["plans"], units, prefix, hashlib.sha256(data).hexdigest())


def _is_sound(unit: ListedUnit) -> bool:
    counts = (unit.unit, unit.samples, unit.rejected, unit.bytes, unit.table_bytes, unit.texts)
    share = unit.label_share
    return (
        all(map(_is_count, counts))
        and isinstance(unit.table_sha256, str)
        and (share is None or (isinstance(share, int | float) and 0 <= share <= 1))
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
