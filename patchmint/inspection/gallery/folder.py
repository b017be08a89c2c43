"""Writes a gallery as a folder that opens without a server."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from patchmint.errors import InputError
from patchmint.inspection.gallery.site import Site
from patchmint.inspection.rows import Progress

_MARK = b'patchmint.receive("data/meta"'


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        files: how many.
        size: bytes of all of them.
    """

    files: int
    size: int


def write_gallery(site: Site, out: Path, *, force: bool = False, progress: Progress | None = None) -> Written:
    """Write every file of a gallery; the folder gets its name when it is whole.

    Args:
        site: what is written.
        out: the folder; must not hold anything, unless `force` and it is a gallery.
        force: replace an older gallery.
        progress: told after each batch of samples.

    Raises:
        InputError: the folder holds something else, or can't be written.
        ShardError, StorageError, WeightsError, PluginError: as for `Site.files`.
    """
    _check_free(out, force)
    growing = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        growing = Path(mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        growing.chmod(0o755)  # mkdtemp's own is for nobody else; a gallery is to be shown
        written = _write(site, growing, progress)
        _replace(growing, out)
    except OSError as error:
        raise InputError(
            f"can't write the gallery into {out}: {error.strerror or error}; name another folder"
        ) from error
    finally:
        if growing is not None:
            shutil.rmtree(growing, ignore_errors=True)
    return written


def _check_free(out: Path, force: bool) -> None:
    """Nothing of anybody's is overwritten by mistake."""
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        ours = out.is_dir() and (out / "data" / "meta.js").read_bytes().startswith(_MARK)
    except OSError:
        ours = False
    if not ours:
        raise InputError(f"{out} is there already and is no gallery; name a folder that is new or empty")
    if not force:
        raise InputError(f"{out} holds a gallery already; replace it with --force, or name another folder")


def _write(site: Site, folder: Path, progress: Progress | None) -> Written:
    files = size = 0
    for path, data in site.files(progress):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        files += 1
        size += len(data)
    return Written(files, size)


def _replace(new: Path, out: Path) -> None:
    old = out.with_name(f"{new.name}-old")
    with suppress(FileNotFoundError):
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
