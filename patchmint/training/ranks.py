"""Which part of an epoch belongs to which process of a distributed training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch.distributed

from patchmint.errors import ConfigError
from patchmint.types import Integers

Remainder = Literal["keep", "drop", "repeat"]


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
