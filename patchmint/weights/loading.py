"""Opens weights files safely: nothing pickled in them runs, and a file that isn't right is one clear error."""

from __future__ import annotations

import pickle
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from patchmint.errors import WeightsCorruptError, WeightsMismatchError, WeightsUnsafeError
from patchmint.weights.container import inspect, is_inert, plain_names, state_dict_in, tensors_in
from patchmint.weights.folder import notes_beside
from patchmint.weights.recognise import fault_of
from patchmint.weights.registry import CHECKPOINTS, Checkpoint
from patchmint.weights.store import locate, part_of

_NAMED_IN_ERRORS = 4


@dataclass(frozen=True)
class StateFile:
    """The content of a weights file.

    Attributes:
        path: where it came from.
        tensors: by name, on the CPU, detached. Those of a zip container are mapped from the file: it must stay.
        metadata: as of a `Header`.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


class _Inert:
    """Stands in for a pickled object that nobody needs: takes any arguments and state, and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _InertDict:
    """The same for dictionaries of other types: torch's unpickler fills plain ones only, and gives state to these."""

    def __new__(cls, *_: object) -> OrderedDict[object, object]:  # type: ignore[misc]
        return OrderedDict()


_DICT_NAMES = re.compile(
    r"collections\.defaultdict|(pytorch_)?lightning\.(\w+\.)*AttributeDict|addict\.(\w+\.)*Dict|easydict\.EasyDict"
    r"|yacs\.config\.CfgNode|mm\w+\.(\w+\.)*ConfigDict"
)

_safe_globals_lock = threading.Lock()
"""torch's list of allowed names belongs to the whole process."""


def load_state(path: Path, checkpoint: Checkpoint | None = None, part: str = "") -> StateFile:
    """Read the tensors of a weights file.

    Knows safetensors, and torch containers (zip or older) that hold `{"state_dict": ...}` (Lightning), `{"model": ...}`
    (Grounding DINO) or a bare state dict (SAM). Names are those of the model (`plain_names`).

    Args:
        path: the file.
        checkpoint: what it should be, if known: its size is checked.
        part: of the file, as for `state_dict_in`.

    Raises:
        WeightsMissingError: there is no such file.
        WeightsCorruptError: cut, damaged, a web page, or no state dict.
        WeightsUnsafeError: it holds pickled code. Nothing of it has run.
        WeightsMismatchError: it has no such part.
    """
    contents = inspect(path, checkpoint)
    if contents.kind == "safetensors":
        state = _load_safetensors(path)
        return replace(state, tensors=plain_names(tensors_in(state.tensors, part)))
    loaded = _load_torch(path, frozenset(filter(is_inert, contents.names)), mapped=contents.kind == "zip")
    return StateFile(path, plain_names(_unwrap(loaded, path, part)), notes_beside(path))


def load_named(name_or_path: str) -> StateFile:
    """Read the weights that a name or a path means; a named file must have the size that the registry says.

    Raises:
        WeightsMissingError, WeightsCorruptError, WeightsUnsafeError: as `locate` and `load_state`.
    """
    return load_state(locate(name_or_path), CHECKPOINTS.get(name_or_path), part_of(name_or_path))


def load_into(module: nn.Module, state: StateFile, *, what: str, ignored: tuple[str, ...] = ()) -> None:
    """Copy tensors into a model, name by name; nothing may be missing, left over, or of another shape.

    Args:
        module: the model; keeps its own dtype and device.
        state: from `load_state`.
        what: the architecture in words, for the error, such as "SAM ViT-B".
        ignored: tensors whose names start with one of these are left out (`loss.`, say).

    Raises:
        WeightsMismatchError: the file is for another architecture; the model is unchanged.
    """
    kept = {name: tensor for name, tensor in state.tensors.items() if not name.startswith(ignored)}
    own: dict[str, Tensor] = module.state_dict()
    missing = [name for name in own if name not in kept]
    unexpected = [name for name in kept if name not in own]
    reshaped = [
        f"{name}: {tuple(kept[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in kept and kept[name].shape != own[name].shape
    ]
    findings = [("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)]
    problems = [f"{len(names)} {finding} ({_some(names)})" for finding, names in findings if names]
    if problems:
        raise WeightsMismatchError(
            fault_of(state.path, state.tensors, state.metadata)
            or f"{state.path} doesn't fit {what}: of its tensors {'; '.join(problems)}. It is for another "
            "architecture; name the model that it belongs to, or another file (`patchmint models list`)"
        )
    module.load_state_dict(kept, strict=True)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED_IN_ERRORS]) + (", ..." if len(names) > _NAMED_IN_ERRORS else "")


def _load_safetensors(path: Path) -> StateFile:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return StateFile(path, tensors, dict(file.metadata() or {}) | notes_beside(path))
    except safetensors.SafetensorError as error:
        raise WeightsCorruptError(f"{path} is a damaged safetensors file ({error}); get it again") from error


def _load_torch(path: Path, inert_names: frozenset[str], *, mapped: bool) -> Any:
    stubs: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_InertDict if _DICT_NAMES.fullmatch(name) else _Inert, name) for name in inert_names
    ]
    try:
        with _safe_globals_lock, torch.serialization.safe_globals(stubs):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged pickles make torch's unpickler raise nearly anything
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            raise WeightsUnsafeError(
                f"{path} holds pickled code that would call {refused[1]}; none of it was run. "
                "Get the weights from their publisher (`patchmint models pull NAME`)"
            ) from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsCorruptError(
            f"{path} is cut off or damaged ({reason}); get it again (`patchmint models pull NAME`)"
        ) from error


def _unwrap(loaded: object, path: Path, part: str) -> dict[str, Tensor]:
    """The state dict in what a torch file holds."""
    state = state_dict_in(loaded, part)
    if not state:
        raise WeightsCorruptError(
            f"{path} is a torch file, but holds no state dict (found: {type(loaded).__name__}); "
            "save one with `torch.save(model.state_dict(), path)`"
        )
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor) and value.device.type == "cpu"):
            raise WeightsCorruptError(
                f"{path} is a torch file, but its entry {name!r} isn't a named tensor ({type(value).__name__}), "
                "so it isn't a state dict; save one with `torch.save(model.state_dict(), path)`"
            )
    return {name: tensor.detach() for name, tensor in state.items()}
