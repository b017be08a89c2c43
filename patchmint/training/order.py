"""In which order an epoch's samples come, and which are a rank's: a pure function of seed and epoch.

Any place in an epoch is found at once.

Shards are permuted and cut into windows of whole shards; within a window samples are permuted. Several data sets are
interleaved in blocks, each of which holds its share of every one of them. Nothing is read, and nothing of an epoch's
length is held.

Permutations sort the raw output of a bit generator, which numpy promises never to change (NEP 19); what its
`Generator.permutation` gives may differ from version to version, and a resumed run would go on elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import ceil
from typing import Literal

import numpy as np
import torch.distributed

from patchmint.datasets.reader import SampleRef
from patchmint.errors import ConfigError
from patchmint.types import Integers

Remainder = Literal["keep", "drop", "repeat"]

_SHARDS, _SAMPLES, _BLENDS = range(3)
_CACHED_WINDOWS = 16
# Ranks and batches walk through few windows at a time: two of each data set.


def permutation(length: int, *key: int) -> Integers:
    """A permutation of `0..length-1` that depends on the key alone, also with the next numpy."""
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(length)
    return np.argsort(bits, kind="stable")


class ShardOrder:
    """The order within one data set.

    Args:
        counts: samples of each shard.
        seed: not negative.
        dataset: number of the data set, so that two of one form don't come in one order.
        window: samples that are shuffled together, at least: whole shards, as many as it takes.
        shuffle: False: as they are stored, in every epoch.
    """

    def __init__(self, counts: Integers, *, seed: int, dataset: int, window: int, shuffle: bool) -> None:
        self.samples = int(counts.sum())
        self._counts = counts
        self._firsts = np.cumsum(counts) - counts
        self._key = (seed, dataset)
        self._window = window
        self._shuffle = shuffle
        self._epoch = lru_cache(2)(self._epoch_windows)
        self._shuffled = lru_cache(_CACHED_WINDOWS)(self._shuffled_window)

    def indices(self, epoch: int, positions: Integers) -> Integers:
        """The samples at some positions of an epoch."""
        if not self._shuffle:
            return positions
        starts, _ = self._epoch(epoch)
        windows = np.searchsorted(starts, positions, side="right") - 1
        found = np.empty_like(positions)
        for window in np.unique(windows).tolist():
            here = windows == window
            found[here] = self._shuffled(epoch, window)[positions[here] - starts[window]]
        return found

    def __reduce__(self) -> tuple[object, ...]:
        """Caches stay behind."""
        seed, dataset = self._key
        made = partial(ShardOrder, seed=seed, dataset=dataset, window=self._window, shuffle=self._shuffle)
        return made, (self._counts,)

    def _epoch_windows(self, epoch: int) -> tuple[Integers, list[Integers]]:
        """First positions of an epoch's windows, and the shards in each."""
        shards = permutation(len(self._counts), self._key[0], _SHARDS, self._key[1], epoch, 0)
        ends = np.cumsum(self._counts[shards])
        groups, starts, begun = [], [], 0
        while begun < len(shards):
            start = int(ends[begun - 1]) if begun else 0
            end = min(int(np.searchsorted(ends, start + self._window)) + 1, len(shards))
            groups.append(shards[begun:end])
            starts.append(start)
            begun = end
        return np.array(starts, np.int64), groups

    def _shuffled_window(self, epoch: int, window: int) -> Integers:
        shards = self._epoch(epoch)[1][window]
        ranges = [np.arange(self._firsts[shard], self._firsts[shard] + self._counts[shard]) for shard in shards]
        samples: Integers = np.concatenate(ranges)
        return samples[permutation(len(samples), self._key[0], _SAMPLES, self._key[1], epoch, window)]


