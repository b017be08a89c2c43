"""Tells what a file is and whether it is sound, without torch and without running anything in it."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors

from patchmint.errors import WeightsCorruptError, WeightsMissingError, WeightsUnsafeError
from patchmint.weights.pickles import PickleScan, is_foreign, scan_pickle
from patchmint.weights.registry import Checkpoint

FileKind = Literal["zip", "legacy", "safetensors", "pickle", "html", "lfs-pointer", "empty", "text", "other"]

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number that `torch.save` wrote first before torch 1.6 (`torch.serialization.MAGIC_NUMBER`)."""

_LEGACY_PICKLES = 5
"""Magic number, version, system facts, the object, storage keys (`torch.serialization._legacy_save`), then bytes."""

_MAX_PICKLE_BYTES = 256 << 20
"""A state dict's pickle lists names and shapes only: the largest official one is under 1 MB."""

_CHUNK = 1 << 20

_DESCRIPTIONS: dict[FileKind, str] = {
    "pickle": "a bare pickle, not a torch checkpoint",
    "html": "a web page, not a checkpoint: the link it came from served a page in its place",
    "lfs-pointer": "a Git LFS pointer, not the file itself (`git lfs pull` fetches it)",
    "empty": "empty (0 bytes)",
    "text": "a text file, not a checkpoint",
    "other": "neither a torch checkpoint nor safetensors: cut off at its start, damaged, or another kind of file",
}


@dataclass(frozen=True)
class Contents:
    """What a sound weights file is.

    Attributes:
        kind: its container.
        names: the Python names that its pickles mention; none for safetensors.
    """

    kind: Literal["zip", "legacy", "safetensors"]
    names: frozenset[str] = frozenset()


def sniff(head: bytes) -> FileKind:
    """Tell from a file's first bytes (512 are enough) what it is."""
    if not head:
        return "empty"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(_LEGACY_MAGIC):
        return "legacy"
    if head[0] == 0x80 and len(head) > 1 and 1 < head[1] <= 5:
        return "pickle"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _MAX_PICKLE_BYTES:
        return "safetensors"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<script", b"<?xml", b"<!--")):
        return "html"
    if start.startswith(b"version https://git-lfs"):
        return "lfs-pointer"
    # errors="ignore": the first bytes may end within a character
    if b"\0" not in head and len(head.decode("utf-8", errors="ignore").encode()) >= len(head) - 3:
        return "text"
    return "other"


def read_head(path: Path) -> bytes:
    """The first bytes of a file, for `sniff`."""
    with path.open("rb") as file:
        return file.read(512)


def describe(kind: FileKind) -> str:
    """Say in words what a file is that is no checkpoint."""
    return _DESCRIPTIONS.get(kind, kind)


def inspect(path: Path, checkpoint: Checkpoint | None = None) -> Contents:
    """Check that a file is a whole, undamaged weights file that mentions no foreign code.

    Reads the whole of a zip container: its parts carry check sums. (One saved with
    `torch.serialization.set_crc32_options(False)` has wrong ones and counts as damaged.)

    Args:
        path: the file.
        checkpoint: what it should be, if known: adds the expected size.

    Raises:
        WeightsMissingError: there is no such file, or it can't be read.
        WeightsCorruptError: it is cut, damaged, or something else.
        WeightsUnsafeError: it is a pickle that names something to run.
    """
    try:
        kind = sniff(read_head(path))
        size = path.stat().st_size
        match kind:
            case "zip" | "legacy" | "safetensors":
                if checkpoint is not None and checkpoint.size not in (None, size):
                    problem = "cut off" if size < (checkpoint.size or 0) else "not this checkpoint"
                    raise _corrupt(path, f"{problem}: it has {size} bytes, {checkpoint.name} has {checkpoint.size}")
            case _:
                with path.open("rb") as file:
                    _refuse_foreign(path, [scan_pickle(file)])
                raise _corrupt(path, describe(kind))
        match kind:
            case "zip":
                scans = [_scan_zip(path)]
            case "legacy":
                scans = _scan_legacy(path)
            case "safetensors":
                _check_safetensors(path)
                return Contents("safetensors")
    except OSError as error:
        message = f"{path} can't be read: {error.strerror or error}; check the path"
        raise WeightsMissingError(message, names=[str(path)]) from error
    _refuse_foreign(path, scans)
    if not all(scan.complete for scan in scans):
        raise _corrupt(path, "cut off or damaged: its pickle breaks off")
    if any(scan.protocol > 2 for scan in scans):
        raise WeightsCorruptError(
            f"{path} was saved with a pickle protocol that torch's safe reader doesn't know; "
            "save it again with torch.save's default protocol, or as safetensors",
            names=[str(path)],
        )
    return Contents(kind, frozenset().union(*(scan.names for scan in scans)))


def _corrupt(path: Path, problem: str) -> WeightsCorruptError:
    return WeightsCorruptError(
        f"{path} is {problem}; get it again (`patchmint models pull NAME`) or give the path of a sound file",
        names=[str(path)],
    )


def _refuse_foreign(path: Path, scans: list[PickleScan]) -> None:
    foreign = sorted({name for scan in scans for name in scan.names if is_foreign(name)})
    # Bytes that aren't a pickle can look like one for a while: only a whole one, or a torch container's, tells.
    if foreign and (len(scans) > 1 or scans[0].complete or scans[0].protocol):
        raise WeightsUnsafeError(
            f"{path} holds pickled code that would call {', '.join(foreign[:5])}; nothing of it was run. "
            "Don't load it elsewhere either; get the weights from their publisher (`patchmint models pull NAME`)",
            names=[str(path)],
        )


def _scan_zip(path: Path) -> PickleScan:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            pickles = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
                raise _corrupt(path, "a zip archive, but not one that torch.save wrote")
            for member in members:
                # torch.save stores; a compressed part could also be a bomb
                if member.compress_type != zipfile.ZIP_STORED:
                    raise _corrupt(path, "a compressed zip archive, which torch.save never writes")
                # torch itself doesn't check these sums (built without), and mapped memory can't
                with archive.open(member) as part:
                    while part.read(_CHUNK):
                        pass
            return scan_pickle(io.BytesIO(archive.read(pickles[0])))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise _corrupt(path, f"cut off or damaged ({error})") from error


def _scan_legacy(path: Path) -> list[PickleScan]:
    scans: list[PickleScan] = []
    with path.open("rb") as file:
        while len(scans) < _LEGACY_PICKLES and (not scans or scans[-1].complete):
            scans.append(scan_pickle(file))
    return scans


def _check_safetensors(path: Path) -> None:
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise _corrupt(path, f"a cut or damaged safetensors file ({error})") from error
