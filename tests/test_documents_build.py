"""Builds of documents: what is asked, dropped, kept and counted; and the same bytes, wherever they are interrupted."""

import json
import random
import signal
from collections import Counter
from functools import partial

import builds
import numpy as np
import pytest
from shard_data import stored
from test_build_kill import _killed
from test_saved import STOPPED, batches_show, stopped

from patchmint.images.decode import decode_image
from patchmint.jobs.status import status
from patchmint.samples import NO_NUMBER, ImageRef
from patchmint.shards.manifest import read_manifest
from patchmint.shards.plan import load_plans
from patchmint.shards.plan_parts import read_unit
from patchmint.shards.rejects import read_rejects
from patchmint.shards.verify import verify
from patchmint.storage import open_storage

IMAGES, DAMAGED, ABSENT = 14, (3, 11), "900.jpg"
"""Images of a source, those that are cut off, and one that isn't there."""


def make_source(folder, count, *, most=6, seed=0, answers=("a thing", "two things")):
    """Conversations of one to `most` images, few of them new, that are shown once or twice; some without an answer."""
    dice = random.Random(seed)
    builds.make_input(folder, [""] * IMAGES, DAMAGED)
    names = [f"{place:03d}.jpg" for place in range(IMAGES)]
    records = []
    for number in range(count):
        shown = [ABSENT] if number % 9 == 5 else dice.sample(names, dice.randint(1, most))
        shown += dice.choices(shown, k=dice.randint(0, 1))
        turns = [[] for _ in range(dice.randint(1, 3))]
        for name in shown:
            dice.choice(turns).append(name)
        told = []
        for exchange, images in enumerate(turns):
            told.append({"from": "human", "value": "<image>" * len(images) + f"what {exchange}?"})
            if exchange == 0 or dice.random() < 0.7:
                told.append({"from": "gpt", "value": dice.choice(answers)})
        images = [name for own in turns for name in own]
        records.append({"id": f"document {number}", "image": images, "conversations": told})
    (folder / "documents.json").write_text(json.dumps(records))
    return folder


def make_config(folder, source, samples_per_shard=8, **changes):
    told = {"kind": "conversations", "uri": str(source), "annotations": "documents.json", "images": ""}
    told |= {"documents": True, "image_texts": "own"}
    limits = {"max_reject_share": 1.0}
    return builds.make_config(
        folder / "config.yaml",
        source,
        folder / "out",
        samples_per_shard,
        **{"source": told, "limits": limits} | changes,
    )


@pytest.fixture
def stand_in(monkeypatch):
    """The stand-in's modules in this process."""
    monkeypatch.syspath_prepend(str(builds.STAND_IN))
    import stand_in_models

    return stand_in_models


@pytest.fixture
def asked(stand_in, monkeypatch):
    """The images that the tokenizer was asked about, call by call, as bytes of their pixels."""
    calls, tokenize = [], stand_in.Levels.tokenize

    def noted(model, images):
        calls.append([image.tobytes() for image in images])
        return tokenize(model, images)

    monkeypatch.setattr(stand_in.Levels, "tokenize", noted)
    return calls


def is_bad(ref):
    return not isinstance(ref, ImageRef) or ref.path in {ABSENT, *(f"{place:03d}.jpg" for place in DAMAGED)}


def expected(planned, *, drop):
    """A planned document as it should be written, and its bad images; None where it should be rejected."""
    if planned.sample.fault is not None:
        return None, set()
    bad = {number for number, ref in enumerate(planned.sample.images) if is_bad(ref)}
    if bad and (not drop or len(bad) == len(planned.sample.images)):
        return None, bad
    return planned.sample.without(bad), bad


