"""A data set that is looked into: which shards there are, and where each sample stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from patchmint.errors import InputError
from patchmint.shards.names import canonical_paths
from patchmint.storage import Storage

if TYPE_CHECKING:  # `ls` must start quickly
    from patchmint.datasets.arrays import Integers
    from patchmint.shards.manifest import Manifest


@dataclass(frozen=True)
class Shard:
    """A shard, or a unit of which nothing was written.

    Attributes:
        unit: its number in the plan; 0 for a lone tar.
        tar: its path in the storage.
        sidecar: the path of its table; empty for a lone tar that has none beside it.
        samples: written samples.
        rejected: samples of the unit that weren't written.
        size: bytes of the tar; 0 where nothing was written.
        sidecar_size: bytes of the table; 0 where there is none.
        label_share: mean of the labels' shares over the texts; None without labels, or where only the record says it.
    """

    unit: int
    tar: str
    sidecar: str
    samples: int
    rejected: int
    size: int
    sidecar_size: int = 0
    label_share: float | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """What is looked into.

    A sample's index is its position in the data set: shards in order, rows of a shard in order.

    Attributes:
        uri: as given.
        storage: the data set's folder, or the folder of a lone tar.
        manifest_data: bytes of dataset.json; None for a build that wasn't finished yet and for a lone tar. While a
            retry is under way it is that of the build before: its totals are too small, the rest still holds.
        shards: in order of their units.
        unbuilt: units of the plan, retries included, that aren't done yet.
        finished: dataset.json is there and covers all units.
        list_digest: SHA-256 of the list of shards that was used; empty where there is none.
        scanned: rows of a lone tar without a sidecar (an Arrow table), made from its samples; else None.
    """

    uri: str
    storage: Storage
    manifest_data: bytes | None = field(repr=False)
    shards: tuple[Shard, ...] = field(repr=False)
    unbuilt: int = 0
    finished: bool = False
    list_digest: str = ""
    scanned: Any = field(default=None, repr=False)

    @cached_property
    def manifest(self) -> Manifest | None:
        """dataset.json, as `manifest_data`.

        Raises:
            ShardError: it isn't of the format's form.
        """
        from patchmint.shards.manifest import parse_manifest  # takes longer to import than all that `ls` needs

        return None if self.manifest_data is None else parse_manifest(self.manifest_data)

    @cached_property
    def samples(self) -> int:
        """How many there are."""
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def starts(self) -> Integers:
        """Index of each shard's first sample, and the number of samples at the end: int64 (shards + 1,)."""
        import numpy as np

        counts = np.array([shard.samples for shard in self.shards], np.int64)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    @property
    def reject_tables(self) -> list[str]:
        """Paths of the tables of rejects."""
        return [canonical_paths(shard.unit)[0] for shard in self.shards if shard.rejected]

    def place(self, index: int) -> tuple[Shard, int]:
        """The shard and the row in it of a sample.

        Raises:
            InputError: there are fewer samples.
        """
        import numpy as np

        if not 0 <= index < self.samples:
            raise InputError(f"{self.uri} has {self.samples} samples, so none at position {index}")
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.shards[number], index - int(self.starts[number])


def spread(total: int, count: int) -> Integers:
    """Evenly spaced positions, ascending: `count` of `total`, or all where there are fewer or `count` is 0."""
    import numpy as np

    if count <= 0 or count >= total:
        return np.arange(total)
    return np.arange(count) * total // count
