"""Tells what a file is, which tensors it lists and whether it is sound, without torch or running anything in it.

Of a pickle it reads which Python names it would import. That gives early, named errors; safety doesn't rest on it:
`patchmint.weights.loading` opens files with torch's `weights_only` unpickler, which by itself refuses every name that
is neither its own nor an inert stub.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import safetensors

from patchmint.errors import (
    WeightsCorruptError,
    WeightsMismatchError,
    WeightsMissingError,
    WeightsUnsafeError,
)
from patchmint.weights.folder import notes_beside
from patchmint.weights.registry import Checkpoint

Tensor = TypeVar("Tensor")
FileKind = Literal["zip", "legacy", "safetensors", "pickle", "html", "lfs-pointer", "empty", "text", "gguf", "other"]

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number that `torch.save` wrote first before torch 1.6 (`torch.serialization.MAGIC_NUMBER`)."""

_LEGACY_PICKLES = 5
_LEGACY_OBJECT = 3
"""Magic number, version, system facts, the object, storage keys (`torch.serialization._legacy_save`), then bytes."""

_MAX_PICKLE_BYTES = 256 << 20
"""A state dict's pickle lists names and shapes only: the largest official one is under 1 MB."""

_CHUNK = 1 << 20
_NAMED_IN_ERRORS = 8

_INERT_PACKAGES = (
    "pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.",
    "mmengine.", "mmcv.", "mmdet.", "addict.", "yacs.", "easydict.", "ml_collections.",
    "util.slconfig.", "groundingdino.util.slconfig.",
    "numpy.dtypes.", "pathlib.", "datetime.",
)  # fmt: skip
"""Training checkpoints name classes of these: Lightning's `ModelCheckpoint` in the official VQGAN files, mmengine's
histories, settings of any kind. Stubs stand in for them, so that nothing of theirs is imported or run."""

_INERT_NAMES = frozenset(
    {"typing.Any", "collections.defaultdict", "argparse.Namespace"}
    # numbers and arrays of numpy's, under both of its names
    | {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")}
    | {"numpy.dtype", "numpy.ndarray", "numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer"}
    # the element types that omegaconf's containers note
    | {f"builtins.{name}" for name in ("dict", "list", "tuple", "str", "int", "float", "bool", "object")}
)

_TORCH_NAMES = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",
        "_codecs.encode",
        "builtins.set",
        "builtins.bytearray",
        "builtins.complex",
    }
)
"""What torch's own unpickler allows outside of torch (docs of `torch.load`, "weights_only")."""

_OLD_BUILTINS = {"long": "int", "unicode": "str"}

