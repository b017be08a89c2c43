"""Work done ahead of its turn, in threads: what comes from a store waits for the network, not for us."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from threading import Event
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_SECONDS = 1.0


def done_ahead(
    action: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    threads: int,
    ahead: int,
    meanwhile: Callable[[], None] = lambda: None,
    over: Event | None = None,
) -> Generator[tuple[_Item, _Result], None, None]:
    """Each item with what became of it, in the items' order; what hasn't begun when nobody asks on is dropped.

    Args:
        action: called from several threads at once.
        items: taken one by one, as there is room.
        threads: how many work.
        ahead: so many items at most are at work or waiting to be taken.
        meanwhile: called once a second while the next one isn't done; what it raises ends the work.
        over: is set when nobody asks on, for an action that takes long.

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
                while not wait([future], _SECONDS).done:
                    meanwhile()
                yield item, future.result()
        finally:
            if over is not None:
                over.set()
            for _, future in waiting:
                future.cancel()
