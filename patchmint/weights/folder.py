"""Hugging Face's layout: a folder with a file of weights, and beside it JSON that says what they are. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
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

_MOST_BYTES = 1 << 20


def file_in(folder: Path, wanted: Sequence[str]) -> Path:
    """The first of some files that a folder has.

    Raises:
        WeightsMissingError: it has none of them.
    """
    for name in wanted:
        if (folder / name).is_file():
            return folder / name
    in_parts = [path.name for path in sorted(folder.glob("*.index.json"))]
    if in_parts and wanted == WEIGHTS:
        why = f"its weights lie in several files ({in_parts[0]}), which patchmint can't read; save them as one"
    else:
        other = "models.vocabulary: bert-base-uncased-vocab, say" if wanted == VOCABULARY else "or another folder"
        why = f"it has no {' or '.join(wanted)}; give the file itself, {other}"
    raise WeightsMissingError(f"{folder} isn't a model's folder in Hugging Face's layout: {why}", names=[str(folder)])


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
