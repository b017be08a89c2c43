"""Batches: every sample once whoever reads it, and after a stop at any step exactly what would have come."""

import json
import pickle
from dataclasses import replace
from itertools import chain, islice, repeat

import numpy as np
import pytest
import torch
from shard_data import copy
from test_training_dataset import damaged, overwrite, refuse, spell
from torch.utils.data import DataLoader
from training_data import LOADER_WARNINGS, RICH, cut, digest, finished, samples

from patchmint.errors import ConfigError, InputError, ShardError
from patchmint.training.dataset import StageDataset
from patchmint.training.loader import StageLoader, collate

pytestmark = LOADER_WARNINGS

WITHOUT_PIXELS = ("labels", "codes", "features")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("loader") / "set", cut(samples(13, layout=RICH), 4, 3, 6), layout=RICH)


def loader(data, *, batch=3, workers=0, include=WITHOUT_PIXELS, drop_last=False, **options):
    dataset = StageDataset(data, include=include, shuffle_window=5, **options)
    return StageLoader(dataset, batch, num_workers=workers, drop_last=drop_last)


def first_rank(data, workers=0):
    return loader(data, batch=2, rank=0, world_size=2, sequences=spell, workers=workers)


def digests(batches):
    return [digest(batch) for batch in batches]


@pytest.fixture(scope="module")
def expected(data):
    """Three epochs of two ranks' first."""
    one = first_rank(data)
    return [found for _ in range(3) for found in digests(one)]


def test_two_ranks_of_two_workers_see_every_sample_once(data):
    ranks = [loader(data, workers=2, rank=rank, world_size=2) for rank in (0, 1)]
    alone = [loader(data, rank=rank, world_size=2) for rank in (0, 1)]
    orders = set()
    for epoch in range(2):
        seen = [list(one) for one in ranks]
        keys = [key for batches in seen for batch in batches for key in batch.keys]
        assert sorted(keys) == [f"s{number:04}" for number in range(13)]
        orders.add(tuple(keys))
        assert [digests(batches) for batches in seen] == [digests(one) for one in alone]
        assert [one.epoch for one in ranks] == [epoch + 1] * 2
    assert len(orders) == 2


@pytest.mark.parametrize(
    ("before", "after", "stop"), [*((0, 0, stop) for stop in range(12)), (2, 2, 1), (2, 1, 3), (0, 2, 5), (2, 0, 6)]
)
def test_a_stop_at_any_step_and_other_workers_after_it(data, expected, before, after, stop):
    begun = first_rank(data, before)
    given = digests(islice(chain.from_iterable(repeat(begun)), stop))
    assert given == expected[:stop]
    resumed = first_rank(data, after)
    resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    assert (resumed.epoch, resumed.batch) == divmod(stop, 4)
    rest = digests(resumed)
    while resumed.epoch < 3:
        rest += digests(resumed)
    assert rest == expected[stop:]


def test_a_loop_that_is_left_goes_on(data, expected):
    one = first_rank(data, workers=1)
    found = []
    while one.epoch < 1:
        found.append(digest(next(iter(one))))
    assert found == expected[:4]


def test_epochs_can_be_chosen(data, expected):
    one = first_rank(data)
    one.set_epoch(2)
    found = [digest(next(iter(one)))]
    one.set_epoch(2)  # as loops do that were resumed in the middle of it
    assert found + digests(one) == expected[8:]
    with pytest.raises(ConfigError, match="no epoch -1"):
        one.set_epoch(-1)


def pair(sample):
    return spell(replace(sample, text=" or ".join(one.text for one in sample.group)))


