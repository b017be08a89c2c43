"""The files of COCO, YOLO, Grounding DINO's trainers (ODVG), Label Studio, CVAT and FiftyOne, written image by image.

A category is a phrase's words, in lower case, with single spaces; they are numbered in the order in which they come.
"""

from __future__ import annotations

import json
import shutil
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TextIO
from xml.sax.saxutils import escape, quoteattr  # they write, and read nothing

import numpy as np
import numpy.typing as npt

from patchmint.geometry.rle import area, box_of, decode_mask, to_coco
from patchmint.shards.codec import encode_array
from patchmint.shards.schema import PhraseDocument
from patchmint.types import UNKNOWN_SCORE, Box, Rle

IMAGES = "images"
WRONG = "wrong"
"""What a whole sample is marked with: a tag, a choice or a field."""


@dataclass(frozen=True)
class ExportedImage:
    """An image, and what was found in it.

    Attributes:
        file: its name in `images/`.
        key: its sample's.
        width, height: of the file in pixels.
        texts: that label it, by their numbers in the sample.
        phrases: what was found; `text_index` is the number of its text in the sample.
        masks: of the phrases, each of the image's size; None where the data set stores none.
        number: of the image in its document.
    """

    file: str
    key: str
    width: int
    height: int
    texts: Mapping[int, str]
    phrases: tuple[PhraseDocument, ...]
    masks: tuple[Rle, ...] | None
    number: int = 0

    @property
    def found(self) -> Iterator[tuple[PhraseDocument, Rle | None]]:
        """The phrases, each with its mask where there are masks."""
        return zip(self.phrases, self.masks or (None,) * len(self.phrases), strict=True)


class Format:
    """Writes one kind of files. As a context manager it completes and closes them, unless an exception passes.

    Args:
        folder: where to; there, `images/` has the images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = ExitStack()
        self._categories: dict[str, int] = {}

    def add(self, image: ExportedImage) -> None:
        """Write what was found in one image."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what is known after the last image."""

    def category(self, phrase: PhraseDocument) -> int:
        """The number of a phrase's category, from 0."""
        return self._categories.setdefault(_category(phrase), len(self._categories))

    def open(self, name: str, mode: str = "w") -> TextIO:
        """A file in the folder, closed at the end."""
        return self._files.enter_context((self.folder / name).open(mode, encoding="utf-8", newline="\n"))  # type: ignore[return-value]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._files:
            if kind is None:
                self.finish()


class Coco(Format):
    """`annotations.json`: COCO's instances, masks as RLE; `score`, `origin` and the words' place are fields more."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file, self._images = self.open("annotations.json"), self.open("images.part", "w+")
        self._numbers = [0, 0]
        self._file.write('{"info":{"description":"exported by patchmint"},"licenses":[],"annotations":[')

    def add(self, image: ExportedImage) -> None:
        """Write an image's annotations; its own entry waits in a file beside."""
        size = {"width": image.width, "height": image.height}
        entry = {"id": self._numbers[0] + 1, "file_name": image.file, **size, "key": image.key}
        self._write(self._images, 0, entry | {"texts": [{"index": n, "text": text} for n, text in image.texts.items()]})
        for phrase, mask in image.found:
            left, top, right, bottom = phrase.box
            width, height = round(right - left, 2), round(bottom - top, 2)
            annotation = {
                "id": self._numbers[1] + 1,
                "image_id": entry["id"],
                "category_id": self.category(phrase) + 1,
                "bbox": [left, top, width, height],
                "area": area(mask) if mask is not None else round(width * height, 2),
                "segmentation": to_coco(mask) if mask is not None else [],
                "iscrowd": 0,
                "score": phrase.score,
                "origin": phrase.origin,
                "text_index": phrase.text_index,
                "span": [phrase.start, phrase.end],
            }
            self._write(self._file, 1, annotation)

    def finish(self) -> None:
        """Write images and categories behind the annotations."""
        self._file.write('],"images":[')
        self._images.seek(0)
        shutil.copyfileobj(self._images, self._file)
        self._images.close()
        (self.folder / "images.part").unlink()
        categories = [{"id": number + 1, "name": name} for name, number in self._categories.items()]
        self._file.write(f'],"categories":{_json(categories)}}}\n')

    def _write(self, file: TextIO, kind: int, entry: dict[str, Any]) -> None:
        file.write(("," if self._numbers[kind] else "") + "\n" + _json(entry))
        self._numbers[kind] += 1


