"""Where samples wait, on disk, until it is known which of their keys repeat."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchmint.errors import StorageError
from patchmint.pipeline.plan.keys import Repeats, key_of, marked
from patchmint.samples import PlannedSample, SourceSample
from patchmint.shards.plan_parts import SCHEMA, storable, to_batch

Progress = Callable[[int], None]
"""Called with the number of samples read so far."""

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


@contextmanager
def spooled(
    samples: Iterable[SourceSample], samples_per_unit: int, progress: Progress | None
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Number the samples and give each a unique key; they pass through temporary files, a unit in memory at a time.

    Args:
        samples: in the source's order, which is kept.
        samples_per_unit: rows of each batch; the last may have fewer.
        progress: called with the number of samples read so far.

    Yields:
        The units' batches, of `rows.SCHEMA`.

    Raises:
        StorageError: the disk for temporary files is full.
    """
    # Neither file has a name: nothing is left of them whatever happens. Closing one writes what is still buffered.
    with _disk_space(), tempfile.TemporaryFile(prefix="patchmint-plan-") as file:
        with Repeats() as repeats:
            with pa.ipc.new_stream(file, SCHEMA, options=_OPTIONS) as stream:
                for unit in _numbered(samples, samples_per_unit, progress):
                    repeats.add([sample.key for sample in unit])
                    stream.write_batch(to_batch(unit))
            bits = repeats.find()
        file.seek(0)
        yield _with_marks(pa.ipc.open_stream(file), bits)


def _numbered(
    samples: Iterable[SourceSample], samples_per_unit: int, progress: Progress | None
) -> Iterator[list[PlannedSample]]:
    numbered = enumerate(samples)
    while chunk := [
        PlannedSample(ordinal, sample.key or key_of(sample.id), sample)
        for ordinal, sample in ((ordinal, storable(sample)) for ordinal, sample in islice(numbered, samples_per_unit))
    ]:
        yield chunk
        if progress is not None:
            progress(chunk[-1].ordinal + 1)


def _with_marks(batches: Iterable[pa.RecordBatch], bits: npt.NDArray[np.uint8]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        ordinals = batch["ordinal"].to_numpy()
        repeats = np.flatnonzero(bits[ordinals // 8] & (128 >> (ordinals % 8)).astype(np.uint8))
        if repeats.size:
            keys = batch["key"].to_pylist()
            for row in repeats:
                keys[row] = marked(keys[row], int(ordinals[row]))
            batch = batch.set_column(batch.schema.get_field_index("key"), SCHEMA.field("key"), pa.array(keys))
        yield batch


@contextmanager
def _disk_space() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(
            f"the disk is full in {tempfile.gettempdir()}, where samples wait while the plan is made (some 100 to 500 "
            "bytes each); free some space, or name another folder in the TMPDIR variable"
        ) from error
