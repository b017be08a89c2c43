"""Batches of a `StageDataset`, which can be resumed at any step.

Where shapes are fixed samples are stacked; where they aren't, they are padded and masked.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, count, islice, tee
from traceback import clear_frames
from typing import Any, Self

import numpy as np
import torch
from torch import Generator
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from patchmint.errors import ConfigError, InputError, ShardError
from patchmint.samples import Part, Turn
from patchmint.training.dataset import Group, StageDataset, checked_state
from patchmint.training.fields import StageImage, StageSample
from patchmint.training.sequences import NOT_LEARNT, TokenSequence
from patchmint.types import Integers

NO_STATE = -1
"""Stands for "this sequence has no global state"."""

_BY_VIEW = (
    "pixels",
    "selector",
    "coverage",
    "patch_mask",
    "features",
    "feature_mask",
    "feature_selector",
    "feature_coverage",
)
_OF_ANY_SIZE = 5
# Axes of features whose rows and columns depend on the image: batch, views, rows, columns, channels.
_EMPTY_IN_A_ROW = 100
# So many batches of nothing but damaged samples are no accident.


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """Token sequences of a batch of B samples, as long as the longest, L.

    Attributes:
        input_ids: int64 (B, L), padded at the end (or in front: `pad_left`).
        labels: int64 (B, L), -100 where nothing is learnt.
        attention_mask: int64 (B, L), 1 for real ids.
        state_positions: int64 (B,): where in the sequence the selector's global state is; -1: nowhere.
        image_positions: int64 (M, 5): for each image that is shown: the sequence, the image (0..N-1), and where in the
            sequence it begins, its slots begin, and it ends. Slots are the positions from the fourth up to, but not
            with, the fifth; `fill_slots` puts continuous tokens there.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor
    state_positions: torch.Tensor
    image_positions: torch.Tensor