class Yolo(Format):
    """`labels/NAME.txt`: Ultralytics' boxes, a line each, and `data.yaml`. Masks have no place in it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "labels").mkdir()

    def add(self, image: ExportedImage) -> None:
        """Write an image's boxes; those that several of its texts lead to once."""
        lines: dict[str, None] = {}
        for phrase in image.phrases:
            left, top, right, bottom = phrase.box
            x, y = (left + right) / 2 / image.width, (top + bottom) / 2 / image.height
            width, height = (right - left) / image.width, (bottom - top) / image.height
            lines[f"{self.category(phrase)} {x:.6f} {y:.6f} {width:.6f} {height:.6f}\n"] = None
        (self.folder / "labels" / f"{Path(image.file).stem}.txt").write_text("".join(lines), encoding="utf-8")

    def finish(self) -> None:
        """Write the categories' names; JSON is YAML."""
        names = {number: name for name, number in self._categories.items()}
        lines = [f"path: .\ntrain: {IMAGES}\nval: {IMAGES}\nnames:"]
        lines += [f"  {number}: {json.dumps(name)}" for number, name in names.items()]
        self.open("data.yaml").write("\n".join(lines) + ("\n" if names else " {}\n"))


class Odvg(Format):
    """`annotations.jsonl`: a line for each image and text, with boxes and the words that they answer to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = self.open("annotations.jsonl")

    def add(self, image: ExportedImage) -> None:
        """Write a line for each text."""
        head = {"filename": image.file, "height": image.height, "width": image.width}
        for number, caption in image.texts.items():
            regions = [
                {"bbox": phrase.box, "phrase": phrase.text, "tokens_positive": [[phrase.start, phrase.end]]}
                for phrase in image.phrases
                if phrase.text_index == number
            ]
            self._file.write(_json(head | {"grounding": {"caption": caption, "regions": regions}}) + "\n")


class LabelStudio(Format):
    """`tasks.json`: a task for each image, what was found as its prediction: brush masks, or rectangles without masks.

    `config.xml` is the labelling interface that shows them. Image addresses are those of Label Studio's local files.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file, self._tasks = self.open("tasks.json"), 0
        self._masks = False
        self._file.write("[")

    def add(self, image: ExportedImage) -> None:
        """Write a task."""
        self._masks |= image.masks is not None
        for phrase in image.phrases:
            self.category(phrase)
        scores = [phrase.score for phrase in image.phrases if phrase.score != UNKNOWN_SCORE]
        prediction: dict[str, Any] = {"model_version": "patchmint", "result": list(_results(image))}
        if scores:
            prediction["score"] = min(scores)
        data = {
            "image": f"/data/local-files/?d={IMAGES}/{image.file}",
            "key": image.key,
            "text": "\n".join(image.texts.values()),
        }
        task = {"id": self._tasks + 1, "data": data, "predictions": [prediction]}
        self._file.write(("," if self._tasks else "") + "\n" + _json(task))
        self._tasks += 1

    def finish(self) -> None:
        """Write the end, and the labelling interface with the categories."""
        self._file.write("]\n")
        tag = "Brush" if self._masks else "Rectangle"
        labels = "".join(f"    <Label value={_attribute(name)}/>\n" for name in self._categories)
        self.open("config.xml").write(
            f'<View>\n  <Text name="text" value="$text"/>\n  <Image name="image" value="$image"/>\n'
            f'  <{tag}Labels name="label" toName="image">\n{labels}  </{tag}Labels>\n'
            f'  <Choices name="sample" toName="image"><Choice value="{WRONG}"/></Choices>\n</View>\n'
        )


