"""Folders and object stores behind one interface: local, s3, gs, az, and the Hugging Face Hub for reading."""

from __future__ import annotations

from patchmint.storage.interface import Entry, NewFile, Storage, uri_of
from patchmint.storage.locate import creates_conditionally, open_storage, syncs_names

__all__ = ["Entry", "NewFile", "Storage", "creates_conditionally", "open_storage", "syncs_names", "uri_of"]
