"""A sample's bytes, in its shard and in those of columns, made into the sample."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from patchmint.datasets.dataset import Dataset
from patchmint.errors import ShardError, about
from patchmint.shards.endings import COVERAGE, SELECTOR, on_grid
from patchmint.shards.foreign import parse_foreign
from patchmint.shards.reader import StoredSample, parse_sample, walk_sample
from patchmint.storage import uri_of

Endings = Collection[str] | None
"""Members that are read, by their endings; None: all."""

Read = Callable[[int, int], bytes]
"""Gives so many bytes from a position in a tar on."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a sample's bytes are.

    Attributes:
        tar: path in the storage.
        offset: first byte.
        size: number of bytes.
        key: by the sidecar; None where that wasn't looked up.
        parts: where those of each of the data set's columns are; None: it lacks the sample.
    """

    tar: str
    offset: int
    size: int
    key: str | None
    parts: tuple[Extent | None, ...] = ()

    def all_in(self, dataset: Dataset) -> Iterator[tuple[int, Dataset, Extent]]:
        """Itself with the data set, then its parts with the columns' folders; each with a number."""
        yield 0, dataset, self
        for number, (column, part) in enumerate(zip(dataset.columns, self.parts, strict=True), start=1):
            if part is not None:
                yield number, column.dataset, part


def stored_endings(dataset: Dataset, endings: Endings) -> list[Endings]:
    """Which members to read of a data set's own shards, and of each of its columns'.

    Args:
        dataset: whose.
        endings: those that samples are to come with, on the grid on which it is read.
    """
    if endings is not None and dataset.further_grid:
        labels = (SELECTOR, COVERAGE)
        endings = [on_grid(ending, dataset.further_grid) if ending in labels else ending for ending in endings]
    own = endings
    replaced = set().union(*(_made(column.dataset) for column in dataset.columns if not column.sparse))
    if replaced and replaced & _made(dataset.own):
        asked = dataset.joiner.members if endings is None else endings
        own = [ending for ending in asked if ending not in replaced]
    return [own, *[endings] * len(dataset.columns)]


def _made(dataset: Dataset) -> set[str]:
    return set(dataset.manifest.layout.made) if dataset.manifest is not None else set()


def assemble(
    dataset: Dataset, extent: Extent, endings: Sequence[Endings], read: Callable[[int, Dataset, str], Read]
) -> StoredSample:
    """The sample at a known place.

    Args:
        dataset: whose.
        extent: the place.
        endings: as `stored_endings` gives them.
        read: makes what reads a tar, given a number as in `Extent.all_in`, the folder, and the tar's path.

    Raises:
        ShardError: the sidecar belongs to another tar, or the sample is damaged.
        Whatever reading raises.
    """
    found = []
    for number, own, place in extent.all_in(dataset):
        with about(uri_of(own.storage, place.tar)):
            found.append(_walked(own, place, endings[number], read(number, own, place.tar), at_once=not number))
    sample = dataset.joiner.join(found[0], found[1:]) if dataset.columns else found[0]
    sample = sample.on_grid(dataset.further_grid) if dataset.further_grid else sample
    return sample.with_codes(dataset.further_codes) if dataset.further_codes else sample


def _walked(dataset: Dataset, place: Extent, endings: Endings, read: Read, *, at_once: bool) -> StoredSample:
    if dataset.foreign:
        return parse_foreign(read(place.offset, place.size), place.tar, place.offset)
    # of a column's few members, one is mostly large: it isn't read only to be copied
    if endings is None and at_once:
        sample = parse_sample(read(place.offset, place.size), place.tar, place.offset)
    else:
        sample = walk_sample(read, place.tar, place.offset, place.size, endings)
    if place.key is not None and sample.key != place.key:
        raise ShardError(
            f"{place.tar} of {dataset.uri} has sample {sample.key!r} where its sidecar has {place.key!r}; run "
            f"`patchmint inspect verify {dataset.uri}`"
        )
    return sample
