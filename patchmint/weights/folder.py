"""Hugging Face's layout: a folder with a file of weights, and beside it JSON that says what they are. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from patchmint.errors import WeightsMismatchError, WeightsMissingError

Arch = TypeVar("Arch")
Tensor = TypeVar("Tensor")

CONFIG = "config.json"
"""What the model is."""

INPUT = "preprocessor_config.json"
"""How its images are prepared; transformers 5 writes `processor_config.json` instead."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
VOCABULARY = ("vocab.txt", "tokenizer.json", "vocab.json")

_PROCESSOR = "processor_config.json"
NOTES = (CONFIG, INPUT, _PROCESSOR)
"""What is read besides the weights."""

_ADAPTER = "adapter_config.json"
INSTEAD = (*(f"{name}.index.json" for name in WEIGHTS), _ADAPTER)
"""What may be there in the place of one file of weights: a list of several, or a LoRA adapter's settings."""

JOIN = 'save it as one file (`model.save_pretrained(FOLDER, max_shard_size="1TB")`)'
"""What to do with a model in several files."""

MERGE = "merge it into its model (`merge_and_unload()`, then `save_pretrained(FOLDER)`) and give that folder"
"""What to do with a LoRA adapter."""

_NAMED_IN_ERRORS = 4
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_MOST_BYTES = 1 << 20


def file_in(folder: Path, wanted: Sequence[str]) -> Path:
    """The first of some files that a folder has.

    Raises:
        WeightsMissingError: it has none of them.
    """
    for name in wanted:
        if (folder / name).is_file():
            return folder / name
    lacks = f"it has no {' or '.join(wanted)}"
    if wanted == WEIGHTS:
        why = instead(folder) or f"{lacks}; give the file itself, or another folder"
    else:
        named = ", or name it as models.vocabulary" if wanted == VOCABULARY else ""
        why = f"{lacks}; put the one there that was published with the weights{named}"
    raise WeightsMissingError(f"{folder} isn't a model's folder in Hugging Face's layout: {why}", names=[str(folder)])


def instead(folder: Path) -> str:
    """What a folder has in the place of one file of weights, and what to do; "" where that is nothing known."""
    if in_parts := _some(folder.glob("*.index.json")):
        return f"its weights lie in several files ({in_parts}), which patchmint doesn't join; {JOIN}"
    if (folder / _ADAPTER).is_file():
        return f"it has {_ADAPTER}, so it is a LoRA adapter; {MERGE}"
    if files := _some(path for path in folder.glob("*") if path.suffix in _ENDINGS):
        return f"it has no {' or '.join(WEIGHTS)}, but {files}; give the path of one file"
    if folders := _some(path.parent for name in WEIGHTS for path in folder.glob(f"*/{name}")):
        return f"its weights lie a level deeper; give one of its folders: {folders}"
    if files := _some(path for path in folder.glob("*") if path.suffix in (".gguf", ".onnx")):
        return f"it has only {files}, which patchmint doesn't read; give the model's safetensors"
    return ""


def _some(paths: Iterable[Path]) -> str:
    names = sorted({path.name for path in paths})
    return ", ".join(names[:_NAMED_IN_ERRORS]) + (", ..." if len(names) > _NAMED_IN_ERRORS else "")


def notes_beside(weights: Path) -> dict[str, str]:
    """The texts of the JSON files beside a file of weights, by their names; empty where there are none."""
    notes = {}
    for name in NOTES:
        try:
            with weights.with_name(name).open("rb") as file:
                notes[name] = file.read(_MOST_BYTES).decode()
        except (OSError, UnicodeDecodeError):
            continue
    return notes


def described(metadata: Mapping[str, str], name: str = CONFIG) -> Mapping[str, Any]:
    """What one of the JSON files beside the weights says; empty where there is none, or no JSON object in it.

    Args:
        metadata: of a `StateFile` or a `Header`.
        name: `CONFIG` or `INPUT`.
    """
    try:
        content = json.loads(metadata.get(name, "{}"))
        if name == INPUT and name not in metadata:
            content = json.loads(metadata.get(_PROCESSOR, "{}")).get("image_processor", {})
    except (ValueError, RecursionError, AttributeError):
        return {}
    return content if isinstance(content, dict) else {}


def buildable(arch: Arch, what: str, check: Callable[[Arch], bool]) -> Arch:
    """An architecture that a config.json describes, if its values are of the right kind and size.

    Args:
        arch: from outside.
        what: the model's name.
        check: whether a model can be built of it; may fail in any way that wrong values bring about.

    Raises:
        WeightsMismatchError: they aren't.
    """
    try:
        if check(arch):
            return arch
    except (TypeError, ValueError, AttributeError, KeyError, ZeroDivisionError, RecursionError):
        pass
    raise WeightsMismatchError(f"the config.json beside the file describes no {what} that patchmint can build")


def unwrapped(tensors: Mapping[str, Tensor], known: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a model that is a part of another (`sam.`, `model.`), by their own names.

    Args:
        tensors: by name.
        known: names, of which the model itself has one. Where several parts have it, averages of weights (`ema` in
            their names) are passed over, and the rest is not.
    """
    prefixes = {
        prefix
        for name in tensors
        for own in known
        if name.endswith(own) and ((prefix := name.removesuffix(own)) == "" or prefix.endswith("."))
    }
    if not prefixes:
        return dict(tensors)
    taken = min(prefixes, key=lambda prefix: ("ema" in prefix, len(prefix), prefix))
    others = tuple(prefix for prefix in prefixes - {taken} if prefix.startswith(taken))
    inside = (name for name in tensors if name.startswith(taken) and not name.startswith(others))
    return {name.removeprefix(taken): tensors[name] for name in inside}


def renamed(tensors: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Tensors by other names: each rule, a pattern and what takes its place, is applied in turn."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in compiled:
            name = pattern.sub(replacement, name)
        found[name] = tensor
    return found
