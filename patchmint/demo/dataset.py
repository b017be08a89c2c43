"""Scenes as a data set in COCO's layout, with the truth beside it.

```
FOLDER/annotations/captions_SPLIT.json     a caption a text
FOLDER/annotations/instances_SPLIT.json    an annotation an object: the pixels that are seen of it, as RLE
FOLDER/truth.json                          what each text, and each phrase in it, talks about
FOLDER/SPLIT/000000000000.jpg
```
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from patchmint.demo.scenes import Scene, make_scene
from patchmint.demo.shapes import SHAPES
from patchmint.demo.texts import SceneText
from patchmint.errors import InputError
from patchmint.geometry.rle import area, encode_masks, from_coco, to_coco
from patchmint.types import Rle, Span

SPLIT = "train2017"
"""COCO's own name, so that the ordinary source finds everything without a setting."""

TRUTH_FILE = "truth.json"

_Read = TypeVar("_Read", bound=BaseModel)


def write_dataset(
    folder: Path,
    *,
    seed: int,
    count: int,
    texts: int = 2,
    split: str = SPLIT,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Make scenes and write them; the same arguments give the same bytes.

    Args:
        folder: where to; made if need be.
        seed: of the scenes, see `make_scene`.
        count: how many scenes.
        texts: how many texts each.
        split: the folder of the images, and the end of the annotation files' names.
        progress: called with the number of scenes done so far.

    Raises:
        InputError: the folder holds a data set already.
    """
    if (folder / TRUTH_FILE).exists():
        raise InputError(f"{folder} holds scenes already ({TRUTH_FILE}); choose another folder, or delete this one")
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    for number in range(count):
        scene = make_scene(seed, number, texts=texts)
        image = {"id": number, "file_name": f"{number:012d}.jpg", "height": scene.size[0], "width": scene.size[1]}
        (folder / split / f"{number:012d}.jpg").write_bytes(scene.jpeg)
        images.append(image)
        first = len(instances)
        instances += _instances(scene, number, first)
        judged = [_judged(scene, text, len(captions) + index, first) for index, text in enumerate(scene.texts)]
        truth.append({"image_id": number, "texts": judged})
        captions += [{"id": text["caption_id"], "image_id": number, "caption": text["content"]} for text in judged]
        if progress:
            progress(number + 1)
    categories = [{"id": index + 1, "name": shape, "supercategory": "shape"} for index, shape in enumerate(SHAPES)]
    info = {"description": f"patchmint demo scenes, seed {seed}", "version": "1"}
    _write(folder / "annotations" / f"captions_{split}.json", {"info": info, "images": images, "annotations": captions})
    _write(
        folder / "annotations" / f"instances_{split}.json",
        {"info": info, "images": images, "annotations": instances, "categories": categories},
    )
    # Last: its presence says that the data set is whole.
    _write(folder / TRUTH_FILE, {"info": info, "seed": seed, "images": truth})


def _instances(scene: Scene, image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    for index, (thing, (left, top, right, bottom)) in enumerate(
        zip(scene.objects, scene.boxes().tolist(), strict=True)
    ):
        mask = encode_masks((scene.ids == index)[None])[0]
        yield {
            "id": first_id + index,
            "image_id": image_id,
            "category_id": SHAPES.index(thing.shape) + 1,
            "iscrowd": 0,
            "bbox": [left, top, right - left, bottom - top],
            "area": area(mask),
            "segmentation": to_coco(mask),
            "attributes": {"colour": thing.colour, "fill": thing.fill, "size": thing.size},
        }


def _judged(scene: Scene, text: SceneText, caption_id: int, first_id: int) -> dict[str, Any]:
    """A text with its truth; objects are named by the numbers of their annotations."""
    phrases = [
        {
            "text": text.content[phrase.span[0] : phrase.span[1]],
            "span": list(phrase.span),
            "objects": [first_id + index for index in phrase.objects],
            "mask": _mask(scene, phrase.objects),
        }
        for phrase in text.phrases
    ]
    return {
        "caption_id": caption_id,
        "form": text.form,
        "content": text.content,
        "mask": _mask(scene, text.objects),
        "phrases": phrases,
    }


def _mask(scene: Scene, objects: tuple[int, ...]) -> dict[str, Any]:
    return to_coco(encode_masks(scene.mask(objects)[None])[0])


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


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
    told = parsed(_TruthFile, folder / TRUTH_FILE)
    objects: dict[int, list[Rle]] = {image.image_id: [] for image in told.images}
    for found in parsed(_InstancesFile, folder / "annotations" / f"instances_{SPLIT}.json").annotations:
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
    make_once(folder, lambda partial: write_dataset(partial, seed=seed, count=count, progress=progress))
    truth = read_truth(folder)
    check_same(folder, "scenes", (truth.seed, len(truth.scenes)), (seed, count))
    return truth


def make_once(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder that comes into being when it is whole; one that is there stays.

    Raises:
        InputError: it can't be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        if not folder.exists():
            if partial.exists():
                shutil.rmtree(partial)
            write(partial)
            partial.rename(folder)
    except OSError as error:
        raise InputError(f"can't write scenes into {folder}: {error.strerror or error}; choose another OUT") from error


def check_same(folder: Path, what: str, there: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Refuse a folder of others.

    Args:
        folder: which.
        what: it holds: the option that says how many.
        there: seed and count of what it holds.
        wanted: seed and count of what is asked for.

    Raises:
        InputError: they aren't the same.
    """
    if there != wanted:
        raise InputError(
            f"{folder} holds {there[1]} {what} of seed {there[0]}, not {wanted[1]} of seed {wanted[0]}; give the same "
            f"--{what} and --seed to resume there, or choose another OUT"
        )


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


def parsed(model: type[_Read], path: Path) -> _Read:
    """A JSON file of truth.

    Raises:
        InputError: it can't be read, or isn't of that form.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{error.error_count()} things in it are wrong"
        raise InputError(
            f"{path} can't be read as the truth of demo scenes: {why}; choose another OUT, or delete that folder to "
            "have its scenes written again"
        ) from error


def _text(text: _Text) -> TrueText:
    phrases = tuple(
        TruePhrase(phrase.span, from_coco(phrase.mask) if phrase.objects else None) for phrase in text.phrases
    )
    present = any(phrase.mask for phrase in phrases)
    return TrueText(text.content, from_coco(text.mask) if present else None, phrases)
