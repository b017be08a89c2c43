"""For people with a loader of their own: which tars there are, and samples of other readers decoded as ours are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import SampleReader, SampleRef, read_extent
from patchmint.datasets.rows import iter_tables, with_extents
from patchmint.errors import ConfigError, InputError, ShardError
from patchmint.shards.codec import encode_array
from patchmint.shards.endings import DOCUMENT, FEATURES, INSTANCES, unnumbered
from patchmint.shards.reader import StoredSample
from patchmint.shards.schema import SequenceDocument, read_key_json
from patchmint.shards.verify_tar import key_hash
from patchmint.storage import uri_of
from patchmint.training.dataset import Uri, open_finished, open_view
from patchmint.training.fields import SampleMaker, StageImage, TextChoice, fields_of, manifest_of


def shard_urls(data: Uri) -> list[str]:
    """The tars of a finished data set, in order: paths, or URIs of a store. A unit that wrote nothing has none.

    Raises:
        ConfigError: there is no finished data set.
        ShardError: it is damaged or incomplete.
        StorageError: it can't be read.
    """
    dataset = open_finished(data, ())
    return [uri_of(dataset.storage, shard.tar) for shard in dataset.shards if shard.samples]


class SampleDecoder:
    """Turns a sample of another reader into a dict with the fields of a `StageSample`, as NumPy arrays.

    It is a function for `map`: of webdataset, Ray Data, `datasets`, or in a cooker of Energon. Images come as bytes, so
    those readers shouldn't decode them; JSON, text and arrays may be decoded. Fields that the data set doesn't have are
    absent. What columns of the data set have is read from them, by the sample's key; for that 32 bytes a sample, and 24
    for each column, are held in memory. Can be pickled.

    Args:
        data: the folder or URI of the finished data set that the samples are of.
        images: whether `pixels` are made.
        text: which of a sample's texts: the "first", or a "random" one each time.
        grid: which of its grids labels are given on; None: the first. On another there are no features.
        columns: as for `StageDataset`.
        codes: of which of its tokenizers codes are given, by its name; None: the first.

    Raises:
        ConfigError: there is no finished data set, or a setting is wrong.
        ShardError: it is damaged or incomplete.
        StorageError: it can't be read.
    """

    def __init__(
        self,
        data: Uri,
        *,
        images: bool = True,
        text: TextChoice = "first",
        grid: str | None = None,
        columns: Sequence[str] | None = None,
        codes: str | None = None,
    ) -> None:
        if text not in ("random", "first"):
            raise ConfigError(f"text is random or first, not {text!r}")
        self._stored = manifest_of(open_finished(data, ())).layout
        dataset = open_view(data, grid, columns, codes)
        self._columns = _Columns(dataset) if dataset.columns else None
        self._grid, self._codes = dataset.further_grid, dataset.further_codes
        fields = fields_of(None, None, [dataset]) - (frozenset() if images else {"pixels"})
        self._maker = SampleMaker([dataset], fields, text, seed=0)
        self._types: dict[str, np.dtype[Any]] = {
            **dict.fromkeys(self._stored.arrays, np.dtype("u1")),
            FEATURES: np.dtype("<f2"),
        }
        self._types |= {f"{tokens.member}.npy": tokens.dtype for tokens in self._stored.all_tokens}

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Decode a sample.

        Args:
            sample: members by their endings ("jpg", "json", "selector.npy", ...); others are passed over.

        Returns:
            `key`, `text`, `text_index`, and of a picture what the data set has of `pixels`, `selector`, `coverage`,
            `codes`, `features`, `feature_selector` and `feature_coverage`, shaped as in a `StageImage`, and
            `conversation`, a list of dicts with `role` and `content`. Of a document `images`, a list of dicts with
            these fields and `labelled`, and `parts`, a list of dicts with `text`, `image` and `role`.

        Raises:
            InputError: a member was decoded to something that can't be used.
            ShardError: the sample isn't what its data set says.
        """
        json_bytes = self._as_bytes(DOCUMENT, sample[DOCUMENT]) if DOCUMENT in sample else b""
        images = len(read_key_json(json_bytes).images)
        used = (ending for ending in self._stored.members_of(images) if unnumbered(ending) != INSTANCES)
        held = [ending for ending in used if sample.get(ending) is not None]
        members = {ending: self._as_bytes(ending, sample[ending]) for ending in held} | {DOCUMENT: json_bytes}
        stored = StoredSample(str(sample.get("__key__", "")), 0, 0, members)
        stored = self._columns.joined(stored) if self._columns is not None else stored
        stored = stored.on_grid(self._grid) if self._grid else stored
        stored = stored.with_codes(self._codes) if self._codes else stored
        draw = int(np.random.default_rng().integers(2**32))
        made = self._maker.make(SampleRef(0, draw, 0), stored)
        told = stored.key_json
        found: dict[str, Any] = {"key": told.key, "text": made.text, "text_index": made.text_index}
        if isinstance(told, SequenceDocument):
            entries = [{"labelled": image.labelled} | _arrays(image) for image in made.images]
            return found | {"images": entries, "parts": [asdict(part) for part in told.parts]}
        turns = [asdict(turn) for turn in made.conversation]
        return found | _arrays(made.images[0]) | ({"conversation": turns} if turns else {})

    def _as_bytes(self, ending: str, value: Any) -> bytes:
        match value:
            case bytes():
                return value
            case {"bytes": bytes(data)}:  # of `datasets`, where it doesn't decode images
                return data
            case str():
                return value.encode()
            case Mapping() if ending == DOCUMENT:
                return json.dumps(value).encode()
        if (kind := unnumbered(ending)) in self._types:
            return encode_array(np.asarray(value, self._types[kind]))
        raise InputError(
            f"member {ending!r} came as {type(value).__name__}, not as bytes; tell the reader not to decode it "
            "(webdataset: no .decode(); Ray Data: decoder=None; datasets: .cast_column('jpg', "
            "datasets.Image(decode=False)); Energon: decoder: null)"
        )


class _Columns:
    """What the columns of a data set have of samples, by their keys."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = with_extents(dataset)
        keys = (key for _, table in iter_tables(dataset, ["key"]) for key in table["key"].to_pylist())
        hashes = np.fromiter(map(key_hash, keys), np.uint64, dataset.samples)
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]

    def joined(self, sample: StoredSample) -> StoredSample:
        """The sample with them. Raises a ShardError where a column lacks it."""
        dataset, wanted = self._dataset, np.uint64(key_hash(sample.key))
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self._hashes) or self._hashes[place] != wanted:
            raise ShardError(f"sample {sample.key!r} isn't in {dataset.uri}, or in a column of it")
        extent = SampleReader([dataset]).locate(SampleRef(0, 0, int(self._order[place])))
        columns = zip(dataset.columns, extent.parts, strict=True)
        parts = [read_extent(column.dataset, part) for column, part in columns if part is not None]
        return dataset.joiner.join(sample, parts)


def _arrays(image: StageImage) -> dict[str, Any]:
    return {name: value.numpy() for name, value in vars(image).items() if isinstance(value, torch.Tensor)}
