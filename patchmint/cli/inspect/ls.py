"""`patchmint inspect ls`."""

from __future__ import annotations


def ls_command() -> None:
    """List the shards, or the samples of one tar."""
    raise NotImplementedError