class _OfTheOnlySequence:
    """A field of `SequenceBatch`, for batches with one sequence a sample."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, batch: StageBatch | None, owner: type) -> torch.Tensor:
        if batch is None or len(batch.sequences) != 1:
            names = ", ".join(batch.sequences) if batch else ""
            raise InputError(f"read {self._name} of the batch's `sequences`, of which there is not one ({names})")
        (only,) = batch.sequences.values()
        found: torch.Tensor = getattr(only, self._name)
        return found


@dataclass(frozen=True, eq=False)
class StageBatch:
    """A batch of B samples, or groups, with N images; what isn't included is None.

    The images of all samples follow each other: those of sample b are `image_offsets[b]` to `image_offsets[b + 1]`. Of
    pictures N is B. Images with fewer views than V are padded with views of zeros, which `view_mask` leaves out; those
    with fewer rows or columns with patches of zeros, which `patch_mask` leaves out.

    Attributes:
        keys: names of the samples in their data sets.
        datasets: for each sample the number of its data set.
        texts: the texts that were chosen.
        text_indices: which ones those are.
        conversations: the turns of pictures; else empty ones.
        parts: texts and images in their order, of documents and conversations; else empty ones.
        skipped: messages of samples that were left out of this batch (`on_error="skip"`, `max_images`).
        image_offsets: int64 (B + 1,): number of each sample's first image, and N.
        label_mask: bool (N,): whether the chosen text labels the image; where not, there is nothing to learn of it.
        trust: float32 (N,), 0..1: how far the labels can be relied on, a weight for the loss; None where no data set
            says so, 1 for images of those that don't.
        view_mask: bool (N, V), True for real views; None where nothing has views.
        pixels: uint8 (N, V, 3, height, width).
        images: uint8 (3, height, width) each, where the grid depends on the image; else empty.
        selector: uint8 (N, V, rows, cols), 0 or 1.
        coverage: uint8 (N, V, rows, cols), 0..255.
        patch_mask: bool (N, V, rows, cols), True for patches that show any of the image.
        token_order: int64 (N, tokens): which patch of `selector.flatten(1)` each image token of the consumer shows; -1
            for newlines, and after the image's last token.
        codes: int64 (N, *grid[, codebooks]); where the grid depends on the image, padded with zeros.
        code_mask: bool (N, rows, cols), True for codes whose cell shows any of the image; None where cells' place isn't
            known.
        features: float16 (N, V, tokens, channels); where the grid depends on the image, tokens are the patches of
            `feature_mask.flatten(2)`.
        feature_mask: bool (N, V, rows, cols) of the features' grid, True for patches that show any of the image.
        feature_selector: uint8 (N, V, rows, cols) of the features' grid.
        feature_coverage: uint8 (N, V, rows, cols) of the features' grid.
        sequences: what `sequences` of the data set made, by name. Where it made one, `input_ids` and the other fields
            of a `SequenceBatch` are the batch's, too.
    """

    keys: tuple[str, ...]
    datasets: tuple[int, ...]
    texts: tuple[str, ...]
    text_indices: tuple[int, ...]
    conversations: tuple[tuple[Turn, ...], ...]
    parts: tuple[tuple[Part, ...], ...]
    image_offsets: torch.Tensor
    skipped: tuple[str, ...] = ()
    images: tuple[torch.Tensor, ...] = ()
    label_mask: torch.Tensor | None = None
    trust: torch.Tensor | None = None
    view_mask: torch.Tensor | None = None
    pixels: torch.Tensor | None = None
    selector: torch.Tensor | None = None
    coverage: torch.Tensor | None = None
    patch_mask: torch.Tensor | None = None
    token_order: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    code_mask: torch.Tensor | None = None
    features: torch.Tensor | None = None
    feature_mask: torch.Tensor | None = None
    feature_selector: torch.Tensor | None = None
    feature_coverage: torch.Tensor | None = None
    sequences: Mapping[str, SequenceBatch] = field(default_factory=dict)

    input_ids = _OfTheOnlySequence()
    labels = _OfTheOnlySequence()
    attention_mask = _OfTheOnlySequence()
    state_positions = _OfTheOnlySequence()
    image_positions = _OfTheOnlySequence()

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same with all tensors on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same with all tensors in pinned memory; torch's DataLoader calls this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        sequences = {name: replace(one, **_changed(one, change)) for name, one in self.sequences.items()}
        return replace(self, **_changed(self, change), images=tuple(map(change, self.images)), sequences=sequences)


def _changed(batch: StageBatch | SequenceBatch, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    values = ((each.name, getattr(batch, each.name)) for each in fields(batch))
    return {name: change(value) for name, value in values if torch.is_tensor(value)}


def collate(
    samples: Sequence[StageSample], *, pad_id: int = 0, pad_left: bool = False, skipped: tuple[str, ...] = ()
) -> StageBatch:
    """Make a batch; a `collate_fn` for torch's own DataLoader.

    Args:
        samples: of one `StageDataset`, at least one.
        pad_id: fills `input_ids` after a sequence's end; masked, so any id of the vocabulary will do.
        pad_left: fill up sequences in front, as transformers' `generate` wants prompts.
        skipped: see `StageBatch`.

    Raises:
        InputError: there is no sample, or samples have sequences of other names.
    """
    if not samples:
        raise InputError("there is no sample to make a batch of")
    if len({frozenset(sample.sequences) for sample in samples}) > 1:
        raise InputError(
            "the samples have sequences of different names; give each of them all, a text alone if need be"
        )
    images = [image for sample in samples for image in sample.images]
    tensors: dict[str, torch.Tensor] = {}
    for name in _BY_VIEW:
        given = [value for image in images if (value := getattr(image, name)) is not None]
        if given:
            tensors[name] = _padded(given)
            tensors["view_mask"] = _mask([len(value) for value in given])
    if "features" in tensors and tensors["features"].ndim == _OF_ANY_SIZE:
        tensors["features"] = tensors["features"].flatten(2, 3)
    orders = [_moved(image, tensors["selector"]) for image in images if image.token_order is not None]
    if orders:
        tensors["token_order"] = torch.from_numpy(_filled(orders, -1))
        tensors["label_mask"] = torch.tensor([image.labelled for image in images])
    if any(image.trust is not None for image in images):
        tensors["trust"] = torch.tensor([1.0 if image.trust is None else image.trust for image in images])
    for name in ("codes", "code_mask"):
        stacked = [value for image in images if (value := getattr(image, name)) is not None]
        if stacked:
            tensors[name] = _padded(stacked)
    offsets = [0, *accumulate(len(sample.images) for sample in samples)]
    return StageBatch(
        keys=tuple(sample.key for sample in samples),
        datasets=tuple(sample.dataset for sample in samples),
        texts=tuple(sample.text for sample in samples),
        text_indices=tuple(sample.text_index for sample in samples),
        conversations=tuple(sample.conversation for sample in samples),
        parts=tuple(sample.parts for sample in samples),
        image_offsets=torch.tensor(offsets),
        skipped=skipped,
        images=tuple(image.image for image in images if image.image is not None),
        sequences={
            name: _sequences([sample.sequences[name] for sample in samples], offsets, pad_id, left=pad_left)
            for name in samples[0].sequences
        },
        **tensors,
    )


def _padded(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack along a new first axis; what is shorter along an axis of its own is filled up with zeros."""
    shape = [max(lengths) for lengths in zip(*(value.shape for value in values), strict=True)]
    if all(list(value.shape) == shape for value in values):
        return torch.stack(list(values))
    padded = values[0].new_zeros((len(values), *shape))
    for row, value in zip(padded, values, strict=True):
        row[tuple(map(slice, value.shape))] = value
    return padded


