"""Where weights lie, in the weights folder or in the package; which name means which file; is it what it should be?"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import platformdirs

from patchmint.errors import (
    WeightsCorruptError,
    WeightsError,
    WeightsMismatchError,
    WeightsMissingError,
    did_you_mean,
)
from patchmint.storage.stores import SCHEMES
from patchmint.weights import hub
from patchmint.weights.checksums import recorded_sha256, sha256_of
from patchmint.weights.container import TensorShape, describe, inspect, read_head, read_header, sniff
from patchmint.weights.fetch import fetched
from patchmint.weights.folder import VOCABULARY, WEIGHTS, file_in
from patchmint.weights.recognise import fault_of
from patchmint.weights.registry import CHECKPOINTS, Checkpoint

Arch = TypeVar("Arch")

FOLDER_VARIABLE = "PATCHMINT_WEIGHTS"

REINSTALL = "pip install --force-reinstall patchmint   (in a clone: git checkout -- patchmint/weights/bundled)"
"""What mends a bundled file."""

Status = Literal["ok", "absent", "wrong size", "wrong checksum", "not a checkpoint"]


@dataclass(frozen=True)
class FileCheck:
    """What `check_file` found.

    Attributes:
        status: the verdict.
        detail: one sentence for a person.
        size: bytes; None if absent.
        sha256: None if absent, or where an earlier check already failed.
    """

    status: Status
    detail: str
    size: int | None = None
    sha256: str | None = None


def weights_folder() -> Path:
    """The folder of pulled files: `PATCHMINT_WEIGHTS` if set, else in the user's cache. It may not exist yet."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("patchmint") / "weights"


def bundled_folder() -> Path:
    """The folder of the files that come with the package."""
    return Path(__file__).parent / "bundled"


def file_of(checkpoint: Checkpoint) -> Path:
    """Where a checkpoint's file belongs, there or not: a bundled one in the package, others in the weights folder."""
    return (bundled_folder() if checkpoint.bundled else weights_folder()) / checkpoint.filename


def named_checkpoint(name: str) -> Checkpoint:
    """The registry's entry of this name.

    Raises:
        WeightsMissingError: there is none; the nearest right name is in the message.
    """
    if name not in CHECKPOINTS:
        raise _unknown(name)
    return CHECKPOINTS[name]


def _unknown(name: str) -> WeightsMissingError:
    return WeightsMissingError(
        f"no weights are called {name!r}{did_you_mean(name, CHECKPOINTS)} (`patchmint models list` shows every name); "
        "a local file is given by its path, such as ./weights.pth",
        names=[name],
    )


def locate(name_or_path: str, role: str = "") -> Path:
    """Find the file that a name or a path means; one of a store is brought into this machine's cache.

    Args:
        name_or_path: a registry name, a local path (has a separator or a suffix, or exists), the URI of an object, or
            `hub:ORG/NAME[@REVISION]`.
            `#PART` behind it is for `part_of`.
        role: what it is for: of a folder in Hugging Face's layout a `vocabulary` is meant, or else the weights.

    Returns:
        The path of an existing file; its content isn't looked at.

    Raises:
        WeightsMissingError: the file isn't there (the message says how to get it), or the name is unknown.
        WeightsCorruptError: it is a bundled file of the wrong size.
        StorageError: the store can't be read.
    """
    if part := part_of(name_or_path):
        name_or_path = name_or_path.removesuffix(f"#{part}")
    if name_or_path.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        return fetched(name_or_path)
    if name_or_path.startswith(hub.PREFIX):
        return file_in(hub.snapshot(name_or_path), VOCABULARY if role == "vocabulary" else WEIGHTS)
    if name_or_path in CHECKPOINTS:
        checkpoint = CHECKPOINTS[name_or_path]
        path = file_of(checkpoint)
        if checkpoint.bundled:
            _check_installed(checkpoint, path)
        elif not path.is_file():
            raise WeightsMissingError(
                f"the weights {name_or_path!r} aren't on this machine ({path} is missing); "
                f"run `patchmint models pull {name_or_path}`, or give the path of the file",
                names=[name_or_path],
            )
        return path
    try:
        path = Path(name_or_path).expanduser()
        if path.is_file():
            return path
    except (OSError, RuntimeError) as error:  # too long a name, no such user
        message = f"{name_or_path[:200]!r} isn't the path of a weights file: {error}"
        raise WeightsMissingError(message, names=[name_or_path]) from error
    if path.is_dir():
        if os.sep not in name_or_path:
            message = f"{name_or_path} is a folder here; write .{os.sep}{name_or_path} for the model in it"
            raise WeightsMissingError(message, names=[name_or_path])
        return file_in(path, VOCABULARY if role == "vocabulary" else WEIGHTS)
    if os.sep in name_or_path or path.suffix:
        raise WeightsMissingError(
            f"there is no weights file at {path}; check the path, or give a name that `patchmint models list` shows",
            names=[name_or_path],
        )
    raise _unknown(name_or_path)


