"""Does a storage keep its promise to create a file only if there is none?"""

from __future__ import annotations

from patchmint.storage.interface import Storage
from patchmint.storage.paths import temporary_name


def creates_conditionally(storage: Storage) -> bool:
    """Try whether `Storage.create` really refuses a second time: some stores ignore the condition.

    Raises:
        StorageError: it can't be written.
    """
    name = temporary_name()
    try:
        first = storage.create(name, b"first")
        return first and not storage.create(name, b"second") and storage.read(name) == b"first"
    finally:
        storage.delete([name])