def _moved(image: StageImage, padded: torch.Tensor) -> Integers:
    """An image's token order over the patches of the batch, whose views may have more rows and columns."""
    assert image.token_order is not None
    assert image.selector is not None
    order = image.token_order.numpy()
    places = np.unravel_index(order.clip(0), image.selector.shape)
    return np.where(order < 0, -1, np.ravel_multi_index(places, padded.shape[1:]))


def _mask(lengths: Sequence[int]) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def _sequences(sequences: Sequence[TokenSequence], offsets: Sequence[int], pad_id: int, *, left: bool) -> SequenceBatch:
    lengths = np.array([len(sequence.input_ids) for sequence in sequences])
    starts = lengths.max() - lengths if left else np.zeros_like(lengths)
    states = [NO_STATE if one.state_position is None else one.state_position for one in sequences]
    shown = [
        np.insert(one.image_positions + np.array([offset, start, start, start]), 0, row, axis=1)
        for row, (one, offset, start) in enumerate(zip(sequences, offsets[:-1], starts, strict=True))
    ]
    return SequenceBatch(
        torch.from_numpy(_filled([sequence.input_ids for sequence in sequences], pad_id, starts)),
        torch.from_numpy(_filled([sequence.labels for sequence in sequences], NOT_LEARNT, starts)),
        torch.from_numpy(_filled([np.ones(length, np.int64) for length in lengths], 0, starts)),
        torch.from_numpy(np.where(np.array(states) == NO_STATE, NO_STATE, states + starts)),
        torch.from_numpy(np.concatenate(shown)),
    )


def _filled(rows: Sequence[Integers], value: int, starts: Integers | None = None) -> Integers:
    filled = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for line, row, start in zip(filled, rows, starts if starts is not None else [0] * len(rows), strict=True):
        line[start : start + len(row)] = row
    return filled


