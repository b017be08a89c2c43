"""What a unit becomes: its shard in the making, its rejects, and the seconds that each stage took."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from patchmint.compute.spans import span
from patchmint.samples import Reject
from patchmint.shards.commit import Attempt
from patchmint.shards.layout import Layout
from patchmint.shards.sample import ShardSample
from patchmint.shards.writer import ShardWriter
from patchmint.storage import NewFile

Seconds = defaultdict[str, float]
"""By stage."""


@contextmanager
def timed(seconds: Seconds, stage: str) -> Iterator[None]:
    """Add the time within to a stage's."""
    start = time.perf_counter()
    try:
        with span(stage):
            yield
    finally:
        seconds[stage] += time.perf_counter() - start


@dataclass
class UnitShard:
    """A unit's shard in the making. Its files are begun with the first sample: a unit of only rejects has none.

    Attributes:
        unit: the unit's name.
        layout: of the samples.
        attempt: owns the files.
        files: closes them.
        seconds: takes the time of writing.
        rejects: so far.
        written: samples so far.
        tar, writer: None before the first sample.
    """

    unit: str
    layout: Layout
    attempt: Attempt
    files: ExitStack
    seconds: Seconds
    rejects: list[Reject] = field(default_factory=list)
    written: int = 0
    tar: NewFile | None = None
    writer: ShardWriter | None = None

    def add(self, item: ShardSample | Reject) -> None:
        """Write a sample, or keep a reject."""
        if isinstance(item, Reject):
            self.rejects.append(item)
            return
        with timed(self.seconds, "write"):
            if self.writer is None:
                self.tar = self.files.enter_context(self.attempt.new_file(f"shards/{self.unit}.tar"))
                sidecar = self.files.enter_context(self.attempt.new_file(f"shards/{self.unit}.parquet"))
                self.writer = self.files.enter_context(ShardWriter(self.tar, sidecar, self.layout))
            self.writer.add(item)
            self.written += 1
