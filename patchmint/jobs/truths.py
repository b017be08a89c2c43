"""What `patchmint judge --against` names: truth.json, another data set, or a source's annotations."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from patchmint.config.sources import ReferencesSourceConfig, VisualGenomeSourceConfig
from patchmint.datasets.dataset import open_dataset
from patchmint.errors import ConfigError, InputError
from patchmint.judging.truth import (
    TRUTH_FILE,
    AnnotatedTruth,
    DatasetTruth,
    ListedTruth,
    TrueImage,
    TrueThing,
    Truth,
    TruthEntry,
    read_truth,
    sample_entries,
    true_thing,
)
from patchmint.pipeline.sources import open_source
from patchmint.pipeline.sources.coco import CocoFile
from patchmint.pipeline.sources.json_stream import stream_members
from patchmint.pipeline.sources.records import as_id, path_of, size_of
from patchmint.pipeline.sources.references import NAMES as REFERENCES
from patchmint.shards.paths import MANIFEST_PATH, SHARDS
from patchmint.storage import open_storage

_INSTANCES = ("instances_", "lvis_")


def open_truth(against: str | None) -> Truth:
    """The truth that a data set is to be judged by.

    Args:
        against: truth.json, or instances of COCO or LVIS, as a file; a folder with one of these, with RefCOCO's
            references or with Visual Genome's regions and objects; or a data set. None: annotators' marks in the data
            set itself.

    Raises:
        InputError, ConfigError: it is none of these, or isn't of the form that its kind has.
        StorageError, ShardError: it can't be read.
    """
    if against is None:
        return AnnotatedTruth()
    if against.endswith(".json"):
        folder, _, name = against.rpartition("/")
        return _file(folder or ".", name)
    if against.endswith(".tar"):
        return DatasetTruth(open_dataset(against))
    storage = open_storage(against)
    if storage.exists(MANIFEST_PATH):
        return DatasetTruth(open_dataset(against))
    names = {entry.path for entry in storage.list() if entry.path.count("/") <= 1}
    if any(name.startswith(f"{SHARDS}/") for name in names):  # a build that isn't finished
        return DatasetTruth(open_dataset(against))
    if TRUTH_FILE in names:
        return _file(against, TRUTH_FILE)
    if "instances.json" in names and any(name.startswith(REFERENCES) for name in names):
        refs = sorted(name for name in names if name.startswith(REFERENCES) and name.endswith(".json"))
        configs: list[ReferencesSourceConfig | VisualGenomeSourceConfig] = [
            ReferencesSourceConfig(kind="references", uri=against, refs=name, split="all") for name in refs
        ]
        return ListedTruth(f"the references of {against}", _merged(configs))
    if "image_data.json" in names:
        there = {"region_descriptions.json": "regions", "objects.json": "objects"}
        configs = [
            VisualGenomeSourceConfig.model_validate({"kind": "visual-genome", "uri": against, "texts": texts})
            for name, texts in there.items()
            if name in names
        ]
        return ListedTruth(f"Visual Genome in {against}", _merged(configs))
    found = sorted(name for name in names if name.rpartition("/")[2].startswith(_INSTANCES) and name.endswith(".json"))
    if len(found) == 1:
        return _file(against, found[0])
    raise InputError(
        f"{against} isn't a truth that is known: {TRUTH_FILE}, a data set, RefCOCO's or Visual Genome's files, or one "
        f"file of COCO's or LVIS's instances (there are {', '.join(found) or 'none'}; name the file)"
    )


def _file(folder: str, name: str) -> Truth:
    """COCO's instances have annotations, and truth.json hasn't."""
    storage = open_storage(folder)
    if not storage.exists(name):
        raise InputError(f"there is no {name} in {folder}; check the path")
    says = f"{folder}/{name}"
    if any(key == "annotations" for key, _ in stream_members(storage, name)):
        return ListedTruth(says, _coco(CocoFile(storage, name, _instance, what="instances", categories=True), says))
    if not storage.is_local:
        raise InputError(f"{says} must be on this machine; get it first")
    return ListedTruth(says, read_truth(Path(folder).expanduser() / name).entries())


def _instance(record: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    category = as_id(record.get("category_id"))
    if category is None:
        raise ValueError("has no category_id")
    return category, {name: record.get(name) for name in ("bbox", "segmentation", "iscrowd")}


def _coco(file: CocoFile, says: str) -> Iterator[TruthEntry]:
    """Of COCO, whatever isn't annotated is absent; of LVIS only what an image's record says isn't there."""
    names = {category: name.lower() for category, name in file.categories.items()}
    absent: dict[str, tuple[TrueThing, ...]] = dict.fromkeys(names.values(), ())
    for image_id, record in file.images:
        size = size_of(record)
        things: dict[str, tuple[TrueThing, ...]] = {}
        for position, (category, drawn) in file.annotations.get(image_id, []):
            if category not in names:
                raise InputError(f"annotation {position} in {says} is of category {category}, which it doesn't list")
            thing = true_thing(drawn, size, f"annotation {position} in {says}")
            things[names[category]] = (*things.get(names[category], ()), thing)
        others = absent
        if "neg_category_ids" in record:
            others = {names[key]: () for key in map(str, record["neg_category_ids"]) if key in names}
            for key in map(str, record.get("not_exhaustive_category_ids", ())):
                things.pop(names.get(key, ""), None)
        path = record.get("file_name") or path_of(record.get("coco_url"))
        image = TrueImage(
            (), tuple(thing for each in things.values() for thing in each), ChainMap(things, others), size
        )
        yield TruthEntry(image, id=image_id, path=path if isinstance(path, str) else "")


def _merged(configs: list[ReferencesSourceConfig | VisualGenomeSourceConfig]) -> Iterator[TruthEntry]:
    """The images of several files about the same ones."""
    merged: dict[str, TruthEntry] = {}
    for config in configs:
        for entry in sample_entries(open_source(config, masks=True).samples()):
            before = merged.get(entry.id)
            texts = (*before.image.texts, *entry.image.texts) if before is not None else entry.image.texts
            merged[entry.id] = TruthEntry(TrueImage(texts), id=entry.id, path=entry.path)
    if not merged:
        raise ConfigError("none of the texts there has anything drawn for it")
    return iter(merged.values())
