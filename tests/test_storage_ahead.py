"""Work ahead in threads: in order, bounded, errors at their turn, nothing begun that nobody waits for."""

import threading
import time

import pytest

from patchmint.storage.ahead import done_ahead


def test_results_come_in_the_items_order_whoever_is_done_first():
    def slow_at_first(number):
        time.sleep(0.05 if number < 2 else 0)
        return number * number

    done = list(done_ahead(slow_at_first, range(20), threads=4, ahead=8))
    assert done == [(number, number * number) for number in range(20)]


def test_no_more_items_are_taken_than_may_wait():
    taken = []
    items = (taken.append(number) or number for number in range(100))
    for number, _ in done_ahead(lambda number: number, items, threads=2, ahead=5):
        assert len(taken) <= number + 5


def test_an_error_is_raised_at_its_items_turn():
    def fails_at_three(number):
        if number == 3:
            raise ValueError("three")
        return number

    done = done_ahead(fails_at_three, range(10), threads=4, ahead=8)
    assert [next(done)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(done)


def test_what_has_not_begun_is_dropped_when_nobody_asks_on():
    begun = []
    release = threading.Event()

    def wait(number):
        begun.append(number)
        if number:
            release.wait(10)
        return number

    done = done_ahead(wait, range(50), threads=1, ahead=20)
    next(done)
    threading.Timer(0.1, release.set).start()
    done.close()
    assert len(begun) <= 3
