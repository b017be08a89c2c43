"""A worker that is asked to stop saves what it has annotated of its unit, and the next run ends with the same bytes."""

import os
import threading
import time

import builds
import numpy as np
import pytest

from patchmint.shards.plan import load_plans
from patchmint.shards.saved import find_saved, saved_path
from patchmint.storage import open_storage

pytestmark = pytest.mark.kill

TEXTS = [f"thing number {place}" for place in range(24)]
DAMAGED = (2, 3, 17)
REJECTS = {"image-damaged": 3, "out-of-memory": 1}
STOPPED = 7


class Stopping(builds.SameProcess):
    """Its worker saves what it has once the models have been asked for so many batches; then the process ends."""

    batches = 0

    def submit(self, worker, order):
        from stand_in_models import Levels

        asked = Levels.tokenize

        def tokenize(model, images):
            type(self).batches -= 1
            if type(self).batches == 0:
                threading.Thread(target=self._stop, daemon=True).start()
                time.sleep(0.05 if self.in_time else 60)
            return asked(model, images)

        Levels.tokenize = tokenize
        super().submit(worker, order)

    def _stop(self):
        os._exit(STOPPED if self._worker._worker.save(30 if self.in_time else 0.01) is not None else 1)


def batches_show():
    """From now on codes say which images were in a batch, and batches are of images of a height."""
    from stand_in_models import Boxes, Levels

    asked = Levels.tokenize

    def tokenize(model, images):
        answers = asked(model, images)
        together = sum(int(image.sum()) for image in images) % 256
        return [type(each)(np.full_like(each.codes, together)) for each in answers]

    Levels.tokenize = tokenize
    Boxes.batch_key = lambda model, size: size[0]


def built(config, out):
    batches_show()
    report = builds.build_here(config, out)
    assert (report.planned, report.written, report.rejects, report.missing) == (24, 20, REJECTS, 0)


def stopped(config, out, batches, *, in_time):
    batches_show()
    Stopping.batches, Stopping.in_time = batches, in_time
    builds.build_here(config, out, pool=Stopping)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A config with one unit, and the digests of what an undisturbed build makes of it."""
    folder = tmp_path_factory.mktemp("saved")
    texts = ["ALONE" if place == 9 else text for place, text in enumerate(TEXTS)]
    source = builds.make_input(folder / "in", texts, DAMAGED)
    config = builds.make_config(folder / "config.yaml", source, folder / "whole", 24)
    with builds.warmed():
        assert builds.exit_code(builds.fork(lambda: built(config, folder / "whole"))) == 0
        yield config, builds.digests(folder / "whole")


def save(config, out, batches, *, in_time=True):
    """Stop a build at a batch; what it has saved."""
    assert builds.exit_code(builds.fork(lambda: stopped(config, out, batches, in_time=in_time))) == STOPPED
    assert not builds.committed(out)
    storage = open_storage(out)
    return find_saved(storage, 0, load_plans(storage)[0].digest)


def go_on(config, out, expected):
    assert builds.exit_code(builds.fork(lambda: built(config, out))) == 0
    builds.check_files(out, expected)


def test_a_build_stopped_at_any_batch_ends_with_the_same_bytes(whole, tmp_path):
    config, expected = whole
    in_order = set()
    for batches in (1, 3, 4, 6, 9, 11):
        saved = save(config, tmp_path / str(batches), batches)
        assert len(saved.samples) > 0
        in_order.add(saved.samples == list(range(len(saved.samples))))
        go_on(config, tmp_path / str(batches), expected)
    assert in_order == {True, False}, "no sample was saved before its turn"


def test_a_batch_that_takes_too_long_is_lost_and_the_others_are_saved(whole, tmp_path):
    config, expected = whole
    whole_batches = save(config, tmp_path / "in time", 4).positions
    saved = save(config, tmp_path / "late", 4, in_time=False).positions
    assert 0 < len(whole_batches - saved) <= 2
    assert saved < whole_batches
    go_on(config, tmp_path / "late", expected)


def test_a_build_is_stopped_again_and_again(whole, tmp_path):
    config, expected = whole
    found = [len(save(config, tmp_path / "out", 2).positions) for _ in range(4)]
    assert found == sorted(set(found))
    go_on(config, tmp_path / "out", expected)


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "no record", "another plan's"])
def test_what_is_saved_and_not_whole_is_done_again(whole, tmp_path, harm):
    config, expected = whole
    out = tmp_path / "out"
    assert save(config, out, 5).samples
    tar, record = out / saved_path(0, "tar"), out / saved_path(0, "json")
    if harm == "cut":
        tar.write_bytes(tar.read_bytes()[:-1024])
    elif harm == "changed":
        data = bytearray(tar.read_bytes())
        data[3000] ^= 1
        tar.write_bytes(data)
    elif harm == "gone":
        tar.unlink()
    elif harm == "no record":
        record.write_bytes(record.read_bytes()[:50])
    else:
        digest = load_plans(open_storage(out))[0].digest
        record.write_text(record.read_text().replace(digest, "0" * 64))
    assert find_saved(open_storage(out), 0, load_plans(open_storage(out))[0].digest) is None
    go_on(config, out, expected)
