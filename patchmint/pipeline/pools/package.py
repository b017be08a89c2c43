"""Which patchmint a process runs: a worker's must be the driver's, or bytes differ without a word."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

from patchmint.version import __version__

Package = tuple[str, str, str, str]
"""Host, version, folder, and sha256 of all Python files. A plain tuple, which any other patchmint understands."""


def package_here() -> Package:
    """The patchmint that this process has imported."""
    folder = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return socket.gethostname(), __version__, str(folder), digest.hexdigest()
