"""SHA-256 of files, and the notes of them beside files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_sha256(path: Path, sha256: str, url: str) -> None:
    """Note beside a file which checksum it had when it came, for files without a published one."""
    note = {"sha256": sha256, "size": path.stat().st_size, "url": url}
    _record_path(path).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def recorded_sha256(path: Path) -> str | None:
    """The checksum noted by `record_sha256`, or None."""
    try:
        note = json.loads(_record_path(path).read_text(encoding="utf-8"))
        return str(note["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".pulled.json")
