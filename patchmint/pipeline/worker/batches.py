"""Batches of images that are alike, out of a bounded stretch of a unit."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import accumulate
from typing import TypeVar

_Item = TypeVar("_Item")

BATCHES_AHEAD = 4
_MOST_BYTES = 2**30
"""Of pixels that wait for their batch, decoded and resized."""
_MOST_BYTES_OF_A_BATCH = 2**29


def like_batches(
    items: Iterable[_Item],
    size: Callable[[], int],
    key: Callable[[_Item], Hashable],
    weight: Callable[[_Item], int],
    *,
    ahead: int = BATCHES_AHEAD,
    most: int = _MOST_BYTES,
    most_of_a_batch: int = _MOST_BYTES_OF_A_BATCH,
) -> Iterator[list[tuple[int, _Item]]]:
    """Batches in which items with equal keys stand together, each with its number from 0; full ones wherever possible.

    A batch always has the oldest item that is left, so none falls behind: it and the newest one that was taken are less
    than `ahead` batches apart. Which items share a batch depends on the items alone, and on no clock.

    Args:
        items: taken as they are needed.
        size: of a batch; asked anew for each.
        key: what makes two items alike.
        weight: bytes of an item.
        ahead: so many batches' items are looked at.
        most: no further item is looked at for its likeness while those that wait weigh more.
        most_of_a_batch: a batch weighs no more, but for one of a single item.
    """
    window: dict[int, _Item] = {}
    coming = enumerate(items)
    number, weighs = -1, 0
    while True:
        count = size()
        oldest = next(iter(window), number + 1)
        # nothing to choose from for batches of one
        reach = oldest + count * (ahead if count > 1 else 1)
        while number + 1 < reach and weighs < (most if len(window) >= count else most_of_a_batch):
            found = next(coming, None)
            if found is None:
                break
            number, item = found
            window[number] = item
            weighs += weight(item)
        if not window:
            return
        places = _chosen(window, count, key, weight, most_of_a_batch)
        weighs -= sum(weight(window[place]) for place in places)
        yield [(place, window.pop(place)) for place in places]  # nothing here holds a batch that was handed over


def _chosen(
    window: dict[int, _Item],
    count: int,
    key: Callable[[_Item], Hashable],
    weight: Callable[[_Item], int],
    most: int,
) -> list[int]:
    """The oldest item, those like it, then the oldest others, as long as all weigh no more than `most`; in order."""
    keys = {number: key(item) for number, item in window.items()}
    wanted = next(iter(keys.values()))
    ranked = sorted(keys, key=lambda number: (keys[number] != wanted, number))
    weights = accumulate(weight(window[number]) for number in ranked[:count])
    fitting = sum(total <= most for total in weights)
    return sorted(ranked[: max(1, fitting)])
