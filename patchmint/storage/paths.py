"""Which paths a storage takes, and the names of its temporary files."""

from __future__ import annotations

import secrets

from patchmint.errors import StorageError

TEMPORARY = ".patchmint-tmp-"
"""First characters of the names of temporary files."""


def checked(path: str, *, folder: bool = False) -> str:
    """A path that is safe to join to a root.

    Args:
        path: relative, with "/" between its parts.
        folder: whether it names a folder: then "" (the root) and one "/" at the end are fine, and the latter is cut.

    Raises:
        StorageError: it is absolute or empty, or has an empty part, ".", ".." or a NUL character in it.
    """
    if folder:
        path = path.removesuffix("/")
        if not path:
            return path
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise StorageError(
            f"{path!r} is not a path inside a storage: it must be relative, without empty parts, '.' and '..'; "
            "correct it where it comes from",
            uri=path,
        )
    return path


def temporary_name() -> str:
    """A name for a temporary file that nobody else has."""
    return TEMPORARY + secrets.token_hex(8)


def is_temporary(path: str) -> bool:
    """Whether a path names a temporary file."""
    return path.rpartition("/")[2].startswith(TEMPORARY)