class Cvat(Format):
    """`annotations.xml`: CVAT for images 1.1; what was found as masks, or as boxes where there are none.

    `labels.json` is what CVAT's raw editor of a task's labels takes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._images, self._count = self.open("images.part", "w+"), 0

    def add(self, image: ExportedImage) -> None:
        """Write an image; the list of labels, which stands before all of them, isn't known yet."""
        size = f'width="{image.width}" height="{image.height}"'
        self._images.write(f'  <image id="{self._count}" name={quoteattr(image.file)} {size}>\n')
        for phrase, mask in image.found:
            self.category(phrase)
            shape = _cvat_shape(phrase, mask)
            drawn = " ".join(f'{name}="{value}"' for name, value in shape.items())
            kind = "box" if mask is None else "mask"
            self._images.write(
                f'    <{kind} label={_attribute(_category(phrase))} source="auto" occluded="0" {drawn} z_order="0">\n'
                f'      <attribute name="text">{phrase.text_index}</attribute>\n    </{kind}>\n'
            )
        self._images.write("  </image>\n")
        self._count += 1

    def finish(self) -> None:
        """Write the labels, and the images behind them."""
        text = {"name": "text", "mutable": False, "input_type": "text", "default_value": "", "values": [""]}
        labels = [{"name": _printable(name), "type": "any", "attributes": [text]} for name in self._categories]
        labels.append({"name": WRONG, "type": "tag", "attributes": []})
        self.open("labels.json").write(_json(labels) + "\n")
        attribute = (
            "<attribute><name>text</name><mutable>False</mutable><input_type>text</input_type>"
            "<default_value></default_value><values></values></attribute>"
        )
        file = self.open("annotations.xml")
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta><task>')
        file.write(f"<size>{self._count}</size>\n    <labels>\n")
        for label in labels:
            told = f"<name>{escape(str(label['name']))}</name><type>{label['type']}</type>"
            own = attribute if label["attributes"] else ""
            file.write(f"      <label>{told}<attributes>{own}</attributes></label>\n")
        file.write("    </labels>\n  </task></meta>\n")
        self._images.seek(0)
        shutil.copyfileobj(self._images, file)
        self._images.close()
        (self.folder / "images.part").unlink()
        file.write("</annotations>\n")


class FiftyOne(Format):
    """`samples.json`, `metadata.json`: a FiftyOneDataset, which `fiftyone.Dataset.from_dir` reads.

    It is of the form of before 0.8, which all versions read; later ones' metadata depends on the version.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file, self._count = self.open("samples.json"), 0
        self._file.write('{"samples":[')

    def add(self, image: ExportedImage) -> None:
        """Write a sample, what was found as detections in the field `instances`."""
        sample = {
            "filepath": f"{IMAGES}/{image.file}",
            "tags": [],
            "metadata": {"_cls": "ImageMetadata", "width": image.width, "height": image.height},
            "key": image.key,
            "image": image.number,
            "texts": list(image.texts.values()),
            "instances": {
                "_cls": "Detections",
                "detections": [self._detection(phrase, mask, image) for phrase, mask in image.found],
            },
        }
        self._file.write(("," if self._count else "") + "\n" + _json(sample))
        self._count += 1

    def finish(self) -> None:
        """Write the end, and the categories."""
        self._file.write("]}\n")
        told = {"name": self.folder.name.removesuffix(".part"), "media_type": "image"}
        self.open("metadata.json").write(_json(told | {"info": {"classes": list(self._categories)}}) + "\n")

    def _detection(self, phrase: PhraseDocument, mask: Rle | None, image: ExportedImage) -> dict[str, Any]:
        self.category(phrase)
        box = phrase.box if mask is None else box_of(mask)
        sides = np.array([image.width, image.height] * 2)
        left, top, right, bottom = np.minimum((np.array(box) + _NO_LESS) / sides, 1).tolist()
        detection: dict[str, Any] = {
            "_cls": "Detection",
            "label": _category(phrase),
            "bounding_box": [left, top, right - left, bottom - top],
            "text": phrase.text_index,
        }
        if mask is not None:
            file = encode_array(_cut_out(mask, box).astype(bool))
            detection["mask"] = b64encode(zlib.compress(file)).decode()
        return detection if phrase.score == UNKNOWN_SCORE else detection | {"confidence": phrase.score}


FORMATS: Mapping[str, type[Format]] = MappingProxyType(
    {
        "coco": Coco,
        "yolo": Yolo,
        "odvg": Odvg,
        "label-studio": LabelStudio,
        "cvat": Cvat,
        "fiftyone": FiftyOne,
    }
)
"""By the name that `patchmint export --to` knows."""


def category_of(words: str) -> str:
    """The category of some words: in lower case, with single spaces."""
    return " ".join(words.lower().split())


def _category(phrase: PhraseDocument) -> str:
    return category_of(phrase.text)


def _cut_out(mask: Rle, box: Box) -> npt.NDArray[np.uint8]:
    left, top, right, bottom = map(int, box)
    return decode_mask(mask)[top:bottom, left:right]


def _cvat_shape(phrase: PhraseDocument, mask: Rle | None) -> dict[str, object]:
    """The attributes of a box or a mask; a mask's runs go row by row through its box, and begin with background."""
    if mask is None:
        return dict(zip(("xtl", "ytl", "xbr", "ybr"), phrase.box, strict=True))
    left, top, right, bottom = map(int, box := box_of(mask))
    flat = np.concatenate([[0], _cut_out(mask, box).reshape(-1), [-1]])
    runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat))]))
    size = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    return {"rle": ", ".join(map(str, runs.tolist())), **size}


