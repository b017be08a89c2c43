"""Work done ahead of its turn, in threads: what comes from a store waits for the network, not for us."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def done_ahead(
    action: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int, ahead: int
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with what became of it, in the items' order; what hasn't begun when nobody asks on is dropped.

    Args:
        action: called from several threads at once.
        items: taken one by one, as there is room.
        threads: how many work.
        ahead: so many items at most are at work or waiting to be taken.

    Raises:
        Whatever `action` raises, at its item's turn.
    """
    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    coming = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                for item in islice(coming, ahead - len(waiting)):
                    waiting.append((item, pool.submit(action, item)))
                if not waiting:
                    return
                item, future = waiting.popleft()
                yield item, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
