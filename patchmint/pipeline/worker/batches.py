"""Batches of samples whose images are alike, out of a bounded stretch of a unit; and how large they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, TypeVar

import numpy as np
import torch

from patchmint.annotate.models import AnnotationModels, cpu_batch_size
from patchmint.compute.memory import ran_out
from patchmint.config.build import (
    BATCHES_AHEAD,
    MOST_BYTES_OF_A_BATCH,
    MOST_BYTES_WAITING,
    LocalRunner,
    RayRunner,
)
from patchmint.types import Text

_Item = TypeVar("_Item")

_SHARE = 0.8
"""Of a GPU's free memory. Texts and boxes can't be foreseen; what is left over is for more of them than usual."""
_LARGEST = (800, 1333)
"""As large as Grounding DINO makes any image, in pixels (height, width)."""
_LEAST_IMAGES, _MOST_IMAGES = 16, 64
"""The least is what models have for several passes of their own; fewer only where memory is short."""
_TEXTS, _BOXES = 5, 50
"""Of each image of a trial: as many as COCO has captions, and ten boxes each."""
_CAPTION = "a brown cat is asleep on a small red sofa beside a window"
_CALM = 16
"""Batches before a larger one is tried again, the first time."""
_GAIN = 1.05
"""Images a second of a batch twice as large must be at least this many times those of the smaller one."""


def like_batches(
    items: Iterable[tuple[int, _Item]],
    size: Callable[[], int],
    key: Callable[[_Item], Hashable],
    weight: Callable[[_Item], int],
    *,
    count: Callable[[_Item], int] = lambda _: 1,
    looked: int = -1,
    waiting: int = 0,
    ahead: int = BATCHES_AHEAD,
    most: int = MOST_BYTES_WAITING,
    most_of_a_batch: int = MOST_BYTES_OF_A_BATCH,
) -> Iterator[list[tuple[int, _Item]]]:
    """Batches in which items with equal keys stand together; full ones wherever possible.

    A batch always has the oldest item that is left, so none falls behind: it and the newest one that was taken are less
    than `ahead` batches apart. Which items share a batch depends on the items alone, and on no clock. So a run that
    resumes after some batches makes the same ones from then on.

    Args:
        items: numbers, ascending, and items; taken as they are needed.
        size: images of a batch; asked anew for each.
        key: what makes two items alike.
        weight: bytes of an item.
        count: images of an item.
        looked: the last number that an interrupted run had taken.
        waiting: so many of the first items that run had taken too, but not handed over in a batch that was finished.
        ahead: so many batches' items are looked at.
        most: no further item is looked at for its likeness while those that wait weigh more.
        most_of_a_batch: a batch weighs no more, but for one of a single item.
    """
    coming = iter(items)
    window = dict(islice(coming, waiting))
    number, weighs, held = looked, sum(map(weight, window.values())), sum(map(count, window.values()))
    while True:
        wanted = size()
        # nothing to choose from for batches of one
        reach = wanted * (ahead if wanted > 1 else 1)
        # from the oldest item on, not from a gap before it: a run that resumes here knows nothing of the gap
        while not window or (
            number + 1 < next(iter(window)) + reach
            and held < reach
            and weighs < (most if held >= wanted else most_of_a_batch)
        ):
            found = next(coming, None)
            if found is None:
                break
            number, item = found
            window[number] = item
            weighs += weight(item)
            held += count(item)
        if not window:
            return
        positions = _chosen(window, wanted, key, weight, count, most_of_a_batch)
        weighs -= sum(weight(window[position]) for position in positions)
        held -= sum(count(window[position]) for position in positions)
        # nothing here holds a batch that was handed over
        yield [(position, window.pop(position)) for position in positions]


def _chosen(
    window: dict[int, _Item],
    size: int,
    key: Callable[[_Item], Hashable],
    weight: Callable[[_Item], int],
    count: Callable[[_Item], int],
    most: int,
) -> list[int]:
    """The oldest item, those like it, then the oldest others, until they are too many or too heavy; in order."""
    keys = {number: key(item) for number, item in window.items()}
    wanted = next(iter(keys.values()))
    ranked = sorted(keys, key=lambda number: (keys[number] != wanted, number))
    weights = accumulate(weight(window[number]) for number in ranked[:size])
    counts = accumulate(count(window[number]) for number in ranked[:size])
    fitting = sum(total <= most and images <= size for total, images in zip(weights, counts, strict=True))
    return sorted(ranked[: max(1, fitting)])


def pieces(
    items: Sequence[_Item], size: int, weight: Callable[[_Item], int], most: int = MOST_BYTES_OF_A_BATCH
) -> Iterator[list[_Item]]:
    """Cut a batch with a document of more images than it should have: in order, none too long or too heavy.

    Args:
        items: images.
        size: of a piece.
        weight: bytes of an item.
        most: a piece weighs no more, but for one of a single item.
    """
    piece, weighs = list[_Item](), 0
    for item in items:
        if piece and (len(piece) >= size or weighs + weight(item) > most):
            yield piece
            piece, weighs = [], 0
        piece.append(item)
        weighs += weight(item)
    if piece:
        yield piece


def choose_batch_size(
    models: AnnotationModels, runner: LocalRunner | RayRunner, device: str, cuda: Any = torch.cuda
) -> int:
    """The configured size; else on a CPU one by the size of the models' inputs, on a GPU one that is tried out.

    Args:
        models: on the device.
        runner: the settings.
        device: "cpu", "cuda" or "cuda:N".
        cuda: what measures and counts GPUs.
    """
    if runner.batch_size is not None:
        return runner.batch_size
    if not device.startswith("cuda"):
        return cpu_batch_size(models)
    free, _ = cuda.mem_get_info(device)
    budget = int(free * _SHARE / _sharing(runner, cuda))
    found = _largest_that_pays(lambda images: _tried(models, images, device, cuda), budget)
    cuda.empty_cache()
    return found


def _sharing(runner: LocalRunner | RayRunner, cuda: Any) -> int:
    """How many workers have a GPU between them."""
    if isinstance(runner, RayRunner):
        return round(1 / runner.num_gpus) if 0 < runner.num_gpus < 1 else 1
    spread = cuda.device_count() if runner.device in ("auto", "cuda") else 1
    return -(-runner.workers // max(1, spread))


def _tried(models: AnnotationModels, images: int, device: str, cuda: Any) -> _Trial | None:
    noise = np.random.default_rng(0).integers(0, 255, (*_LARGEST, 3), dtype=np.uint8)
    batch, texts = [noise] * images, [[Text(_CAPTION)] * _TEXTS] * images
    inputs = [models.prepare(noise)] * images  # in a build that is done ahead
    try:
        models.rehearse(batch, texts, inputs, _BOXES)  # the first time is slower: kernels are chosen, memory is taken
        cuda.synchronize(device)
        cuda.reset_peak_memory_stats(device)
        before, start = cuda.memory_allocated(device), time.perf_counter()
        models.rehearse(batch, texts, inputs, _BOXES)
        cuda.synchronize(device)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return None
    finally:
        cuda.empty_cache()
    return _Trial(time.perf_counter() - start, cuda.max_memory_allocated(device) - before)


@dataclass(frozen=True)
class _Trial:
    """What a batch took.

    Attributes:
        seconds: of the batch.
        bytes: the most of the device's memory that it held, models not counted.
    """

    seconds: float
    bytes: int


def _largest_that_pays(measure: Callable[[int], _Trial | None], budget: int) -> int:
    """How many images a batch should have: doubled as long as it fits and pays, or halved until it fits.

    Args:
        measure: tries a batch of that many of the largest images; None if memory ran out.
        budget: bytes that a batch may take.

    Returns:
        1 if even two images are too many.
    """
    best, trial = _LEAST_IMAGES, measure(_LEAST_IMAGES)
    while best > 1 and (trial is None or trial.bytes > budget):
        best //= 2
        trial = measure(best) if best > 1 else None
    while trial is not None and 2 * best <= _MOST_IMAGES and 2 * trial.bytes <= budget and best >= _LEAST_IMAGES:
        twice = measure(2 * best)
        if twice is None or twice.bytes > budget or 2 * trial.seconds < _GAIN * twice.seconds:
            break
        best, trial = 2 * best, twice
    return best


class BatchSize:
    """How many images a batch has: fewer once memory ran out, and more again after a while in which it didn't.

    That while doubles each time: images that are too large for a batch may be few, or all that follow.

    Attributes:
        now: images.
    """

    def __init__(self, most: int) -> None:
        """Begin with the most."""
        self.now = self._most = most
        self._calm, self._needed = 0, _CALM

    def ran_out(self, images: int) -> None:
        """A batch of so many was too large."""
        self.now = max(1, min(self.now, images // 2))
        self._calm, self._needed = 0, 2 * self._needed

    def went_well(self) -> None:
        """A batch wasn't."""
        self._calm += 1
        if self.now < self._most and self._calm >= self._needed:
            self.now, self._calm = min(self._most, 2 * self.now), 0