def test_groups_are_new_in_each_epoch_and_resume(tmp_path, data):
    def pairs(workers=0, **options):
        return loader(data, group=2, sequences=pair, workers=workers, rank=0, world_size=1, **options)

    one = pairs()
    epochs = [list(one), list(one)]
    assert [list(map(len, batches)) for batches in epochs] == [[3, 3]] * 2  # the 13th sample is left out
    both = StageDataset(data, 2, group=2)
    first, second = ({tuple(one.key for one in sample.group) for sample in both} for _ in range(2))
    assert first.isdisjoint(second)
    assert len({key for group in first for key in group}) == 12
    expected = [digest(batch) for batches in epochs for batch in batches]
    for stop, workers in ((1, 2), (3, 0)):
        resumed = pairs(workers)
        resumed.load_state_dict({"epoch": stop // 2, "batch": stop % 2, "of": one.identity})
        assert digest(next(iter(resumed))) == expected[stop]
    with pytest.raises(ConfigError, match="group: 1 there, 2 here"):
        pairs().load_state_dict(loader(data, rank=0, world_size=1).state_dict())
    dataset = StageDataset(data, include=["codes"], group=2)
    assert [one.key for one in dataset[-1].group] == ["s0010", "s0011"]
    assert torch.equal(dataset[1].images[1].codes, StageDataset(data, 2)[3].codes)
    broken = damaged(data, tmp_path / "set", "s0005", "json", overwrite(512, b"no json"))
    patient = StageDataset(broken, 2, group=2, on_error="skip", shuffle=False)
    assert [len(sample.group) for sample in patient] == [2] * 5
    assert patient.skipped == 1


def test_last_batches(data):
    assert [len(batch) for batch in loader(data, batch=5)] == [5, 5, 3]
    assert [len(batch) for batch in loader(data, batch=5, drop_last=True)] == [5, 5]
    assert (len(loader(data, batch=5)), len(loader(data, batch=5, drop_last=True))) == (3, 2)
    with pytest.raises(ConfigError, match="no full batch of 14"):
        loader(data, batch=14, drop_last=True)
    with pytest.raises(ConfigError, match="at least 1"):
        loader(data, batch=0)


def test_states_of_other_loaders(data):
    own = loader(data).state_dict()
    for options, state, says in (
        ({"batch": 4}, own, "belongs to another run: batch_size: 3 there, 4 here"),
        ({"drop_last": True}, own, "drop_last: false there, true here"),
        ({}, StageDataset(data, 1).state_dict(), "a state of this kind"),
    ):
        with pytest.raises(ConfigError, match=says):
            loader(data, **options).load_state_dict(state)


def test_torchs_random_numbers_are_left_alone(data):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(loader(data, workers=1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_mixed_data_sets_resume(tmp_path, data):
    other = finished(tmp_path / "other", [samples(4, layout=RICH, prefix="t")], layout=RICH)
    options = {"batch": 4, "include": ["features"], "samples_per_epoch": 10}
    whole = loader([(data, 1), (other, 3)], **options)
    everything = [digest(batch) for _ in range(4) for batch in whole]
    for stop in range(12):
        resumed = loader([(data, 1), (other, 3)], **options)
        resumed.load_state_dict({"epoch": stop // 3, "batch": stop % 3, "of": whole.identity})
        assert digest(next(iter(resumed))) == everything[stop]


def test_damage_in_a_worker(tmp_path, data):
    broken = damaged(data, tmp_path / "set", "s0005", "json", overwrite(512, b"no json"))
    one = loader(broken, workers=2)
    for read in (list, lambda again: next(iter(again))):  # what wasn't given isn't passed over
        with pytest.raises(ShardError, match="sample 's0005' of"):
            read(one)
    patient = loader(broken, workers=2, on_error="skip")
    batches = list(patient)
    assert (sum(map(len, batches)), patient.skipped) == (12, 1)
    (skipped,) = (line for batch in batches for line in batch.skipped)
    assert skipped.startswith("sample 's0005' of")


def test_batches_of_nothing_but_damage_are_passed_over(tmp_path, data, monkeypatch):
    """They count as given, else every resume would meet them again."""
    broken = damaged(data, tmp_path / "set", "s0005", "json", overwrite(512, b"no json"))
    single = loader(broken, batch=1, on_error="skip", shuffle=False)
    assert [batch.keys[0] for batch in single].count("s0005") == 0
    assert (single.epoch, single.batch, single.skipped) == (1, 0, 1)
    assert len(list(single)) == 12
    monkeypatch.setattr("patchmint.training.loader._EMPTY_IN_A_ROW", 1)
    with pytest.raises(ShardError, match="1 batches in a row were left out, the last: sample 's0005'"):
        list(loader(broken, batch=1, on_error="skip", shuffle=False))


def test_a_data_set_that_has_a_position_is_refused(data):
    dataset = StageDataset(data, include=WITHOUT_PIXELS)
    dataset.set_epoch(2)
    with pytest.raises(ConfigError, match="loader's load_state_dict or set_epoch"):
        StageLoader(dataset, 2)


def test_a_refused_sequence_in_a_worker(data):
    with pytest.raises(InputError, match=r"sample 's00.*it is too long"):
        list(loader(data, workers=1, sequences=refuse))


def test_it_can_be_pickled_with_its_caches(data):
    dataset = StageDataset(data, include=WITHOUT_PIXELS, shuffle_window=5)
    list(dataset)
    again = pickle.loads(pickle.dumps(dataset))
    assert digests(dataset) == digests(again)
    assert dataset.places(0, np.arange(3)) == again.places(0, np.arange(3))


@pytest.fixture
def stored(server, data, monkeypatch):
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    return copy(data, server.new_bucket())


@pytest.mark.parametrize("workers", [0, 1])
def test_from_an_object_store(stored, data, workers):
    here, there = loader(data), loader(stored, workers=workers)
    assert digests(there) == digests(here)
    resumed = loader(stored)
    resumed.load_state_dict(there.state_dict())
    assert digests(resumed) == digests(here)


def test_a_store_and_a_folder_together(tmp_path, stored):
    other = finished(tmp_path / "other", [samples(4, layout=RICH, prefix="t")], layout=RICH)
    keys = [key for batch in loader([stored, other]) for key in batch.keys]
    assert len(set(keys)) == len(keys) == 17


def test_spawned_workers_that_are_ended_in_the_middle_do_not_abort(data):
    """They hand over one batch after another."""
    batches = StageLoader(StageDataset(data, 1), 13, num_workers=2, multiprocessing_context="spawn", prefetch_factor=64)
    next(iter(batches))
    workers = batches._running._workers
    batches.close()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_forked_workers_cant_use_a_store(stored):
    dataset = StageDataset(stored, 2)
    with pytest.raises(ConfigError, match="multiprocessing_context='spawn'"):
        list(DataLoader(dataset, 2, num_workers=1, collate_fn=collate, multiprocessing_context="fork"))
