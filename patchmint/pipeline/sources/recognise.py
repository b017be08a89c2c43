"""Tells from a data set's files which kind of source it is: what `patchmint init` writes down.

Only names and beginnings are read. What is recognised is a guess that `Source.check` confirms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.config.sources import FolderSourceConfig, WebDatasetSourceConfig
from patchmint.errors import ConfigError
from patchmint.images import IMAGE_ENDINGS
from patchmint.pipeline.sources.base import missing_root
from patchmint.pipeline.sources.conversations import FINETUNE, PRETRAIN
from patchmint.pipeline.sources.folder import FolderSource, folder_of
from patchmint.pipeline.sources.images import joined
from patchmint.pipeline.sources.json_stream import stream_list, stream_members
from patchmint.pipeline.sources.parquet import USUAL_TEXTS, image_column
from patchmint.pipeline.sources.records import inner_path, path_of, quoted
from patchmint.pipeline.sources.references import NAMES as REFERENCES
from patchmint.pipeline.sources.tables import JSON, TABLES, parquet_file, rows
from patchmint.pipeline.sources.turns import IMAGES, MARK, TURNS, images_of
from patchmint.pipeline.sources.webdataset import WebDatasetSource, split_uri
from patchmint.samples import SourceSample
from patchmint.shards.paths import MANIFEST_PATH
from patchmint.storage import Storage, open_storage

_LISTED = 100_000
"""Most files to list: enough to find what is beside the images."""

_RECORDS = 1_000_000
"""Most records of a JSON object to pass while looking for the first annotation."""

_LOOKED_AT = 200
_SHOWN = 8
_LISTS = {"text_list", "image_info"}
_FILE_COLUMNS = ("file_name", "image", "image_path", "path", "file", "filename", "filepath", "key")
_TEXT_COLUMNS = ("text", "caption", "texts", "captions", "description", "prompt", "title", "comment")

LOOKED_FOR = f"""\
  folder              images ({", ".join(sorted(IMAGE_ENDINGS))}) with a .txt or .json of the same name beside each,
                      or a {", ".join(TABLES)} table with columns of file names and texts
  webdataset          .tar files
  coco                a .json object with `images` and `annotations`, at the top or in annotations/
  karpathy            a .json object with `images` that have `sentences`
  grounding           a .jsonl of records with `grounding` or `detection`, a .json with `tokens_positive`
  flickr30k-entities  Sentences/*.txt and Annotations/*.xml
  visual-genome       image_data.json and region_descriptions.json or objects.json
  references          refs*.json or grefs*.json, and instances.json
  interleaved         .jsonl files of records with `text_list` and `image_info`, or .parquet files with lists `images`
                      and `texts`
  conversations       a .json list or .jsonl of records with `conversations` or `messages`, or .parquet files with such
                      a column
  parquet             .parquet files with a column of images (bytes, or a struct of bytes and path) and one of texts
  patchmint           {MANIFEST_PATH} of a finished data set"""
"""What makes a data set one of each kind, for messages."""


@dataclass(frozen=True)
class Recognised:
    """What a data set was recognised as.

    Attributes:
        what: for people, such as "COCO captions".
        source: the settings under `source` that read it.
        settings: other settings that go with it, by dotted key.
    """

    what: str
    source: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)


def recognise(uri: str) -> Recognised:
    """Tell what kind of source lies at a path or URI: a folder, or one of its files.

    Raises:
        ConfigError: it is none that is known, with what was looked for; or it isn't there.
        StorageError: it can't be read.
    """
    if "{" in uri or uri.endswith(".tar"):
        return _tars(uri)
    folder, name = _split(uri)
    if name.endswith((".json", *TABLES)):
        return _file(folder, name)
    whole = _Folder(open_storage(uri), uri)
    if missing := missing_root(whole.storage):
        raise ConfigError(missing)
    found = whole.recognise()
    if found is None:
        raise _unrecognised(uri, whole)
    return found


def _tars(uri: str) -> Recognised:
    """Tars, of documents if keys have several images."""
    config = WebDatasetSourceConfig(kind="webdataset", uri=uri, split="all", documents=True)
    try:
        source = WebDatasetSource(config, open_storage(split_uri(uri)[0]))
        begin = [each for each in islice(source.samples(), _SHOWN) if isinstance(each, SourceSample)]
    except ConfigError:  # whoever checks the source says why
        begin = []
    several = {"documents": True} if any(len(each.images) > 1 for each in begin) else {}
    what = "WebDataset tars" + (" with several images a key" if several else "")
    return Recognised(what, {"kind": "webdataset", "uri": uri, **several})


def _file(folder: str, name: str) -> Recognised:
    beside = _Folder(open_storage(folder), folder)
    if not beside.storage.exists(name):
        raise ConfigError(f"there is no {name!r} in {beside.storage.uri}; check the path")
    found = beside.annotations(name) or beside.table(name)
    kind = "" if found is None else found.source["kind"]
    if found is not None and kind != "folder" and (kind == "interleaved" or name.endswith(".parquet")):
        one = {"uri": f"{folder}/{name}"} if kind == "parquet" else {"annotations": name}
        return replace(found, source={**found.source, **one})
    above, last = _split(folder)
    if found is None and last and name.endswith(JSON):  # annotations/my.json, with the images beside that folder
        found = _Folder(open_storage(above), above).annotations(f"{last}/{name}")
    if found is None:
        raise _unrecognised(f"{folder}/{name}", beside)
    return found


def _split(uri: str) -> tuple[str, str]:
    """The folder of a file or folder, and its name there; no name for what has nothing above it."""
    folder, slash, name = uri.rpartition("/")
    if name in (".", "..") or folder.endswith(":/"):
        return uri, ""
    return folder or slash or ".", name


def _unrecognised(shown: str, folder: _Folder) -> ConfigError:
    if folder.lacking:
        return ConfigError(
            f"{folder.lacking[0]}, and there is none of them below {folder.storage.uri}; point at the folder that "
            "holds both, and unpack downloaded archives first"
        )
    names = [entry.path for entry in islice(folder.storage.list(), _SHOWN + 1)]
    listed = ", ".join(map(quoted, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return ConfigError(
        f"{shown} isn't a data set of a known kind. What was looked for:\n{LOOKED_FOR}\nThere is: "
        f"{listed or 'nothing'}. docs/sources.md has the layouts"
    )


class _Folder:
    """A folder that may be a data set."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self.storage = storage
        self._uri = uri
        self._names: list[str] | None = None
        self.lacking: list[str] = []
        """Files of annotations whose images aren't here."""
        self._prefix = ""
        """What the image paths that were looked at begin with, and the folder doesn't have."""

    def recognise(self) -> Recognised | None:
        there = self.storage.exists
        if there(MANIFEST_PATH) and self._is_ours():
            return self._found("a data set of patchmint", "patchmint")
        if there("image_data.json") and (found := self._visual_genome()):
            return found
        for name in (PRETRAIN, FINETUNE):
            if there(name) and (found := self.annotations(name)):
                return found
        if found := self._flickr():
            return found
        jsons = [name for name in self.names if name.endswith(JSON) and name.count("/") <= 2]
        if there("instances.json") and (found := self._references(jsons)):
            return found
        likely = [name for name in jsons if "/" not in name or "annotations" in name]  # train/_annotations.coco.json
        for name in sorted(likely, key=lambda name: ("captions" not in name, "train" not in name, name))[:_SHOWN]:
            if found := self.annotations(name):
                return found
        if any(name.endswith(".tar") for name in self.names):
            return _tars(self._uri)
        tables = [name for name in self.names if name.endswith(TABLES) and not _hidden(name)]
        for name in sorted(tables, key=lambda name: (name.count("/"), "train" not in name, name))[:_SHOWN]:
            if found := self.table(name):
                return found
        return self._images()

    @property
    def names(self) -> list[str]:
        if self._names is None:
            self._names = [entry.path for entry in islice(self.storage.list(), _LISTED)]
        return self._names

    def _found(self, what: str, kind: str, **settings: Any) -> Recognised:
        if self._prefix and "images" in settings:
            settings["strip_prefix"] = self._prefix
        return Recognised(what, {"kind": kind, "uri": self._uri, **settings})

    def _is_ours(self) -> bool:
        try:
            manifest = json.loads(self.storage.read(MANIFEST_PATH))
        except ValueError:
            return False
        return isinstance(manifest, dict) and str(manifest.get("schema")).startswith("patchmint.")

    def annotations(self, path: str) -> Recognised | None:
        """A JSON file of conversations, of COCO or of its kin."""
        if not path.endswith(JSON):
            return None
        try:
            return self._of_records(path)
        except ConfigError:  # it is an object, or no JSON
            pass
        try:
            return self._coco(path)
        except ConfigError:
            return None

    def _of_records(self, path: str) -> Recognised | None:
        records = [each for each in islice(stream_list(self.storage, path), _LOOKED_AT) if isinstance(each, dict)]
        if any(isinstance(record.get(key), dict) for record in records for key in ("grounding", "detection")):
            names = [record.get("filename", record.get("file_name")) for record in records]
            images = self._start_of(path, names, "images", "")
            settings: dict[str, Any] = {"annotations": path, "images": images}
            return None if images is None else self._found("ODVG phrases with boxes", "grounding", **settings)
        matched = [record["image_info"] for record in records if record.keys() >= _LISTS and record["image_info"]]
        if matched:
            names = [info.get("image_name") for infos in matched for info in infos if isinstance(info, dict)]
            images, folder = self._start_of(path, names, "images", ""), folder_of(path)
            settings = {"annotations": folder} if folder else {}
            return None if images is None else self._found("MMC4", "interleaved", **settings, images=images)
        said = [record for record in records if any(isinstance(record.get(key), list) for key in TURNS)]
        if not said:
            return None
        shown = [record for record in said if images_of(record)]
        images = self._start_of(path, [image for record in shown for image in images_of(record)], "images", "")
        if images is None:
            return None
        settings = {} if path in (PRETRAIN, FINETUNE) else {"annotations": path}
        several = any(len(images_of(record)) > 1 for record in shown)
        if several:
            settings["documents"] = True
        if not any("id" in record for record in shown) and any("sample_id" in record for record in shown):
            settings["id_column"] = "sample_id"
        if not any(MARK in json.dumps(record) for record in shown if not _has_parts(record)):
            settings["missing_mark"] = "prepend"
        what = "conversations" + (" about several images" if several else "")
        return self._found(what, "conversations", texts="answers", **settings, images=images)

    def _coco(self, path: str) -> Recognised | None:
        files: list[object] = []
        annotation: Any = None
        sentences = False
        for key, record in islice(stream_members(self.storage, path), _RECORDS):
            if key == "images" and isinstance(record, dict) and len(files) < _LOOKED_AT:
                sentences = "sentences" in record
                files.append(_file_of(record))
            elif key == "annotations" and annotation is None:
                annotation = record
            if (annotation is not None or sentences) and len(files) == _LOOKED_AT:
                break
        if files and sentences:
            images = self._start_of(path, files, "", "images")
            found = self._found("Karpathy's sentences", "karpathy", annotations=path, images=images)
            return None if images is None else found
        if not files or not isinstance(annotation, dict):
            return None
        if "tokens_positive" in annotation:
            images = self._start_of(path, files, "", "images")
            found = self._found("MDETR phrases with boxes", "grounding", annotations=path, images=images)
            return None if images is None else found
        texts = "caption" if "caption" in annotation else "categories"
        kind = "captions" if texts == "caption" else "instances"
        stem = path.rpartition("/")[2].removesuffix(".json")
        split = stem.removeprefix(f"{kind}_")
        images = self._start_of(path, files, split, path.rpartition("/")[0], "", "images")
        if images is None:
            return None
        usual = path == f"annotations/{kind}_{split}.json"
        named: dict[str, Any] = {"split": split} if usual else {"annotations": path}
        if not usual or images != split or self._prefix:
            named["images"] = images
        return self._found(f"COCO {kind}", "coco", texts=texts, **named)

    def _flickr(self) -> Recognised | None:
        names = [entry.path for entry in islice(self.storage.list("Sentences"), _LOOKED_AT)]
        files = [f"{name.removeprefix('Sentences/').removesuffix('.txt')}.jpg" for name in names]
        images = self._start_of("Sentences", files, "flickr30k-images", "images", "") if files else None
        if images is None:
            return None
        return self._found("Flickr30k Entities", "flickr30k-entities", images=images)

    def _visual_genome(self) -> Recognised | None:
        files = {"regions": "region_descriptions.json", "objects": "objects.json"}
        texts = next((texts for texts, name in files.items() if self.storage.exists(name)), None)
        records = islice(stream_list(self.storage, "image_data.json"), _LOOKED_AT)
        urls = [str(record.get("url")) for record in records if isinstance(record, dict)]
        images = self._start_of("image_data.json", map(path_of, urls), "")
        if texts is None or images is None:
            return None
        found = self._found(f"Visual Genome {texts}", "visual-genome", texts=texts, images=images)
        # with 50 texts each, that many samples make a shard as large as others
        return replace(found, settings={"output.samples_per_shard": 500})

    def _references(self, jsons: Sequence[str]) -> Recognised | None:
        refs = next((name for name in jsons if name.startswith(REFERENCES) and "/" not in name), None)
        if refs is None:
            return None
        members = islice(stream_members(self.storage, "instances.json"), _RECORDS)
        records = (record for key, record in members if key == "images" and isinstance(record, dict))
        files = [record.get("file_name") for record in islice(records, _LOOKED_AT)]
        images = self._start_of("instances.json", files, "train2014", "")
        if images is None:
            return None
        return self._found("referring expressions", "references", refs=refs, images=images)

    def table(self, path: str) -> Recognised | None:
        """A table with images in it, or beside it."""
        try:
            if path.endswith(".parquet"):
                with parquet_file(self.storage, path) as table:
                    schema = table.schema_arrow
                    if found := self._parquet(path, table):
                        return found
                names = [item.name for item in schema if _is_string(item.type)]
            else:
                names = []
            first = [row for _, row in islice(rows(self.storage, path, names), _SHOWN) if isinstance(row, dict)]
        except ConfigError:
            return None
        for row, file in ((each, name) for each in first for name in _first(_FILE_COLUMNS, each)):
            images = self._folder_of(row[file], folder_of(path))
            texts = [name for name in _first(_TEXT_COLUMNS, row) if isinstance(row[name], str | list) and name != file]
            if images is not None and texts:
                settings = {"file_column": file, "text_column": texts[0]}
                settings |= {} if images == folder_of(path) else {"images": images}
                return self._found("a folder of images with a table of texts", "folder", table=path, **settings)
        return None

    def _parquet(self, path: str, table: pq.ParquetFile) -> Recognised | None:
        schema = table.schema_arrow
        lists = {item.name: item.type.value_type for item in schema if hasattr(item.type, "value_type")}
        if "images" in lists and _is_string(lists.get("texts", pa.null())):
            settings: dict[str, Any] = {}
            if _is_string(lists["images"]):
                named = (name for row in _begin(table, "images") for name in row or [] if name)
                images = self._start_of(path, named, "images", "")
                settings = {"images": images}
                if images is None:
                    return None
            return self._found("documents in Parquet", "interleaved", **settings)
        several = {"documents": True}
        if any(item.name in TURNS and _has_structs(item.type) for item in schema) and set(IMAGES) & set(schema.names):
            image = next(name for name in IMAGES if name in schema.names)
            if not (image in lists and any(len(row or []) > 1 for row in _begin(table, image))):
                several = {}
            what = "conversations about several images" if several else "conversations"
            return self._found(f"{what} in Parquet", "conversations", texts="answers", **several)
        images = [item.name for item in schema if _holds_images(lists.get(item.name, item.type))]
        texts = [item.name for item in schema if item.name in USUAL_TEXTS]
        texts = texts or [item.name for item in schema if _is_string(item.type)][:1]
        if not images or not texts:
            return None
        image = "image" if "image" in images else images[0]
        several = several if image in lists else {}
        what = "Parquet files with lists of images" if several else "Parquet files with images"
        return self._found(what, "parquet", image_column=image, text_columns=texts, **several)

    def _images(self) -> Recognised | None:
        images = FolderSource(FolderSourceConfig(kind="folder", uri=self._uri, split="all"), self.storage)
        found = islice(images.samples(), _LOOKED_AT)
        if any(isinstance(each, SourceSample) and each.fault is None for each in found):
            return self._found("a folder of images with a text beside each", "folder")
        return None

    def _folder_of(self, value: object, usual: str) -> str | None:
        """Where a value of a table is an image's path: in the usual folder, or in another; None if nowhere."""
        path = inner_path(value)
        if not isinstance(path, str):
            return None
        if self.storage.exists(joined(usual, path)):
            return usual
        return next((name.removesuffix(f"/{path}") for name in self.names if name.endswith(f"/{path}")), None)

    def _start_of(self, listing: str, paths: Iterable[object], *usual: str) -> str | list[str] | None:
        """The folder that annotated image paths start from, or several, or None if none of these images is here.

        Args:
            listing: the file that names them.
            paths: as that file has them.
            usual: folders to try first.
        """
        given = [path for path in paths if isinstance(path, str)]
        inner = [path for path in map(inner_path, given) if isinstance(path, str)]
        self._prefix = ""
        shown = inner[:: max(1, len(inner) // _SHOWN)]
        for folder in usual:
            if any(self.storage.exists(joined(folder, path)) for path in shown):
                return self._with_others(folder, shown)
        endings = tuple(f"/{path}" for path in inner)
        for name in self.names:
            if name.endswith(endings):
                folder = name.removesuffix(next(ending for ending in endings if name.endswith(ending)))
                return self._with_others(folder, shown)
        for path, rest in _ends_of(given[:_SHOWN]):
            if found := next((name for name in self.names if f"/{name}".endswith(f"/{rest}")), None):
                self._prefix = path.removesuffix(rest)
                return found.removesuffix(rest).rstrip("/")
        self.lacking.append(
            f"{listing} names images such as {quoted(given[0])}" if given else f"{listing} names no image"
        )
        return None

    def _with_others(self, folder: str, paths: Iterable[str]) -> str | list[str]:
        """A folder, with those that hold images that aren't in it."""
        lacking = [path for path in paths if not self.storage.exists(joined(folder, path))]
        found = ((name, f"/{path}") for path in lacking for name in self.names)
        others = {name.removesuffix(ending) for name, ending in found if name.endswith(ending)}
        return [folder, *sorted(others)] if others else folder


def _begin(table: pq.ParquetFile, name: str) -> list[Any]:
    """The first values of a column of images, without their bytes where that is possible."""
    columns = image_column(table, name).counted
    batch = next(table.iter_batches(_SHOWN, columns=list(columns), use_threads=False), None)
    return [] if batch is None else batch.column(0).to_pylist()


def _ends_of(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each path with its last parts, longest first: it may be one of another machine."""
    for path in paths:
        for match in re.finditer("/+", path):
            if rest := path[match.end() :]:
                yield path, rest


def _file_of(record: Mapping[str, Any]) -> object:
    """An image's path in a record of COCO, LVIS or Karpathy."""
    name = record.get("file_name", record.get("filename"))
    if name is None:
        return path_of(record.get("coco_url"))
    folder = record.get("filepath")
    return f"{folder}/{name}" if folder else name


def _has_parts(record: Mapping[str, Any]) -> bool:
    """Whether turns are made of parts, of which images are some, instead of having marks."""
    turns = next(record[key] for key in TURNS if isinstance(record.get(key), list))
    return any(isinstance(turn, dict) and isinstance(turn.get("content"), list) for turn in turns)


def _has_structs(kind: Any) -> bool:
    return bool(hasattr(kind, "value_type") and pa.types.is_struct(kind.value_type))


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _first(usual: Iterable[str], row: Mapping[str, Any]) -> list[str]:
    """The usual names that a row has, then its others."""
    known = [name for name in usual if name in row]
    return known + [name for name in row if name not in known]


def _is_string(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _holds_images(kind: Any) -> bool:
    data = {item.name: item.type for item in kind}.get("bytes") if pa.types.is_struct(kind) else kind
    return bool(data is not None and (pa.types.is_binary(data) or pa.types.is_large_binary(data)))
