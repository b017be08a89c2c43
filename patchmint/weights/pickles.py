"""Reads which Python names a pickle would import, without importing or running any; and says which are harmless.

This scan gives early, named errors (and works without torch). Safety doesn't rest on it: `patchmint.weights.loading`
opens files with torch's `weights_only` unpickler, which by itself refuses every name that is neither its own nor an
inert stub.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

_INERT_PACKAGES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
"""Old Lightning checkpoints name classes of these, such as the `ModelCheckpoint` in the official VQGAN files."""

_INERT_NAMES = frozenset(
    {"typing.Any", "collections.defaultdict"}
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


@dataclass(frozen=True)
class PickleScan:
    """What one pickle holds.

    Attributes:
        names: full names of everything it would import.
        protocol: the highest protocol that it declares.
        complete: whether it was sound up to its end.
    """

    names: frozenset[str]
    protocol: int
    complete: bool


def scan_pickle(stream: BinaryIO) -> PickleScan:
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
    return PickleScan(frozenset(names), protocol, complete)


@dataclass(frozen=True)
class TensorShape:
    """The shape of a tensor whose numbers weren't read."""

    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


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
        raise ValueError(f"it is no sound pickle ({error!r})") from error


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


def is_foreign(name: str) -> bool:
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
