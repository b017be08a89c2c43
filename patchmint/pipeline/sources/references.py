"""RefCOCO, RefCOCO+ and RefCOCOg: expressions that each refer to one thing in an image; gRefCOCO: to any number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from patchmint.config.sources import ReferencesSourceConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import inner_setting, require
from patchmint.pipeline.sources.files import OwnSplits
from patchmint.pipeline.sources.images import NamedImages
from patchmint.pipeline.sources.json_stream import stream_list, stream_members
from patchmint.pipeline.sources.records import Drawn, Sample, as_id, faulty, quoted, size_of, source_fault
from patchmint.samples import Absent, Fault, Found, ImageRef
from patchmint.storage import Storage
from patchmint.types import Instance, Size

NAMES = ("refs", "grefs")
_LAYOUT = "refs(unc).json (or another refs*.json), instances.json and train2014/*.jpg there"

_CONVERSION = """
    import json, pickle

    class PlainData(pickle.Unpickler):
        def find_class(self, module, name):
            raise pickle.UnpicklingError(f"{module}.{name}: more than plain data, not loaded")

    with open("refs(unc).p", "rb") as source, open("refs(unc).json", "w") as target:
        json.dump(PlainData(source, encoding="utf-8").load(), target)
"""

_NO_TARGET = -1
"""What gRefCOCO gives as the annotation of an expression that fits nothing in its image."""

_Ref = tuple[int, dict[str, Any]]
_ImagesById = dict[str, tuple[ImageRef | Fault, dict[str, Any]]]


class ReferencesSource(NamedImages):
    """Images in the order in which references first speak of them; all references to one image are one sample."""

    def __init__(self, config: ReferencesSourceConfig, storage: Storage, *, masks: bool = False) -> None:
        super().__init__(config, storage)
        self._masks = masks
        self._refs = None if config.refs is None else inner_setting(config.refs, "source.refs")
        self._instances = inner_setting(config.instances, "source.instances")
        self._splits = OwnSplits(config.split)

    def check(self) -> None:
        """As `Source.check`; splits are looked for as far as the first reference of each that is named."""
        path = self._find_refs()
        splits: set[str] = set()
        for ref in stream_list(self._storage, path):
            splits.add(OwnSplits.of(ref))
            if self._splits.given and not self._splits.lacking(splits):
                break
        self._splits.check(splits, f"{path} in {self._storage.uri}")
        instances = require(self._storage, self._instances, "source.instances", _LAYOUT)
        next(stream_members(self._storage, instances), None)
        self.check_images()

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        path = self._find_refs()
        require(self._storage, self._instances, "source.instances", _LAYOUT)
        by_image: dict[str, list[_Ref]] = {}
        splits: set[str] = set()
        for number, ref in enumerate(stream_list(self._storage, path)):
            image_id = as_id(ref.get("image_id")) if isinstance(ref, dict) else None
            if image_id is None or not isinstance(ref.get("sentences"), list):
                message = f"reference {number} of {path} isn't an object with an image_id and a list of sentences"
                yield faulty(f"ref-{number}", "record-malformed", message)
                continue
            splits.add(OwnSplits.of(ref))
            if self._splits.has(OwnSplits.of(ref)):
                by_image.setdefault(image_id, []).append((number, ref))
            else:
                yield Absent("not-chosen-split")
        self._splits.check(splits, f"{path} in {self._storage.uri}")
        images, drawn = self._read_instances()
        for image_id, refs in by_image.items():
            missing = source_fault("image-unlisted", f"{self._instances} doesn't list image {quoted(image_id)}")
            image, own = images.get(image_id, (missing, {}))
            sample = Sample(image_id, image, own)
            for number, ref in refs:
                _add_ref(sample, ref, drawn, size_of(own), f"reference {number} of {path}")
            yield from sample.finish(f"no reference to image {quoted(image_id)} has a sentence")

    def _find_refs(self) -> str:
        top = self._refs or ""
        if top.endswith((".p", ".pkl", ".pickle")):
            raise _refused(top)
        if top:
            return require(self._storage, top, "source.refs", _LAYOUT)
        names = [name for entry in self._storage.list() if "/" not in (name := entry.path) and name.startswith(NAMES)]
        found = [name for name in names if name.endswith(".json")]
        if len(found) == 1:
            return found[0]
        pickles = [name for name in names if name.endswith(".p")]
        if not found and pickles:
            raise _refused(pickles[0])
        what = f"several refs*.json ({', '.join(found)})" if found else "no refs*.json"
        raise ConfigError(f"source.refs: there are {what} in {self._storage.uri}; name the file. Expected {_LAYOUT}")

    def _read_instances(self) -> tuple[_ImagesById, dict[str, Drawn]]:
        """Images by id, boxes and masks by annotation id. What is wrong here shows in the references that need it."""
        images: _ImagesById = {}
        drawn: dict[str, Drawn] = {}
        for key, record in stream_members(self._storage, self._instances):
            given = as_id(record.get("id")) if isinstance(record, dict) else None
            if given is None:
                continue
            if key == "images":
                images[given] = (self.image_at(record.get("file_name")), record)
            elif key == "annotations":
                drawn[given] = Drawn.of_coco(record, masks=self._masks)
        return images, drawn


def _add_ref(sample: Sample, ref: dict[str, Any], drawn: dict[str, Drawn], size: Size | None, where: str) -> None:
    given = ref.get("ann_id")
    targets = [target for target in (given if isinstance(given, list) else [given]) if target != _NO_TARGET]
    about: list[Instance] = []
    for target in targets:
        if (found := drawn.get(as_id(target) or "")) is not None:
            about += sample.instance(found, size=size)
        else:  # the expression is good all the same
            sample.add_absent("box-missing")
    for position, sentence in enumerate(ref["sentences"]):
        # `sent` is the cleaned form of `raw`, and what models are trained on
        text = sentence.get("sent", sentence.get("raw")) if isinstance(sentence, dict) else None
        sample.add_text(text, f"sentence {position} of {where}", about)


def _refused(name: str) -> ConfigError:
    return ConfigError(
        f"source.refs: {name} is a Python pickle, which could run anything, and is never opened. Convert it once, with "
        f"this, which loads plain data only (put the right file names in):\n{_CONVERSION}"
    )
