"""Whole builds in simulated time in which everything goes wrong: `make chaos` tries many more seeds."""

import pytest
from simulation.run import Scene, ViolationError, simulate
from simulation.world import StuckError

from patchmint.pipeline.driver.hunt import Hunt
from patchmint.pipeline.driver.places import Place
from patchmint.shards.commit import Attempt
from patchmint.shards.records import CommitRecord

SEEDS_THAT_FOUND_FAULTS = (3081, 4334, 9632, 9819)


@pytest.mark.parametrize("seeds", [*(range(first, first + 25) for first in range(0, 300, 25)), SEEDS_THAT_FOUND_FAULTS])
def test_nothing_is_lost_stuck_or_blamed_wrongly(seeds):
    for seed in seeds:
        try:
            simulate(seed)
        except Exception as error:
            error.add_note(f"python -m simulation.run --seed {seed} shows it again")
            raise


def test_a_seed_says_all():
    scenes = [simulate(21) for _ in range(2)]
    assert scenes[0].world.log == scenes[1].world.log
    assert scenes[0].world.log
    assert scenes[0].storage.files.keys() == scenes[1].storage.files.keys()


def test_most_of_what_can_go_wrong_does():
    scenes = [Scene(seed) for seed in range(300)]
    natures = [what for scene in scenes for what in scene.nature.values()]
    assert min(natures.count("kills"), natures.count("hangs")) > 50
    assert sum(any(place.bad for place in scene.places) for scene in scenes) > 50
    assert sum(bool(scene.storage.outages) for scene in scenes) > 50
    assert {place.loading_fault for scene in scenes for place in scene.places} == {None, "dies", "fails"}


def is_found(**options):
    """Whether a bug is found by one of the first seeds."""
    for seed in range(400):
        try:
            simulate(seed, **{"end": 25_000} | options)
        except (ViolationError, StuckError):
            return True
    return False


def test_a_file_system_that_does_not_sync_is_found():
    assert is_found(syncs=False)


def test_to_condemn_after_one_death_is_found(monkeypatch):
    """Wherever it happens, and without a look at the place."""
    monkeypatch.setattr(Hunt, "_is_proven", lambda self, *_: bool(self._case.witnesses))
    monkeypatch.setattr(Place, "doubted", property(lambda self: False, lambda self, value: None), raising=False)
    assert is_found()


def test_a_commit_that_overwrites_is_found(monkeypatch):
    def decide(attempt, own: CommitRecord):
        attempt._offered = True
        attempt._storage.write(f"commits/{own.unit:06d}.json", own.to_json())
        return own

    monkeypatch.setattr(Attempt, "_decide", decide)
    assert is_found()


def test_a_lease_that_never_ends_is_found(monkeypatch):
    monkeypatch.setattr("patchmint.shards.lease._next_state", lambda *_: b"it counts")
    assert is_found()
