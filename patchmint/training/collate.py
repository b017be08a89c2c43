"""Samples -> a batch: stacked where shapes are fixed, padded and masked where they aren't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from patchmint.errors import InputError
from patchmint.samples import Turn
from patchmint.training.fields import StageSample
from patchmint.training.sequences import NOT_LEARNT, TokenSequence

NO_STATE = -1
"""Stands for "this sequence has no global state"."""

_BY_VIEW = ("pixels", "selector", "coverage", "features", "feature_selector", "feature_coverage")


@dataclass(frozen=True, eq=False)
class StageBatch:
    """A batch of B samples; what the stage doesn't have is None.

    Images with fewer views than V are padded with views of zeros, which `view_mask` leaves out.

    Attributes:
        keys: names of the samples in their data sets.
        datasets: for each sample the number of its data set.
        texts: the texts that were chosen.
        text_indices: which ones those are.
        conversations: the turns (stage 4); else empty ones.
        skipped: messages of damaged samples that were left out of this batch (`on_error="skip"`).
        view_mask: bool (B, V), True for real views; None where nothing has views.
        pixels: uint8 (B, V, 3, height, width).
        selector: uint8 (B, V, rows, cols), 0 or 1.
        coverage: uint8 (B, V, rows, cols), 0..255.
        codes: int64 (B, *grid[, codebooks]).
        features: float16 (B, V, tokens, channels).
        feature_selector: uint8 (B, V, rows, cols) of the features' grid.
        feature_coverage: uint8 (B, V, rows, cols) of the features' grid.
        input_ids: int64 (B, L), padded at the end; None where no sequences are made.
        labels: int64 (B, L), -100 where nothing is learnt.
        attention_mask: int64 (B, L), 1 for real ids.
        state_positions: int64 (B,): where in the sequence the selector's global state is; -1: nowhere.
    """

    keys: tuple[str, ...]
    datasets: tuple[int, ...]
    texts: tuple[str, ...]
    text_indices: tuple[int, ...]
    conversations: tuple[tuple[Turn, ...], ...]
    skipped: tuple[str, ...] = ()
    view_mask: torch.Tensor | None = None
    pixels: torch.Tensor | None = None
    selector: torch.Tensor | None = None
    coverage: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    features: torch.Tensor | None = None
    feature_selector: torch.Tensor | None = None
    feature_coverage: torch.Tensor | None = None
    input_ids: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    state_positions: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same with all tensors on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same with all tensors in pinned memory; torch's DataLoader calls this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        changed: dict[str, Any] = {name: change(value) for name, value in values if torch.is_tensor(value)}
        return replace(self, **changed)


def collate(samples: Sequence[StageSample], *, pad_id: int = 0, skipped: tuple[str, ...] = ()) -> StageBatch:
    """Make a batch; a `collate_fn` for torch's own DataLoader.

    Args:
        samples: of one `StageDataset`, at least one.
        pad_id: fills `input_ids` after a sequence's end; masked, so any id of the vocabulary will do.
        skipped: see `StageBatch`.

    Raises:
        InputError: there is no sample.
    """
    if not samples:
        raise InputError("there is no sample to make a batch of")
    tensors: dict[str, torch.Tensor] = {}
    for name in _BY_VIEW:
        given = [value for sample in samples if (value := getattr(sample, name)) is not None]
        if given:
            tensors[name] = _padded(given)
            tensors["view_mask"] = _mask([len(value) for value in given])
    codes = [sample.codes for sample in samples if sample.codes is not None]
    if codes:
        tensors["codes"] = torch.stack(codes)
    sequences = [sample.sequence for sample in samples if sample.sequence is not None]
    if sequences:
        tensors |= _sequences(sequences, pad_id)
    return StageBatch(
        keys=tuple(sample.key for sample in samples),
        datasets=tuple(sample.dataset for sample in samples),
        texts=tuple(sample.text for sample in samples),
        text_indices=tuple(sample.text_index for sample in samples),
        conversations=tuple(sample.conversation for sample in samples),
        skipped=skipped,
        **tensors,
    )


def _padded(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack along a new first axis; what is shorter along its own first axis is filled up with zeros."""
    longest = max(map(len, values))
    if all(len(value) == longest for value in values):
        return torch.stack(list(values))
    padded = values[0].new_zeros((len(values), longest, *values[0].shape[1:]))
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = value
    return padded


def _mask(lengths: Sequence[int]) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def _sequences(sequences: Sequence[TokenSequence], pad_id: int) -> dict[str, torch.Tensor]:
    lengths = [len(sequence.input_ids) for sequence in sequences]
    states = [NO_STATE if one.state_position is None else one.state_position for one in sequences]
    return {
        "input_ids": _filled([sequence.input_ids for sequence in sequences], pad_id),
        "labels": _filled([sequence.labels for sequence in sequences], NOT_LEARNT),
        "attention_mask": _mask(lengths).long(),
        "state_positions": torch.tensor(states),
    }


def _filled(rows: Sequence[npt.NDArray[np.int64]], value: int) -> torch.Tensor:
    filled = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for line, row in zip(filled, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(filled)
