"""Scenes as a data set in COCO's layout, with the truth beside it.

```
FOLDER/annotations/captions_SPLIT.json     a caption a text
FOLDER/annotations/instances_SPLIT.json    an annotation an object: the pixels that are seen of it, as RLE
FOLDER/truth.json                          what each text talks about, as `patchmint judge` reads it
FOLDER/SPLIT/000000000000.jpg
```
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchmint.demo.scenes import Scene, make_scene
from patchmint.demo.shapes import SHAPES
from patchmint.errors import InputError
from patchmint.geometry.rle import area, encode_masks, to_coco
from patchmint.judging import truth as judging_truth
from patchmint.judging.truth import TRUTH_FILE, TrueImage, TruthDocument
from patchmint.types import Span

SPLIT = "train2017"
"""COCO's own name, so that the ordinary source finds everything without a setting."""


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
        judged = [
            told_text(
                text.content,
                ((each.span, (first + index for index in each.objects)) for each in text.phrases),
                caption_id=len(captions) + place,
                form=text.form,
            )
            for place, text in enumerate(scene.texts)
        ]
        size = {"width": scene.size[1], "height": scene.size[0]}
        truth.append({"image_id": number, **size, "objects": told_objects(scene, first), "texts": judged})
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


def told_text(content: str, phrases: Iterable[tuple[Span, Iterable[int]]], **more: object) -> dict[str, Any]:
    """A text with its truth: the spans of its phrases, and the objects that each names, as truth.json has it."""
    told = [{"text": content[slice(*span)], "span": list(span), "objects": list(objects)} for span, objects in phrases]
    return {**more, "content": content, "phrases": told}


def told_objects(scene: Scene, first_id: int = 0) -> list[dict[str, Any]]:
    """What is seen of each object, as truth.json has it."""
    kept = ("id", "bbox", "segmentation")
    return [{name: each[name] for name in kept} for each in _instances(scene, 0, first_id)]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Truth:
    """A whole data set.

    Attributes:
        seed: of its scenes.
        scenes: by the image's id, as the COCO source gives it.
    """

    seed: int
    scenes: dict[str, TrueImage]


def read_truth(folder: Path) -> Truth:
    """Read what `write_dataset` wrote.

    Raises:
        InputError: it is missing, or isn't of that form.
    """
    told = read_truth_file(folder / TRUTH_FILE)
    return Truth(told.seed, {entry.id: entry.image for entry in told.entries()})


def read_truth_file(path: Path) -> TruthDocument:
    """A truth beside scenes; raises as `read_truth`."""
    try:
        return judging_truth.read_truth(path)
    except InputError as error:
        raise InputError(f"{error}; choose another OUT, or delete {path.parent} to have it written again") from error


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
