"""What the publishers' own code answers, computed once for each lock file, reference code and kind of processor.

The cache lies in PATCHMINT_TEST_CACHE, or in the user's cache folder. Whatever is damaged there is computed again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import platformdirs
import torch

Arrays = Mapping[str, npt.NDArray[np.generic]]

_ROOT = Path(__file__).parent.parent
_LOCKS = [_ROOT / "requirements-dev.lock", _ROOT / "requirements-transformers4.lock"]
_SHARED = [Path(__file__), Path(__file__).with_name("seeded_weights.py")]


def cached(name: str, code: str | Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays that `make` gives, from the cache if they are there.

    Args:
        name: of the reference, for the file's name.
        code: the file that holds `make` and all of its inputs; when it changes, the arrays are made anew.
        make: runs the publisher's code.
    """
    path = _folder() / f"{name}-{_key(Path(code))}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        path.unlink(missing_ok=True)
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.npz")
    np.savez(partial, **made)
    partial.replace(path)
    return made


def _folder() -> Path:
    given = os.environ.get("PATCHMINT_TEST_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("patchmint") / "test-references"


def _key(code: Path) -> str:
    machine = (torch.backends.cpu.get_cpu_capability(), torch.cpu._is_avx512_bf16_supported(), torch.get_num_threads())
    parts = [path.read_bytes() for path in (*_LOCKS, *_SHARED, code)] + [repr(machine).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]
