"""Does a storage keep its promise to create a file only if there is none?"""

from __future__ import annotations

from patchmint.storage.folders import existing_folder, prune
from patchmint.storage.interface import Storage
from patchmint.storage.local import LocalStorage
from patchmint.storage.paths import temporary_name


def creates_conditionally(storage: Storage) -> bool:
    """Try whether `Storage.create` really refuses a second time: some stores ignore the condition.

    Nothing is left of the try, not even a folder.

    Raises:
        StorageError: it can't be written.
    """
    name = temporary_name()
    root = storage.root if isinstance(storage, LocalStorage) else None
    before = existing_folder(root) if root is not None else None
    try:
        first = storage.create(name, b"first")
        return first and not storage.create(name, b"second") and storage.read(name) == b"first"
    finally:
        storage.delete([name])
        if root is not None and before is not None:
            prune(root, before)