def _results(image: ExportedImage) -> Iterator[dict[str, Any]]:
    """What was found, in Label Studio's form."""
    for number, (phrase, mask) in enumerate(image.found):
        kind = "rectanglelabels" if mask is None else "brushlabels"
        value: dict[str, Any] = {kind: [_category(phrase)]}
        if mask is None:
            left, top, right, bottom = phrase.box
            x, y = 100 / image.width, 100 / image.height
            value |= {"x": left * x, "y": top * y, "width": (right - left) * x, "height": (bottom - top) * y}
        else:
            value |= {"format": "rle", "rle": brush_rle(decode_mask(mask))}
        result = {
            "id": f"{image.key}-{number}",
            "type": kind,
            "from_name": "label",
            "to_name": "image",
            "original_width": image.width,
            "original_height": image.height,
            "image_rotation": 0,
            "value": value,
        }
        yield result if phrase.score == UNKNOWN_SCORE else result | {"score": phrase.score}


_NO_LESS = 1e-3
"""Pixels by which FiftyOne's boxes are shifted: it cuts fractions off, and a whole pixel would be lost to rounding."""

_BRUSH_BITS = (3, 4, 8, 16)
"""Of a run's length; the brush's file begins with them."""


def brush_rle(mask: npt.NDArray[np.uint8]) -> list[int]:
    """A mask as Label Studio's brush has it (@thi.ng/rle-pack): RGBA, row by row, each channel 0 or 255.

    Args:
        mask: (H, W), 0 or 1.

    Returns:
        Bytes as numbers: 32 bits of length, 5 of a value's bits less one, 4 each of a run length's bits less one; then
        runs: a bit 1, two bits that choose the length's bits, the length less one, and the value. A run of one is a
        run here, too, which readers take as well.
    """
    flat = mask.reshape(-1)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [len(flat)]])
    bits = [f"{4 * len(flat):032b}", f"{8 - 1:05b}", *(f"{width - 1:04b}" for width in _BRUSH_BITS)]
    for start, length in zip(edges[:-1].tolist(), (4 * np.diff(edges)).tolist(), strict=True):
        left, value = length, "11111111" if flat[start] else "00000000"
        while left:
            part = min(left, 1 << _BRUSH_BITS[-1])
            choice = next(number for number, width in enumerate(_BRUSH_BITS) if part <= 1 << width)
            bits.append(f"1{choice:02b}{part - 1:0{_BRUSH_BITS[choice]}b}{value}")
            left -= part
    written = "".join(bits)
    return np.packbits(np.frombuffer(written.encode(), np.uint8) - ord("0")).tolist()


def _attribute(name: str) -> str:
    return quoteattr(_printable(name))


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in name)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