class StageLoader:
    """Batches of one rank, the same ones with any number of workers.

    Iterating gives the rest of the present epoch; iterating again gives the next one, in its own order. What counts as
    given is what was handed out: batches that workers have prepared ahead are made again after a resume.

    Args:
        dataset: the samples.
        batch_size: samples, or groups, of a batch.
        num_workers: processes that read and decode; 0: this one.
        drop_last: leave out an epoch's last batch where it is smaller than the others.
        pad_id: fills `input_ids` after a sequence's end.
        pad_left: fill up sequences in front, as transformers' `generate` wants prompts.
        pin_memory: copy batches to pinned memory, for a faster way to the GPU.
        prefetch_factor: batches that each worker prepares ahead; None: torch's 2.
        multiprocessing_context: "fork", "spawn" or "forkserver". None: "spawn" for object stores, whose connections
            don't survive a fork, else torch's own.

    Attributes:
        epoch: the present one, from 0.
        batch: batches of it that were handed out.
        skipped: samples left out of the batches handed out.

    Raises:
        ConfigError: there isn't one batch in an epoch.
    """

    def __init__(
        self,
        dataset: StageDataset,
        batch_size: int,
        *,
        num_workers: int = 0,
        drop_last: bool = False,
        pad_id: int = 0,
        pad_left: bool = False,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        multiprocessing_context: str | None = None,
    ) -> None:
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(f"batch_size ({batch_size}) must be at least 1, num_workers ({num_workers}) at least 0")
        self._dataset = dataset
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._padding: dict[str, Any] = {"pad_id": pad_id, "pad_left": pad_left}
        if num_workers and multiprocessing_context is None and not dataset.is_local:
            multiprocessing_context = "spawn"
        self._options: dict[str, Any] = {
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            "prefetch_factor": prefetch_factor,
            "multiprocessing_context": multiprocessing_context,
            "worker_init_fn": _end_without_a_fuss,
        }
        samples = dataset.samples_of_rank
        self._batches = samples // batch_size if drop_last else -(-samples // batch_size)
        if not self._batches:
            raise ConfigError(f"an epoch of {samples} samples has no full batch of {batch_size}; make batches smaller")
        if dataset.has_begun:
            raise ConfigError(
                "the data set has an epoch or a position set, which a StageLoader keeps itself; give it one that "
                "hasn't, and use the loader's load_state_dict or set_epoch"
            )
        self._running: Iterator[StageBatch | tuple[str, ...]] | None = None
        self._empty = 0
        self.epoch = self.batch = self.skipped = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._batches

    def __iter__(self) -> Iterator[StageBatch]:
        """The rest of the present epoch's batches.

        Raises:
            ShardError: a sample is damaged; or all of 100 batches in a row are left out.
            InputError: `sequences` refuses a sample.
            StorageError: a shard can't be read.
        """
        epoch = self.epoch
        while self.epoch == epoch:
            batch = self._next()
            if isinstance(batch, StageBatch):
                yield batch

    @property
    def identity(self) -> dict[str, Any]:
        """What a state of this loader belongs to."""
        return self._dataset.identity | {"batch_size": self._batch_size, "drop_last": self._drop_last}

    def state_dict(self) -> dict[str, Any]:
        """Where this loader is, as plain values; the same on all ranks that have taken equally many steps."""
        return {"epoch": self.epoch, "batch": self.batch, "of": self.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken; the number of workers may be another.

        Raises:
            ConfigError: it belongs to other data or settings.
        """
        epoch, batch = checked_state(state, self.identity, "batch")
        self._go_to(epoch, batch)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; the present one is gone on with, also in its middle.

        Raises:
            ConfigError: there is no such epoch.
        """
        if epoch < 0:
            raise ConfigError(f"there is no epoch {epoch}; the first is 0")
        if epoch != self.epoch:
            self._go_to(epoch, 0)

    def close(self) -> None:
        """End the workers. Iterating starts new ones."""
        self._running = None

    def _go_to(self, epoch: int, batch: int) -> None:
        self.close()
        self.epoch, self.batch = epoch + batch // self._batches, batch % self._batches

    def _next(self) -> StageBatch | tuple[str, ...]:
        """The next batch; where all of its samples were skipped, why."""
        if self._running is None:
            self._running = self._start()
        try:
            batch = next(self._running)
        except BaseException as error:
            # What the workers have made ahead can't be put in order any more. torch's frames would keep its iterator
            # for the garbage collector, which takes its queues apart first; then it waits 5 s for each worker.
            clear_frames(error.__traceback__)
            self.close()
            raise
        self.epoch, self.batch = divmod(self.epoch * self._batches + self.batch + 1, self._batches)
        empty = not isinstance(batch, StageBatch)
        skipped = batch.skipped if isinstance(batch, StageBatch) else batch
        self.skipped += len(skipped)
        self._empty = self._empty + 1 if empty else 0
        if self._empty == _EMPTY_IN_A_ROW:
            raise ShardError(f"all samples of {self._empty} batches in a row were left out, the last: {skipped[0]}")
        return batch

    def _start(self) -> Iterator[StageBatch | tuple[str, ...]]:
        first = self.epoch * self._batches + self.batch
        batches = _Batches(self._dataset, first, self._batches, self._batch_size, self._padding)
        # With a generator of its own the loader leaves torch's global random numbers alone: a run that was resumed
        # sees the same ones as one that wasn't. Batches come complete, so torch has nothing to collate.
        return iter(DataLoader(batches, batch_size=None, collate_fn=_as_it_is, generator=Generator(), **self._options))


def _end_without_a_fuss(worker: int) -> None:  # noqa: ARG001 (torch gives it)
    """Have a worker end as one that was forked does, without taking the interpreter down.

    Workers are ended while they make batches ahead. The thread that hands one over may be in torch's C++ then; Python
    up to 3.13 unwinds a daemon thread that comes back to an interpreter that is gone, and C++ aborts.
    """
    atexit.register(os._exit, 0)


class _Batches(IterableDataset["StageBatch | tuple[str, ...]"]):
    """All batches from one on, epoch after epoch; of W workers each makes every W-th, as torch asks them in turn."""

    def __init__(
        self, dataset: StageDataset, first: int, per_epoch: int, batch_size: int, padding: Mapping[str, Any]
    ) -> None:
        self._dataset = dataset
        self._first = first
        self._per_epoch = per_epoch
        self._batch_size = batch_size
        self._padding = padding

    def __iter__(self) -> Iterator[StageBatch | tuple[str, ...]]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        # Reading looks ahead of what is collated.
        wanted, to_read = tee(map(self._places, count(self._first + part, parts)))
        samples = self._dataset.stream(place for places in to_read for place in places)
        for places in wanted:
            yield self._collated(list(islice(samples, len(places))))

    def _places(self, number: int) -> list[Group]:
        epoch, batch = divmod(number, self._per_epoch)
        start = batch * self._batch_size
        end = min(start + self._batch_size, self._dataset.samples_of_rank)
        return self._dataset.places(epoch, np.arange(start, end, dtype=np.int64))

    def _collated(self, found: list[StageSample | str]) -> StageBatch | tuple[str, ...]:
        skipped = tuple(one for one in found if isinstance(one, str))
        samples = [one for one in found if isinstance(one, StageSample)]
        return collate(samples, skipped=skipped, **self._padding) if samples else skipped


def _as_it_is(batch: Any) -> Any:
    return batch
