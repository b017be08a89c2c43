"""Samples -> a shard: a tar and its sidecar, the same bytes for the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from patchmint.errors import ShardError
from patchmint.shards.checks import Array, Problem, check_arrays, check_document, check_key
from patchmint.shards.codec import encode_array, tar_end, tar_sample
from patchmint.shards.endings import CAPTION, COVERAGE, DOCUMENT, FEATURES, IMAGE, SELECTOR
from patchmint.shards.layout import Layout
from patchmint.shards.reader import StoredSample
from patchmint.shards.records import mean_share
from patchmint.shards.sample import ShardSample, document_of
from patchmint.shards.schema import SampleDocument, encode_text
from patchmint.shards.sidecar import SCHEMA, TableWriter, sidecar_row


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
        self._table = TableWriter(sidecar, SCHEMA)
        self._layout = layout
        self._keys: set[str] = set()
        self._size = 0
        self._texts = 0
        self._label_shares: list[float] = []

    @property
    def texts(self) -> int:
        """Texts of the samples written so far."""
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
        document = document_of(sample, self._layout)
        arrays = _arrays(sample, self._layout)
        self._check(document, arrays)
        data = {
            IMAGE: sample.data,
            DOCUMENT: document.to_bytes(),
            CAPTION: encode_text(document.texts[0], "KEY.txt"),
            **{ending: encode_array(array) for ending, array in arrays.items()},
        }
        self._append(document, arrays, data, sample.planned.ordinal)

    def add_stored(self, sample: StoredSample, ordinal: int) -> None:
        """Write a sample as another shard of the same data set holds it.

        Args:
            sample: with all of its members.
            ordinal: its place in the plan.

        Raises:
            ShardError: as for `add`, or a member is damaged.
        """
        found = {ending: sample.array(ending) for ending in self._layout.members[3:]}
        arrays = {ending: array for ending, array in found.items() if array is not None}
        self._check(sample.document, arrays)
        self._append(sample.document, arrays, sample.members, ordinal)

    def _append(
        self, document: SampleDocument, arrays: Mapping[str, Array], data: Mapping[str, bytes], ordinal: int
    ) -> None:
        members = tar_sample(document.key, ((ending, data[ending]) for ending in self._layout.members))
        tokens = self._layout.tokens
        codes = arrays[f"{tokens.member}.npy"] if tokens else None
        place = {"ordinal": ordinal, "offset": self._size, "size": len(members)}
        row = sidecar_row(document, arrays.get(SELECTOR), codes, **place)
        self._table.add(row)
        self._texts += len(row["texts"])
        self._label_shares += row["label_shares"]
        self._tar.write(members)
        self._size += len(members)
        self._keys.add(document.key)

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

    def _check(self, document: SampleDocument, arrays: dict[str, Array]) -> None:
        for _, message in self._problems(document, arrays):
            raise ShardError(f"sample {document.key!r} can't be written: {message}")

    def _problems(self, document: SampleDocument, arrays: dict[str, Array]) -> Iterator[Problem]:
        yield from check_key(document.key)
        if document.key in self._keys:
            yield "key-duplicate", "its key is in this shard already"
        yield from check_document(document, document.key, self._layout)
        yield from check_arrays(document, arrays, self._layout)


def _arrays(sample: ShardSample, layout: Layout) -> dict[str, Array]:
    """The arrays by ending, in the form in which they are stored."""
    given: dict[str, Array | None] = {
        SELECTOR: sample.selector,
        COVERAGE: sample.coverage,
        FEATURES: sample.features,
    }
    if layout.tokens is not None:
        codes = sample.codes
        if codes is not None and len(layout.tokens.codebook_sizes) == 1 and codes.ndim == len(layout.tokens.grid) + 1:
            codes = codes[..., 0]
        given[f"{layout.tokens.member}.npy"] = codes
    elif sample.codes is not None:
        raise ShardError(f"sample {sample.planned.key!r} has codes, the data set has none")
    arrays = {ending: array for ending, array in given.items() if array is not None}
    wanted = set(layout.members[3:])
    if arrays.keys() != wanted:
        raise ShardError(
            f"sample {sample.planned.key!r} has arrays {sorted(arrays)}, the data set has {sorted(wanted)}"
        )
    if layout.tokens is not None:
        _narrow(arrays, f"{layout.tokens.member}.npy", layout.tokens.dtype)
    return arrays


def _narrow(arrays: dict[str, Array], ending: str, dtype: np.dtype[np.unsignedinteger]) -> None:
    """Codes come as wide integers; what doesn't survive narrowing is refused, not wrapped around."""
    narrow = arrays[ending].astype(dtype)
    if arrays[ending].dtype.kind not in "iu" or not np.array_equal(narrow, arrays[ending]):
        raise ShardError(f"{ending} holds codes that {dtype} can't; the tokenizer's codebook sizes must be wrong")
    arrays[ending] = narrow
