"""The truth of a scene data set, as `write_dataset` left it on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from patchmint.demo.dataset import SPLIT, TRUTH_FILE, write_dataset
from patchmint.errors import InputError
from patchmint.geometry.rle import from_coco
from patchmint.types import Rle, Span

_Read = TypeVar("_Read", bound=BaseModel)


@dataclass(frozen=True)
class TruePhrase:
    """A phrase of a text.

    Attributes:
        span: its characters.
        mask: what is seen of the things that it names; None where it names something absent.
    """

    span: Span
    mask: Rle | None


@dataclass(frozen=True)
class TrueText:
    """A text.

    Attributes:
        content: its words.
        mask: what is seen of everything that it names; None where nothing of that is there.
        phrases: in order.
    """

    content: str
    mask: Rle | None
    phrases: tuple[TruePhrase, ...]


@dataclass(frozen=True)
class TrueScene:
    """An image.

    Attributes:
        texts: in the order of its captions.
        objects: what is seen of each thing.
    """

    texts: tuple[TrueText, ...]
    objects: tuple[Rle, ...]


@dataclass(frozen=True)
class Truth:
    """A whole data set.

    Attributes:
        seed: of its scenes.
        scenes: by the image's id, as the COCO source gives it.
    """

    seed: int
    scenes: dict[str, TrueScene]


def read_truth(folder: Path) -> Truth:
    """Read what `write_dataset` wrote.

    Raises:
        InputError: it is missing, or isn't of that form.
    """
    told = _parsed(_TruthFile, folder / TRUTH_FILE)
    objects: dict[int, list[Rle]] = {image.image_id: [] for image in told.images}
    for found in _parsed(_InstancesFile, folder / "annotations" / f"instances_{SPLIT}.json").annotations:
        objects.setdefault(found.image_id, []).append(from_coco(found.segmentation))
    return Truth(
        told.seed,
        {
            str(image.image_id): TrueScene(tuple(map(_text, image.texts)), tuple(objects[image.image_id]))
            for image in told.images
        },
    )


def obtain_scenes(folder: Path, *, seed: int, count: int, progress: Callable[[int], None]) -> Truth:
    """Write scenes, or take those that an earlier call with the same arguments wrote.

    Args:
        folder: their own; it comes into being when they are whole.
        seed: of the scenes.
        count: how many.
        progress: called with the number of scenes written so far; never where they are there.

    Raises:
        InputError: the folder holds other scenes or something else, or can't be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        if not folder.exists():
            if partial.exists():
                shutil.rmtree(partial)
            write_dataset(partial, seed=seed, count=count, progress=progress)
            partial.rename(folder)
    except OSError as error:
        raise InputError(f"can't write scenes into {folder}: {error.strerror or error}; choose another OUT") from error
    truth = read_truth(folder)
    if (truth.seed, len(truth.scenes)) != (seed, count):
        raise InputError(
            f"{folder} holds {len(truth.scenes)} scenes of seed {truth.seed}, not {count} of seed {seed}; give "
            "the same --scenes and --seed to go on there, or choose another OUT"
        )
    return truth


class _Phrase(BaseModel):
    span: Span
    objects: list[int]
    mask: dict[str, Any]


class _Text(BaseModel):
    content: str
    mask: dict[str, Any]
    phrases: list[_Phrase]


class _Image(BaseModel):
    image_id: int
    texts: list[_Text]


class _TruthFile(BaseModel):
    seed: int
    images: list[_Image]


class _Instance(BaseModel):
    image_id: int
    segmentation: dict[str, Any]


class _InstancesFile(BaseModel):
    annotations: list[_Instance]


def _parsed(model: type[_Read], path: Path) -> _Read:
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{error.error_count()} things in it are wrong"
        raise InputError(
            f"{path} can't be read as the truth of demo scenes: {why}; choose another OUT, or delete that folder to "
            "have its scenes written anew"
        ) from error


def _text(text: _Text) -> TrueText:
    phrases = tuple(
        TruePhrase(phrase.span, from_coco(phrase.mask) if phrase.objects else None) for phrase in text.phrases
    )
    present = any(phrase.mask for phrase in phrases)
    return TrueText(text.content, from_coco(text.mask) if present else None, phrases)