_DESCRIPTIONS: dict[FileKind, str] = {
    "pickle": "a bare pickle, not a torch checkpoint",
    "html": "a web page, not a checkpoint: the link it came from served a page in its place",
    "lfs-pointer": "a Git LFS pointer, not the file itself (`git lfs pull` fetches it)",
    "empty": "empty (0 bytes)",
    "text": "a text file, not a checkpoint",
    "gguf": "a GGUF file, made for llama.cpp, not a torch checkpoint or safetensors",
    "other": "neither a torch checkpoint nor safetensors: cut off at its start, damaged, or of another kind (ONNX?)",
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


@dataclass(frozen=True)
class TensorShape:
    """The shape of a tensor whose numbers weren't read."""

    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclass(frozen=True)
class Header:
    """What a weights file says of itself before its numbers.

    Attributes:
        tensors: shapes by name, named as `patchmint.weights.loading.StateFile` names them.
        metadata: a safetensors header's entries, and the JSON files beside the file (`patchmint.weights.folder`).
    """

    tensors: Mapping[str, TensorShape]
    metadata: Mapping[str, str]


def sniff(head: bytes) -> FileKind:
    """Tell from a file's first bytes (512 are enough) what it is."""
    if not head:
        return "empty"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(_LEGACY_MAGIC):
        return "legacy"
    if head.startswith(b"GGUF"):
        return "gguf"
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
        kind = _container(path)
        size = path.stat().st_size
        if checkpoint is not None and checkpoint.size not in (None, size):
            problem = "cut off" if size < (checkpoint.size or 0) else "not this checkpoint"
            raise _corrupt(path, f"{problem}: it has {size} bytes, {checkpoint.name} has {checkpoint.size}")
        match kind:
            case "zip":
                scans = [_scan_pickle(io.BytesIO(_pickle_in_zip(path, check_sums=True)))]
            case "legacy":
                scans = _scan_legacy(path)
            case "safetensors":
                _read_safetensors(path)
                return Contents("safetensors")
    except OSError as error:
        raise _unreadable(path, error) from error
    _refuse(path, scans)
    return Contents(kind, frozenset().union(*(scan.names for scan in scans)))


def read_header(path: Path, part: str = "") -> Header:
    """Read which tensors a weights file lists, and leave their numbers alone.

    Args:
        path: the file.
        part: of the file, as for `state_dict_in`.

    Raises:
        WeightsMissingError, WeightsCorruptError, WeightsUnsafeError: as `inspect`; damage to the numbers isn't seen.
    """
    try:
        match _container(path):
            case "safetensors":
                header = _read_safetensors(path)
                return replace(header, tensors=plain_names(tensors_in(header.tensors, part)))
            case "zip":
                pickled = io.BytesIO(_pickle_in_zip(path, check_sums=False))
                _refuse(path, [_scan_pickle(pickled)])
                pickled.seek(0)
                loaded = read_shapes(pickled)
            case "legacy":
                _refuse(path, _scan_legacy(path))
                with path.open("rb") as file:
                    for _ in range(_LEGACY_OBJECT):
                        _scan_pickle(file)
                    loaded = read_shapes(file)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise _corrupt(path, f"damaged: {error}") from error
    state = state_dict_in(loaded, part)
    shapes = {name: shape for name, shape in state.items() if isinstance(shape, TensorShape)}
    return Header(plain_names(shapes), notes_beside(path))


def state_dict_in(loaded: object, part: str = "") -> dict[str, Any]:
    """The state dict in what a torch file holds; empty where there is none.

    That is `{"state_dict": ...}` (Lightning), `{"model": ...}` (Grounding DINO), or the whole (SAM).

    Args:
        loaded: what the file holds.
        part: the entry that is meant instead, such as `ema`, or what names of tensors begin with.
    """
    if not isinstance(loaded, dict):
        return {}
    if part and isinstance(chosen := loaded.get(part), dict):
        return next((chosen[key] for key in ("module", *_STATES) if isinstance(chosen.get(key), dict)), chosen)
    state = next((loaded[key] for key in _STATES if isinstance(loaded.get(key), dict)), loaded)
    return tensors_in(state, part) if part else state


_STATES = ("state_dict", "model")


def tensors_in(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Those tensors whose names begin with a part's name, without it.

    Raises:
        WeightsMismatchError: there are none.
    """
    prefix = f"{part}." if part else ""
    found = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
    if found:
        return found
    parts = ", ".join(sorted({name.partition(".")[0] for name in tensors})[:_NAMED_IN_ERRORS])
    raise WeightsMismatchError(f"the file has no part {part!r}, as `#{part}` behind its path asks for; it has {parts}")


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names that they have in the model.

    Off come `_orig_mod.` (`torch.compile`'s) anywhere, and a `module.` that all names start with (`DataParallel`'s).
    """
    wrapped = all(name.startswith("module.") for name in tensors)
    return {
        (name.removeprefix("module.") if wrapped else name).replace("_orig_mod.", ""): tensor
        for name, tensor in tensors.items()
    }


def _container(path: Path) -> Literal["zip", "legacy", "safetensors"]:
    kind = sniff(read_head(path))
    if kind not in ("zip", "legacy", "safetensors"):
        with path.open("rb") as file:
            _refuse_foreign(path, [_scan_pickle(file)])
        raise _corrupt(path, describe(kind))
    return kind


def _unreadable(path: Path, error: OSError) -> WeightsMissingError:
    message = f"{path} can't be read: {error.strerror or error}; check the path"
    return WeightsMissingError(message, names=[str(path)])


def _refuse(path: Path, scans: list[_PickleScan]) -> None:
    _refuse_foreign(path, scans)
    if not all(scan.complete for scan in scans):
        raise _corrupt(path, "cut off or damaged: its pickle breaks off")
    if any(scan.protocol > 2 for scan in scans):
        raise WeightsCorruptError(
            f"{path} was saved with a pickle protocol that torch's safe reader doesn't know; "
            "save it again with torch.save's default protocol, or as safetensors"
        )


def _corrupt(path: Path, problem: str) -> WeightsCorruptError:
    return WeightsCorruptError(
        f"{path} is {problem}; get it again (`patchmint models pull NAME`) or give the path of a sound file"
    )


def _refuse_foreign(path: Path, scans: list[_PickleScan]) -> None:
    foreign = sorted({name for scan in scans for name in scan.names if _is_foreign(name)})
    # Bytes that aren't a pickle can look like one for a while: only a whole one, or a torch container's, tells.
    if foreign and (len(scans) > 1 or scans[0].complete or scans[0].protocol):
        raise WeightsUnsafeError(
            f"{path} holds pickled code that would call {', '.join(foreign[:5])}; none of it was run. "
            "Don't load it elsewhere either; get the weights from their publisher (`patchmint models pull NAME`)"
        )


def _pickle_in_zip(path: Path, *, check_sums: bool) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            pickles = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
                raise _corrupt(path, "a zip archive, but not one that torch.save wrote")
            if any(member.filename.endswith("/constants.pkl") for member in members):
                raise _corrupt(path, "a TorchScript program, not a checkpoint")
            for member in members:
                # torch.save stores; a compressed part could also be a bomb
                if member.compress_type != zipfile.ZIP_STORED:
                    raise _corrupt(path, "a compressed zip archive, which torch.save never writes")
                # torch itself doesn't check these sums (built without), and mapped memory can't
                if check_sums:
                    with archive.open(member) as part:
                        while part.read(_CHUNK):
                            pass
            return archive.read(pickles[0])
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise _corrupt(path, f"cut off or damaged ({error})") from error


def _scan_legacy(path: Path) -> list[_PickleScan]:
    scans: list[_PickleScan] = []
    with path.open("rb") as file:
        while len(scans) < _LEGACY_PICKLES and (not scans or scans[-1].complete):
            scans.append(_scan_pickle(file))
    return scans


def _read_safetensors(path: Path) -> Header:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            shapes = {name: TensorShape(tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
            return Header(shapes, dict(file.metadata() or {}) | notes_beside(path))
    except safetensors.SafetensorError as error:
        raise _corrupt(path, f"a cut or damaged safetensors file ({error})") from error


@dataclass(frozen=True)
class _PickleScan:
    """What one pickle holds.

    Attributes:
        names: full names of everything it would import.
        protocol: the highest protocol that it declares.
        complete: whether it was sound up to its end.
    """

    names: frozenset[str]
    protocol: int
    complete: bool


def _scan_pickle(stream: BinaryIO) -> _PickleScan:
    """Read one pickle from `stream`, which is left right behind it; nothing in it runs."""
    names: set[str] = set()
    pushed: list[str | None] = []  # what went on the unpickler's stack, None for all but strings
    memo: dict[int, str | None] = {}
    protocol = 0
    complete = False
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            match opcode.name:
                case "GLOBAL" | "INST":
                    module, _, name = str(argument).partition(" ")
                    names.add(_full_name(module, name))
                case "STACK_GLOBAL":
                    names.add(_full_name(*pushed[-2:]))
                case "EXT1" | "EXT2" | "EXT4":
                    names.add(f"copyreg extension {argument}")
                case "PROTO":
                    protocol = max(protocol, int(argument or 0))
                case "STOP":
                    complete = True
                case "MEMOIZE" | "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[len(memo) if argument is None else int(argument)] = pushed[-1] if pushed else None
                    continue
            if "GET" in opcode.name:
                pushed.append(memo.get(int(argument or 0)))
            elif opcode.stack_after:
                pushed.append(argument if isinstance(argument, str) else None)
    except (ValueError, OverflowError, MemoryError):
        complete = False
    return _PickleScan(frozenset(names), protocol, complete)


def read_shapes(stream: BinaryIO) -> object:
    """What one pickle of a torch checkpoint holds, as far as dictionaries and tensors go; nothing in it runs.

    Returns:
        Dictionaries with string keys as such, a `TensorShape` for each tensor, something meaningless for the rest.

    Raises:
        ValueError: it breaks off, or is no pickle.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if "PUT" in opcode.name or opcode.name == "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
                continue
            if opcode.name == "STOP":
                break
            made: Any = argument
            taken = _taken(stack, opcode.stack_before)
            match opcode.name, taken:
                case "MARK", _:
                    made = _MARK
                case "GET" | "BINGET" | "LONG_BINGET", _:
                    made = memo[argument]
                case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "EMPTY_TUPLE", _:
                    made = tuple(taken)
                case ("EMPTY_DICT", _) | ("REDUCE", ["collections OrderedDict", _]):
                    made = {}
                case "REDUCE", ["torch._utils _rebuild_tensor_v2" | "torch._utils _rebuild_tensor", (_, _, sizes, *_)]:
                    made = TensorShape(tuple(map(int, sizes)))
                case "REDUCE", ["torch._utils _rebuild_parameter", (made, *_)]:
                    pass
                case "SETITEM" | "SETITEMS", [dict() as made, *items]:
                    pairs = zip(items[::2], items[1::2], strict=True)
                    made |= {name: value for name, value in pairs if isinstance(name, str)}
                case "BUILD", [made, _]:
                    pass
            stack += [made] * len(opcode.stack_after)
        return stack.pop()
    except (TypeError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(f"it isn't a valid pickle ({error!r})") from error


_MARK = object()


def _taken(stack: list[Any], before: list[pickletools.StackObject]) -> list[Any]:
    """Take off the stack what an opcode takes, in the order in which it was put there."""
    above_mark: list[Any] = []
    if pickletools.markobject in before:
        before = before[: before.index(pickletools.markobject)]
        while (item := stack.pop()) is not _MARK:
            above_mark.append(item)
    start = len(stack) - len(before)
    taken = stack[start:] + above_mark[::-1]
    del stack[start:]
    return taken


def is_inert(name: str) -> bool:
    """Whether an inert stub may stand in for this name: known baggage of training checkpoints."""
    return name in _INERT_NAMES or name.startswith(_INERT_PACKAGES)


def _is_foreign(name: str) -> bool:
    """Whether no weights file has any business with this name (`os.system`, `builtins.eval`, ...).

    Names inside torch are left to torch, which has its own short list and refuses the others on load.
    """
    return not (is_inert(name) or name in _TORCH_NAMES or name.startswith("torch."))


def _full_name(module: str | None = None, name: str | None = None) -> str:
    """The name as Python 3 has it (protocol 2 writes Python 2's)."""
    if module is None or name is None:
        return "a name that can't be told"
    if module == "__builtin__":
        return f"builtins.{_OLD_BUILTINS.get(name, name)}"
    return f"{module}.{name}"
