"""The user's cache: what may be deleted, and is then made again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

FOLDER_VARIABLE = "PATCHMINT_CACHE"


def cache_folder() -> Path:
    """The folder that `PATCHMINT_CACHE` names, else `patchmint` in the user's cache."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("patchmint")