@pytest.mark.parametrize("on_bad_image", ["reject", "drop"])
def test_all_that_is_planned_is_written_or_accounted_for_and_nothing_is_asked_twice(tmp_path, asked, on_bad_image):
    source = make_source(tmp_path / "in", 40)
    config, out = make_config(tmp_path, source, on_bad_image=on_bad_image), tmp_path / "out"
    report = builds.build_here(config, out)
    storage = open_storage(out)
    (plan,) = load_plans(storage)
    units = [read_unit(storage, unit) for unit in plan.units]
    written = {sample.key: sample for sample in stored(out)}
    calls, images, rejected = 0, Counter(), Counter()
    for unit, samples in zip(plan.units, units, strict=True):
        rows = read_rejects(storage, f"rejects/{unit.name}.parquet")
        shown = set()
        for planned in samples:
            wanted, bad = expected(planned, drop=on_bad_image == "drop")
            own = {row.image: row.fault.reason for row in rows if row.ordinal == planned.ordinal}
            images["planned"] += len(planned.sample.images) if planned.sample.fault is None else 0
            if wanted is None:
                missing = bad and planned.sample.images[min(bad)].path == ABSENT
                reason = "image-missing" if missing else "image-damaged" if bad else planned.sample.fault.reason
                assert own == {NO_NUMBER: reason}
                rejected[reason] += 1
                continue
            assert own == dict.fromkeys(bad, "part-image-damaged")
            images["dropped"] += len(bad)
            images["written"] += len(wanted.images)
            found = written.pop(planned.key)
            check_sample(found, wanted, source)
            shown |= {
                (ref, found.images[n].texts and tuple(wanted.texts[t] for t in wanted.image_texts[n]))
                for n, ref in enumerate(wanted.images)
            }
        calls += len(shown)
    assert not written
    assert sum(map(len, asked)) == calls < images["written"]
    assert max(map(len, asked)) == 2, "a document of many images is asked in pieces"
    assert report.rejects == rejected
    assert (report.planned, report.written, report.missing) == (40, 40 - rejected.total(), 0)
    counts = {name: vars(report.images)[name] for name in ("planned", "written", "dropped")}
    assert counts == {name: images[name] for name in counts}
    assert read_manifest(storage).totals.images == report.images == status(str(out)).images
    assert (images["dropped"] > 0) == (on_bad_image == "drop")
    assert list(verify(storage)) == []


def check_sample(found, wanted, source):
    """A stored sample has the images, parts, codes and labels of its document."""
    assert found.parts == wanted.parts
    assert len(found.images) == len(wanted.images)
    texts = [text.content for text in wanted.texts]
    assert list(found.key_json.texts) == texts
    for image, ref, own in zip(found.images, wanted.images, wanted.image_texts, strict=True):
        assert image.data == (source / ref.path).read_bytes()
        assert (image.source.path, image.texts) == (ref.path, own)
        rows = np.linspace(0, image.info.height - 1, 16).astype(int)
        cols = np.linspace(0, image.info.width - 1, 16).astype(int)
        pixels = decode_image(image.data).pixels
        np.testing.assert_array_equal(image.codes, pixels[rows][:, cols, 1])
        assert image.selector.shape == (len(own), 24, 24)
        assert image.selector.any() == bool(own)
        assert [(phrase.text_index, phrase.text) for phrase in image.phrases] == [(text, texts[text]) for text in own]


def built(config, out):
    batches_show()
    report = builds.build_here(config, out)
    assert report.missing == 0


@pytest.mark.kill
def test_a_build_stopped_or_killed_anywhere_ends_with_the_same_bytes(tmp_path):
    """Answers tell which images were asked about together, so a run that resumes must ask about the same."""
    source = make_source(tmp_path / "in", 40)
    config = make_config(tmp_path, source, 40, on_bad_image="drop")
    with builds.warmed():
        whole = tmp_path / "out"
        assert builds.exit_code(builds.fork(partial(built, config, whole))) == 0
        digests = builds.digests(whole)
        for batches in (1, 3, 7, 12, 16, 19):
            out = tmp_path / f"stopped-{batches}"
            assert builds.exit_code(builds.fork(partial(stopped, config, out, batches, in_time=True))) == STOPPED
            assert builds.exit_code(builds.fork(partial(built, config, out))) == 0
            builds.check_files(out, digests)
        for step in (20, 45):
            out = tmp_path / f"killed-{step}"
            assert builds.exit_code(builds.fork(partial(_killed, config, out, step))) == -signal.SIGKILL
            assert builds.exit_code(builds.fork(partial(built, config, out))) == 0
            builds.check_files(out, digests)
