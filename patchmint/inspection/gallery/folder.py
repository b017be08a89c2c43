"""Writes a gallery as a folder that opens without a server."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from patchmint.datasets.dataset import Dataset
from patchmint.errors import InputError
from patchmint.inspection.gallery.site import Site, is_own_file, is_own_folder
from patchmint.types import Progress

_MARK = b'patchmint.receive("data/meta"'
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_NAMED = 3


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        folder: where, absolute.
        files: how many.
        size: bytes of all of them.
        problems: samples whose cards say that something of them can't be shown.
    """

    folder: Path
    files: int
    size: int
    problems: int


def write_gallery(site: Site, out: Path, *, force: bool = False, progress: Progress | None = None) -> Written:
    """Write every file of a gallery; the folder gets its name when it is whole.

    Args:
        site: what is written.
        out: the folder; must not hold anything, unless `force` and it holds a gallery and nothing else. A link is
            followed.
        force: replace an older gallery.
        progress: told after each batch of samples.

    Raises:
        InputError: the folder holds something else, belongs to the data set, or can't be written.
        ShardError, StorageError, WeightsError, PluginError: as for `Site.files`.
    """
    out = _resolved(out, site.dataset)
    _check_free(out, force)
    growing = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        growing = Path(mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        growing.chmod(0o755)  # mkdtemp's own is for nobody else; a gallery is to be shown
        files, size, problems = _write(site, growing, progress)
        _check_free(out, force)  # something may have been put there meanwhile
        _replace(growing, out)
    except OSError as error:
        raise InputError(
            f"can't write the gallery into {out}: {error.strerror or error}; name another folder"
        ) from error
    finally:
        if growing is not None:
            shutil.rmtree(growing, ignore_errors=True)
    return Written(out, files, size, problems)


def _resolved(out: Path, dataset: Dataset) -> Path:
    """The folder itself, by its absolute path.

    Raises:
        InputError: no gallery can have this place.
    """
    if _ADDRESS.match(str(out)):
        raise InputError(f"{out} isn't a folder on this machine; write the gallery into one and copy it there")
    try:
        out = out.resolve(strict=False)
        working = Path.cwd().resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"can't follow {out}: {error}; name another folder") from error
    if working.is_relative_to(out) or os.path.ismount(out):
        raise InputError(f"{out} is in use and can't be replaced; name a folder in it, such as {out / 'gallery'}")
    whole = Path(dataset.uri).resolve() if dataset.storage.is_local and not dataset.uri.endswith(".tar") else None
    if whole is not None and out.is_relative_to(whole):
        raise InputError(f"{out} lies in the data set {whole}, which isn't ours to change; name a folder outside it")
    return out


def _check_free(out: Path, force: bool) -> None:
    """Nothing of anybody's is overwritten by mistake."""
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        ours = out.is_dir() and (out / "data" / "meta.js").read_bytes().startswith(_MARK)
    except OSError:
        ours = False
    if not ours:
        raise InputError(f"{out} exists and isn't a gallery; name a new or empty folder")
    if not force:
        raise InputError(f"{out} holds a gallery already; replace it with --force, or name another folder")
    if foreign := sorted(_foreign(out)):
        names = ", ".join(foreign[:_NAMED]) + (f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else "")
        raise InputError(
            f"{out} holds more than a gallery: {names}; --force would delete that: move it, or name another folder"
        )


def _foreign(out: Path) -> Iterator[str]:
    """What isn't a gallery's; of a foreign folder the folder only."""
    for top, folders, files in os.walk(out):
        inside = Path(top).relative_to(out)
        for name in tuple(folders):
            if not is_own_folder((inside / name).as_posix()):
                folders.remove(name)
                yield f"{inside / name}/"
        yield from (str(inside / name) for name in files if not is_own_file((inside / name).as_posix()))


def _write(site: Site, folder: Path, progress: Progress | None) -> tuple[int, int, int]:
    files = size = 0
    problems: list[str] = []
    for path, data in site.files(progress, problems.append):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        files += 1
        size += len(data)
    return files, size, len(problems)


def _replace(new: Path, out: Path) -> None:
    old = new.with_name(f"{new.name}-old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
