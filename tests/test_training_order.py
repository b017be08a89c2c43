"""The order of samples: every one once, by seed and epoch alone, any place found without what comes before it."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchmint.errors import ConfigError
from patchmint.training.order import MixedOrder, Share, permutation, share_of

SHARDS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def order(counts, draws=None, seed=0, window=7, shuffle=True):
    shards = [np.array(one, np.int64) for one in counts]
    return MixedOrder(shards, draws or [sum(one) for one in counts], seed=seed, window=window, shuffle=shuffle)


def whole(one, epoch):
    return one.places(epoch, np.arange(one.samples))


@given(st.lists(SHARDS, min_size=1, max_size=3), st.integers(1, 20), st.booleans(), st.integers(0, 3))
@settings(max_examples=60)
def test_every_sample_once_an_epoch(counts, window, shuffle, epoch):
    places = whole(order(counts, window=window, shuffle=shuffle), epoch)
    wanted = {(number, index) for number, one in enumerate(counts) for index in range(sum(one))}
    assert {(place.dataset, place.index) for place in places} == wanted
    assert len(places) == len(wanted)
    assert {place.epoch for place in places} == {epoch}


@given(
    st.lists(SHARDS, min_size=1, max_size=3), st.lists(st.integers(1, 30), min_size=3, max_size=3), st.integers(1, 9)
)
@settings(max_examples=60)
def test_draws_are_exact_and_a_data_set_goes_on_where_it_stopped(counts, draws, window):
    draws = draws[: len(counts)]
    one = order(counts, draws, window=window)
    seen = Counter()
    for epoch in range(5):
        places = whole(one, epoch)
        assert Counter(place.dataset for place in places) == dict(enumerate(draws))
        seen.update((place.dataset, place.epoch, place.index) for place in places)
    assert set(seen.values()) == {1}  # nothing twice within a data set's own epoch
    for number, shards in enumerate(counts):
        finished = 5 * draws[number] // sum(shards)
        own = Counter(epoch for dataset, epoch, _ in seen if dataset == number)
        assert all(own[epoch] == sum(shards) for epoch in range(finished))


@given(st.lists(SHARDS, min_size=1, max_size=3), st.data())
@settings(max_examples=40)
def test_any_positions_alone_are_as_in_the_whole(counts, data):
    one = order(counts)
    positions = data.draw(st.lists(st.integers(0, one.samples - 1), min_size=1, max_size=20))
    places = whole(one, 2)
    fresh = pickle.loads(pickle.dumps(one))
    assert fresh.places(2, np.array(positions)) == [places[position] for position in positions]


def test_epochs_and_seeds_differ_and_runs_dont():
    counts = [[20, 30, 10], [15, 25]]
    orders = [whole(order(counts, seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    indices = [tuple((place.dataset, place.index) for place in one) for one in orders]
    assert len(set(indices)) == 4
    assert whole(order(counts), 1) == orders[1]
    # Two data sets of one form don't come in one order.
    twins = whole(order([[50], [50]]), 0)
    first, second = ([place.index for place in twins if place.dataset == number] for number in (0, 1))
    assert first != second


def test_the_order_stays_what_it_is():
    """A resumed run must find the order that it began with, also with other versions of numpy and patchmint."""
    assert permutation(10, 1, 2, 3).tolist() == [8, 1, 9, 3, 7, 5, 2, 0, 4, 6]
    places = order([[3, 4], [5]], seed=5, window=4).places(1, np.arange(12))
    assert [place.dataset for place in places] == [0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1]
    assert [place.index for place in places] == [4, 3, 3, 2, 6, 5, 1, 0, 4, 1, 2, 0]


def test_windows_hold_whole_shards_and_blends_are_even():
    places = whole(order([[10] * 10, [10] * 30], window=40), 3)
    for start in range(0, 400, 40):
        block = Counter(place.dataset for place in places[start : start + 40])
        assert block == {0: 10, 1: 30}
    alone = whole(order([[10] * 10], window=20), 0)
    for start in range(0, 100, 20):
        assert len({place.index // 10 for place in alone[start : start + 20]}) == 2
    positions = [place.index for place in alone]
    assert positions != sorted(positions)


def test_unshuffled_is_as_stored():
    places = whole(order([[3, 2], [4]], shuffle=False), 6)
    assert [(place.dataset, place.index) for place in places] == [(0, i) for i in range(5)] + [(1, i) for i in range(4)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("remainder", ["keep", "drop", "repeat"])
def test_ranks(world_size, remainder):
    shares = [Share(rank, world_size, remainder) for rank in range(world_size)]
    parts = [share.positions(np.arange(share.length(20)), 20).tolist() for share in shares]
    seen = Counter(position for part in parts for position in part)
    lengths = {len(part) for part in parts}
    match remainder:
        case "keep":
            assert seen == Counter(range(20))
            assert max(lengths) - min(lengths) <= 1
        case "drop":
            assert seen == Counter(range(20 // world_size * world_size))
            assert len(lengths) == 1
        case "repeat":
            assert set(seen) == set(range(20))
            assert lengths == {-(-20 // world_size)}
            assert max(seen.values()) <= 2
    # Ranks side by side walk through the order together.
    assert [part[0] for part in parts] == list(range(world_size))


def test_fewer_samples_than_ranks():
    with pytest.raises(ConfigError, match="leaves some of 3 ranks without any"):
        Share(0, 3, "keep").length(2)
    share = Share(2, 3, "repeat")
    assert share.positions(np.arange(share.length(2)), 2).tolist() == [0]


def test_which_rank_this_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert share_of(None, None, "keep") == Share(0, 1, "keep")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert share_of(None, None, "drop") == Share(2, 4, "drop")
    assert share_of(0, 3, "keep") == Share(0, 3, "keep")
    for name, value in (("is_initialized", True), ("get_rank", 5), ("get_world_size", 6)):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    assert share_of(None, None, "keep") == Share(5, 6, "keep")


@pytest.mark.parametrize(
    ("rank", "world_size", "remainder", "says"),
    [
        (1, None, "keep", "give both"),
        (None, 2, "keep", "give both"),
        (2, 2, "keep", "no rank 2 among 2"),
        (-1, 2, "keep", "no rank -1"),
        (0, 0, "keep", "no rank 0 among 0"),
        (0, 1, "half", "choose keep, drop or repeat"),
    ],
)
def test_wrong_ranks(rank, world_size, remainder, says):
    with pytest.raises(ConfigError, match=says):
        share_of(rank, world_size, remainder)


def test_a_wrong_environment(monkeypatch):
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ConfigError, match="only one is set"):
        share_of(None, None, "keep")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="must be whole numbers"):
        share_of(None, None, "keep")