class MixedOrder:
    """The order of one or more data sets together.

    Args:
        counts: for each data set the samples of each shard.
        draws: samples of each data set in an epoch; a data set of another size goes on, in the next epoch, where it
            stopped in this one.
        seed: not negative.
        window: as for `ShardOrder`; also the samples in which data sets are blended.
        shuffle: False: one data set after another, as they are stored.
    """

    def __init__(
        self, counts: Sequence[Integers], draws: Sequence[int], *, seed: int, window: int, shuffle: bool
    ) -> None:
        self.samples = sum(draws)
        self._orders = [
            ShardOrder(shards, seed=seed, dataset=number, window=window, shuffle=shuffle)
            for number, shards in enumerate(counts)
        ]
        self._draws = np.array(draws, np.int64)
        self._seed = seed
        # One data set needs no blending, and without shuffling they come one after another.
        self._blocks = ceil(self.samples / window) if shuffle and len(counts) > 1 else 0

    def places(self, epoch: int, positions: Integers) -> list[SampleRef]:
        """What comes at some positions of an epoch, each 0 .. samples - 1."""
        datasets, drawn = self._blended(epoch, positions) if self._blocks else self._in_turn(positions)
        drawn = drawn + epoch * self._draws[datasets]
        sizes = np.array([order.samples for order in self._orders])[datasets]
        epochs, within = drawn // sizes, drawn % sizes
        found = np.empty_like(positions)
        for dataset, own in set(zip(datasets.tolist(), epochs.tolist(), strict=True)):
            here = (datasets == dataset) & (epochs == own)
            found[here] = self._orders[dataset].indices(own, within[here])
        return [SampleRef(*place) for place in zip(datasets.tolist(), epochs.tolist(), found.tolist(), strict=True)]

    def _in_turn(self, positions: Integers) -> tuple[Integers, Integers]:
        """As `_blended`, with each data set after the one before it."""
        ends = np.cumsum(self._draws)
        datasets = np.searchsorted(ends, positions, side="right")
        return datasets, positions - (ends - self._draws)[datasets]

    def _blended(self, epoch: int, positions: Integers) -> tuple[Integers, Integers]:
        """The data set at each position, and how many of its samples came before in this epoch."""
        datasets, drawn = np.empty_like(positions), np.empty_like(positions)
        blocks = self._block_of(positions)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            cuts, ends = self._cuts(block), self._cuts(block + 1)
            labels, counts = _blend(tuple((ends - cuts).tolist()), self._seed, epoch, block)
            within = positions[here] - cuts.sum()
            datasets[here] = labels[within]
            drawn[here] = counts[within] + cuts[labels[within]]
        return datasets, drawn

    def _cuts(self, block: int) -> Integers:
        """How many samples of each data set come before a block: all of them advance evenly."""
        return block * self._draws // self._blocks

    def _block_of(self, positions: Integers) -> Integers:
        blocks = positions * self._blocks // self.samples
        # Cuts are rounded down, so a block may begin some positions before its even share, but never after.
        while (late := ((blocks[:, None] + 1) * self._draws // self._blocks).sum(axis=1) <= positions).any():
            blocks = blocks + late
        return blocks


@lru_cache(_CACHED_WINDOWS)
def _blend(shares: tuple[int, ...], seed: int, epoch: int, block: int) -> tuple[Integers, Integers]:
    """A block's data sets in order, and for each position how many of its data set came before it in the block."""
    labels = np.repeat(np.arange(len(shares)), shares)
    labels = labels[permutation(len(labels), seed, _BLENDS, 0, epoch, block)]
    counts = np.empty_like(labels)
    for dataset, share in enumerate(shares):
        counts[labels == dataset] = np.arange(share)
    return labels, counts


@dataclass(frozen=True)
class Share:
    """Every `world_size`th sample of an epoch's order, beginning with number `rank`.

    Attributes:
        rank: of this process.
        world_size: number of processes.
        remainder: what becomes of samples that don't divide among the ranks. `keep`: every sample comes exactly once,
            and some ranks get one more than others; `drop`: the last ones are left out; `repeat`: the first ones come
            once more. `drop` and `repeat` give all ranks equally many, without which `DistributedDataParallel` waits
            for ever at the end of an epoch.

    Raises:
        ConfigError: there is no such rank or remainder.
    """

    rank: int
    world_size: int
    remainder: Remainder

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"there is no rank {self.rank} among {self.world_size}; give rank 0 to world_size - 1 "
                "(or check the environment's RANK and WORLD_SIZE)"
            )
        if self.remainder not in ("keep", "drop", "repeat"):
            raise ConfigError(f"no remainder {self.remainder!r}; choose keep, drop or repeat")

    def length(self, samples: int) -> int:
        """How many samples of an epoch are this rank's.

        Raises:
            ConfigError: some rank would have none.
        """
        if samples < self.world_size and self.remainder != "repeat":
            raise ConfigError(
                f"an epoch of {samples} samples leaves some of {self.world_size} ranks without any; use fewer ranks, "
                "or remainder='repeat'"
            )
        match self.remainder:
            case "keep":
                return len(range(self.rank, samples, self.world_size))
            case "drop":
                return samples // self.world_size
            case "repeat":
                return -(-samples // self.world_size)

    def positions(self, own: Integers, samples: int) -> Integers:
        """Where in the epoch's order this rank's samples with these numbers are."""
        # Beyond the end (repeat) it begins again.
        return (np.asarray(own, np.int64) * self.world_size + self.rank) % samples


def share_of(rank: int | None, world_size: int | None, remainder: Remainder) -> Share:
    """This process's share: as given, else torch.distributed's, else RANK and WORLD_SIZE, else everything.

    Raises:
        ConfigError: only one of the two is given, or they contradict each other.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError("give both rank and world_size, or neither")
    if rank is not None and world_size is not None:
        return Share(rank, world_size, remainder)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Share(torch.distributed.get_rank(), torch.distributed.get_world_size(), remainder)
    named = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if bool(named["RANK"]) != bool(named["WORLD_SIZE"]):
        raise ConfigError(
            f"of the environment's RANK and WORLD_SIZE only one is set ({named}): all ranks would read the same; set "
            "both, or neither"
        )
    try:
        return Share(int(named["RANK"] or 0), int(named["WORLD_SIZE"] or 1), remainder)
    except ValueError as error:
        raise ConfigError(f"the environment's RANK and WORLD_SIZE must be whole numbers, not {named}") from error