def part_of(name_or_path: str) -> str:
    """Which part of a file is meant: `ema` of `checkpoint.pth#ema`, say; "" = its weights, wherever they are."""
    found = _PART.search(name_or_path)
    return found[1] if found else ""


_PART = re.compile(r"(?<=[^/])#([A-Za-z_]\w*)$")


def read_arch(name_or_path: str, infer: Callable[[Mapping[str, TensorShape], Mapping[str, str]], Arch]) -> Arch:
    """What the file that a name or a path means is, from its header: the numbers aren't read.

    Args:
        name_or_path: as for `locate`.
        infer: tells it from shapes and metadata.

    Raises:
        WeightsMissingError, WeightsCorruptError, WeightsUnsafeError: as `locate` and `read_header`.
        WeightsMismatchError: `infer` doesn't know it.
    """
    path = locate(name_or_path)
    header = read_header(path, part_of(name_or_path))
    try:
        return infer(header.tensors, header.metadata)
    except WeightsMismatchError as error:
        raise WeightsMismatchError(fault_of(path, header.tensors, header.metadata) or f"{path}: {error}") from error


def _check_installed(checkpoint: Checkpoint, path: Path) -> None:
    """Nobody but the installer puts a bundled file there, so pulling it or giving a path is no way out."""
    broken = f"the installation is broken. Mend it with\n  {REINSTALL}"
    if not path.is_file():
        message = f"{checkpoint.name!r} comes with patchmint, but {path} is missing: {broken}"
        raise WeightsMissingError(message, names=[checkpoint.name])
    size = path.stat().st_size
    if size != checkpoint.size:
        raise WeightsCorruptError(
            f"{checkpoint.name!r} comes with patchmint, but {path} has {size} bytes, not {checkpoint.size}: {broken}"
        )


def check_file(path: Path, checkpoint: Checkpoint | None) -> FileCheck:
    """Check a file against what is known of it. Never raises for a bad file: the verdict says so.

    Args:
        path: the file, which may be absent.
        checkpoint: what it should be. Without it, or where it has no published figures, the file's own structure and
            the checksum recorded when it was pulled are checked.
    """
    if not path.is_file():
        return FileCheck("absent", f"{path} is missing")
    try:
        return _check_present(path, checkpoint)
    except OSError as error:
        return FileCheck("not a checkpoint", f"it can't be read: {error.strerror or error}")


def _check_present(path: Path, checkpoint: Checkpoint | None) -> FileCheck:
    size = path.stat().st_size
    kind = sniff(read_head(path))
    wanted = ("text",) if checkpoint and checkpoint.kind == "vocabulary" else ("zip", "legacy", "safetensors")
    if kind not in wanted:
        return FileCheck("not a checkpoint", f"it is {describe(kind)}", size)
    expected_size = checkpoint.size if checkpoint else None
    if expected_size not in (None, size):
        return FileCheck("wrong size", f"it has {size} bytes, should have {expected_size}", size)
    sha256 = sha256_of(path)
    published = checkpoint.sha256 if checkpoint else None
    expected = published or recorded_sha256(path)
    if expected is not None and sha256 != expected:
        origin = "published" if published else "recorded when it was pulled"
        return FileCheck("wrong checksum", f"its sha256 is {sha256}, {origin}: {expected}", size, sha256)
    if published:
        return FileCheck("ok", "size and sha256 are as published", size, sha256)
    try:
        inspect(path)
    except WeightsError as error:
        return FileCheck("not a checkpoint", str(error), size, sha256)
    known = "its sha256 is the one recorded when it was pulled" if expected else "no sha256 is recorded for it"
    return FileCheck("ok", f"whole and undamaged; none is published, {known}", size, sha256)
