"""Samples -> a shard: a tar and its sidecar, the same bytes for the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from patchmint.errors import ShardError
from patchmint.shards.checks import Array, Problem, check_arrays, check_document, check_key
from patchmint.shards.codec import encode_array, tar_end, tar_sample
from patchmint.shards.columns import column_json
from patchmint.shards.endings import (
    CAPTION,
    COVERAGE,
    DOCUMENT,
    FEATURES,
    IMAGE,
    INSTANCES,
    SELECTOR,
    on_grid,
)
from patchmint.shards.layout import Layout
from patchmint.shards.reader import StoredSample
from patchmint.shards.records import mean_share
from patchmint.shards.sample import ShardImage, ShardSample, codes_of, key_json_of
from patchmint.shards.schema import InstancesDocument, KeyJson, encode_text, of_this_version
from patchmint.shards.sidecar import NOT_EDITED, TableWriter, schema_for, sidecar_row


class ShardWriter:
    """Writes one shard. A sample is checked before a byte of it is written.

    As a context manager it closes the shard (not the files) unless an exception passes.

    Args:
        tar: open for writing, at its start.
        sidecar: open for writing, at its start.
        layout: what every sample of the data set has.
    """

    def __init__(self, tar: BinaryIO, sidecar: BinaryIO, layout: Layout) -> None:
        self._tar = tar
        self._schema = schema_for(layout)
        self._table = TableWriter(sidecar, self._schema)
        self._layout = layout
        self._keys: set[str] = set()
        self._size = 0
        self._texts = 0
        self._label_shares: list[float] = []

    @property
    def texts(self) -> int:
        """Texts of the samples written so far; of a column without labels 0."""
        return self._texts

    @property
    def label_share(self) -> float | None:
        """Mean of their label shares, as the sidecar has them; None where there are no labels, or no texts."""
        return mean_share(self._label_shares)

    def add(self, sample: ShardSample) -> None:
        """Write a sample.

        Raises:
            ShardError: the sample isn't what layout and format say (its key is unlawful or taken, an array is missing
                or of another type or shape, a box lies outside the image, ...); nothing of it is written.
        """
        told, arrays = key_json_of(sample, self._layout), _arrays(sample, self._layout)
        instances = _instances(sample, self._layout)
        self._check(told, arrays)
        data = {
            **{self._layout.ending_of(number, IMAGE): image.data for number, image in enumerate(sample.images)},
            CAPTION: encode_text(told.texts[0], "KEY.txt"),
            **{ending: encode_array(array) for ending, array in arrays.items()},
            **{self._layout.ending_of(number, INSTANCES): found for number, found in enumerate(instances)},
        }
        self._append(told, arrays, data, sample.planned.ordinal)

    def add_stored(self, sample: StoredSample, ordinal: int, edited: Mapping[str, object] = NOT_EDITED) -> None:
        """Write a sample as another shard of the same data set holds it; of a column put together with its base's.

        Args:
            sample: with all of its members.
            ordinal: its place in the plan.
            edited: what the sidecar says of its corrections, where the layout has any.

        Raises:
            ShardError: as for `add`, or a member is damaged.
        """
        endings = [ending for ending in self._layout.members_of(len(sample.images)) if ending.endswith(".npy")]
        found = {ending: sample.array(ending) for ending in endings}
        arrays = {ending: array for ending, array in found.items() if array is not None}
        self._check(sample.key_json, arrays)
        self._append(sample.key_json, arrays, sample.members, ordinal, edited)

    def _append(
        self,
        told: KeyJson,
        arrays: Mapping[str, Array],
        data: Mapping[str, bytes],
        ordinal: int,
        edited: Mapping[str, object] = NOT_EDITED,
    ) -> None:
        layout, images = self._layout, range(len(told.images))
        document = column_json(told, layout) if layout.column else of_this_version(told).to_bytes()
        data = {**data, DOCUMENT: document}
        members = tar_sample(told.key, ((ending, data[ending]) for ending in layout.members_of(len(images))))
        labels = [] if layout.threshold is None else [arrays[layout.ending_of(image, SELECTOR)] for image in images]
        codes = {
            tokens.member: [arrays[layout.ending_of(image, f"{tokens.member}.npy")] for image in images]
            for tokens in layout.all_tokens
        }
        row = sidecar_row(told, labels, codes, ordinal=ordinal, offset=self._size, size=len(members))
        self._table.add({**row, **edited})
        self._texts += len(row["texts"]) if "texts" in self._schema.names else 0
        self._label_shares += row["label_shares"]
        self._tar.write(members)
        self._size += len(members)
        self._keys.add(told.key)

    def close(self) -> None:
        """Write the tar's end and the sidecar's footer."""
        self._tar.write(tar_end(self._size))
        self._table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def _check(self, told: KeyJson, arrays: Mapping[str, Array]) -> None:
        for _, message in self._problems(told, arrays):
            raise ShardError(f"sample {told.key!r} can't be written: {message}")

    def _problems(self, told: KeyJson, arrays: Mapping[str, Array]) -> Iterator[Problem]:
        yield from check_key(told.key, self._layout.longest_key)
        if told.key in self._keys:
            yield "key-duplicate", "its key is in this shard already"
        yield from check_document(told, told.key, None if self._layout.column else self._layout)
        yield from check_arrays(told, arrays, self._layout)


def _arrays(sample: ShardSample, layout: Layout) -> dict[str, Array]:
    """The arrays by ending, in the form in which they are stored."""
    return {
        layout.ending_of(number, ending): array
        for number, image in enumerate(sample.images)
        for ending, array in _arrays_of(image, sample.planned.key, layout).items()
    }


def _arrays_of(image: ShardImage, key: str, layout: Layout) -> dict[str, Array]:
    given: dict[str, Array | None] = {SELECTOR: image.selector, COVERAGE: image.coverage, FEATURES: image.features}
    for name, labels in image.further.items():
        given |= {on_grid(SELECTOR, name): labels.selector, on_grid(COVERAGE, name): labels.coverage}
    for tokens in layout.all_tokens:
        codes = codes_of(image, tokens)
        if codes is not None and len(tokens.codebook_sizes) == 1 and codes.ndim == len(tokens.grid) + 1:
            codes = codes[..., 0]
        given[f"{tokens.member}.npy"] = codes
    if (len(image.named_codes) + (image.codes is not None)) > len(layout.all_tokens):
        raise ShardError(f"sample {key!r} has codes that the data set hasn't")
    arrays = {ending: array for ending, array in given.items() if array is not None}
    if arrays.keys() != set(layout.arrays):
        raise ShardError(f"sample {key!r} has arrays {sorted(arrays)}, the data set has {sorted(layout.arrays)}")
    for tokens in layout.all_tokens:
        _narrow(arrays, f"{tokens.member}.npy", tokens.dtype)
    return arrays


def _instances(sample: ShardSample, layout: Layout) -> list[bytes]:
    """The images' instances as they are stored; none where the layout has none."""
    if any((image.masks is not None) != layout.instances for image in sample.images):
        has = "no masks, the data set has" if layout.instances else "masks, the data set has no"
        raise ShardError(f"sample {sample.planned.key!r} has {has} instances")
    written = []
    for image in sample.images if layout.instances else ():
        masks, size = image.masks or (), [image.image.height, image.image.width]
        if len(masks) != len(image.phrases) or any(mask["size"] != size for mask in masks):
            raise ShardError(
                f"sample {sample.planned.key!r} has {len(masks)} masks for {len(image.phrases)} phrases, or not all of "
                f"them are of the image's size {size}; instances are stored with masks of that size (labels.instances)"
            )
        written.append(InstancesDocument.of(image.phrases, masks).to_bytes())
    return written


def _narrow(arrays: dict[str, Array], ending: str, dtype: np.dtype[np.unsignedinteger]) -> None:
    """Codes come as wide integers; what doesn't survive narrowing is refused, not wrapped around."""
    narrow = arrays[ending].astype(dtype)
    if arrays[ending].dtype.kind not in "iu" or not np.array_equal(narrow, arrays[ending]):
        raise ShardError(f"{ending} holds codes that {dtype} can't; the tokenizer's codebook sizes must be wrong")
    arrays[ending] = narrow
