"""Builds of documents: what is asked, dropped, kept and counted; and the same bytes, wherever they are interrupted."""

import json
import random
import signal
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import builds
import numpy as np
import pytest
from shard_data import joined, stored
from test_build_kill import _killed
from test_saved import STOPPED, batches_show, stopped

from patchmint import Annotator, DemoWarning
from patchmint.annotate.models import ModelInputs
from patchmint.cli.status import status as show_status
from patchmint.config.build import BuildConfig
from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.ledger import iter_rejects
from patchmint.datasets.verify import verify_all
from patchmint.demo.documents import write_documents
from patchmint.errors import ConfigError
from patchmint.images.decode import decode_image
from patchmint.jobs.extend import settings_of
from patchmint.jobs.status import status
from patchmint.pipeline.driver import watch
from patchmint.pipeline.driver.build import build
from patchmint.pipeline.driver.contracts import Reporter
from patchmint.pipeline.orders import Order, Working
from patchmint.pipeline.worker.prepare import Preparer
from patchmint.samples import NO_NUMBER, ImageRef, Part, PlannedSample, SourceSample, SourceText
from patchmint.shards.manifest import read_manifest
from patchmint.shards.plan import Unit, load_plans
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
def test_all_that_is_planned_is_accounted_for_and_nothing_is_asked_twice(tmp_path, capsys, asked, on_bad_image):
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
    show_status(str(out))
    left = images["planned"] - images["written"] - images["dropped"]
    told = f"{images['written']} written + {images['dropped']} dropped + {left} of rejected documents"
    assert f"images   {images['planned']} planned = {told}" in capsys.readouterr().out
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
@pytest.mark.parametrize(
    ("settings", "batches", "steps"),
    [
        ({"on_bad_image": "drop"}, (6, 17), (45,)),
        (
            {
                "on_bad_image": "reject",
                "grids": ["llava-1.5-finetune", "qwen3-vl"],
                "tokens": {"b": {"tokenizer": "stand-in-native"}, "a": {"tokenizer": "stand-in"}},
            },
            (5,),
            (45,),
        ),
    ],
)
def test_a_build_stopped_or_killed_anywhere_ends_with_the_same_bytes(tmp_path, settings, batches, steps):
    """Answers tell which images were asked about together, so a run that resumes must ask about the same."""
    source = make_source(tmp_path / "in", 40, answers=("a thing", "two things", "ALONE"))
    config, whole = make_config(tmp_path, source, 40, **settings), tmp_path / "out"
    with builds.warmed():
        assert builds.exit_code(builds.fork(partial(built, config, whole))) == 0
        expected = builds.digests(whole)
        broken = [(partial(stopped, config, batches=batch, in_time=True), STOPPED) for batch in batches]
        broken += [(partial(_killed, config, number=step), -signal.SIGKILL) for step in steps]
        for number, (interrupted, code) in enumerate(broken):
            out = tmp_path / f"{number}"
            assert builds.exit_code(builds.fork(lambda out=out, run=interrupted: run(out=out))) == code
            assert builds.exit_code(builds.fork(partial(built, config, out))) == 0
            builds.check_files(out, expected)


def test_documents_are_extended_image_by_image(tmp_path, stand_in):
    """What is made later is what would have been made at once; all else is carried over."""
    source = make_source(tmp_path / "in", 12)
    config = make_config(tmp_path, source, on_bad_image="drop")
    whole, base, out = tmp_path / "out", tmp_path / "base", tmp_path / "base" / "columns" / "codes"
    builds.build_here(config, whole)
    builds.build_here(config, base, {"tokens": None})
    settings = settings_of(read_manifest(open_storage(base)), str(base), str(out), {"tokens"})
    report = builds.build_here(settings, out, {"models.tokenizer": "stand-in"})
    written = read_manifest(open_storage(whole)).totals.images
    assert report.images == replace(written, planned=written.written, dropped=0)
    assert {sample.key: sample.members for sample in joined(base)} == {
        sample.key: sample.members for sample in stored(whole)
    }
    assert list(verify_all(open_storage(base))) == []


@pytest.mark.parametrize("kind", ["folder", "patchmint"])
def test_images_are_dropped_from_documents_of_a_source_only(kind):
    settings = {"source": {"kind": kind, "uri": "in"}, "output": {"uri": "in/columns/x"}, "on_bad_image": "drop"}
    with pytest.raises(ConfigError, match="on_bad_image: drop is about sources of documents"):
        BuildConfig.load(settings)


def test_rejected_documents_are_retried_and_images_that_were_dropped_are_not(tmp_path, stand_in):
    source = make_source(tmp_path / "in", 20)
    config, out = make_config(tmp_path, source, on_bad_image="drop"), tmp_path / "out"
    before = builds.build_here(config, out)
    assert before.rejects["image-missing"] == 2
    (source / ABSENT).write_bytes((source / "000.jpg").read_bytes())
    given = BuildConfig.load(config)
    workers = {"min_workers": 1, "max_workers": 1, "reporter": Reporter()}
    after = build(given, builds.SameProcess, **workers, retry_failed=True)
    assert after.written == before.written + 2
    assert after.images == replace(before.images, written=before.images.written + 2)
    assert status(str(out)).images == read_manifest(open_storage(out)).totals.images == after.images
    listed = [row for table in iter_rejects(open_dataset(str(out))) for row in table.to_pylist()]
    assert sum(row["image"] != NO_NUMBER for row in listed) == after.images.dropped > 0
    assert sum(row["image"] == NO_NUMBER for row in listed) == after.rejected
    assert list(verify(open_storage(out))) == []


@pytest.mark.parametrize("on_bad_image", ["reject", "drop"])
def test_the_image_that_models_fail_at_is_at_fault_and_not_those_beside_it(tmp_path, stand_in, on_bad_image):
    builds.make_input(tmp_path / "in", [""] * 10)
    names = [f"{place:03d}.jpg" for place in range(10)]

    def said(images, answer):
        return [{"from": "human", "value": "<image>" * images + "what?"}, {"from": "gpt", "value": answer}]

    records = [
        {"id": "good", "image": names[:3], "conversations": said(3, "a thing")},
        {"id": "one", "image": names[:3], "conversations": said(1, "ALONE") + said(2, "a thing")},
        # more than a build endures of samples that its models fail at, one after another
        {"id": "all", "image": names, "conversations": said(10, "WRONG")},
        {"id": "again", "image": names[2::-1], "conversations": said(2, "a thing") + said(1, "ALONE")},
    ]
    (tmp_path / "in" / "documents.json").write_text(json.dumps(records))
    out = tmp_path / "out"
    report = builds.build_here(make_config(tmp_path, tmp_path / "in", on_bad_image=on_bad_image), out)
    written = {sample.key: [image.source.path for image in sample.images] for sample in stored(out)}
    rows = {(row.key, row.image): row.fault.reason for row in read_rejects(open_storage(out), "rejects/000000.parquet")}
    if on_bad_image == "drop":
        assert written == {"good": names[:3], "one": names[1:3], "again": names[2:0:-1]}
        dropped = {("one", 0): "part-out-of-memory", ("again", 2): "part-out-of-memory"}
        assert rows == {("all", NO_NUMBER): "model-error", **dropped}
    else:
        assert written == {"good": names[:3]}
        rejected = {"one": "out-of-memory", "all": "model-error", "again": "out-of-memory"}
        assert rows == {(key, NO_NUMBER): reason for key, reason in rejected.items()}
    assert report.rejected == len(records) - len(written)
    assert list(verify(open_storage(out))) == []


def test_what_the_models_will_not_be_asked_about_is_not_prepared_for_them(tmp_path):
    source = make_source(tmp_path / "in", 0)

    def document(number, paths, own):
        refs, texts = tuple(ImageRef(path) for path in paths), (SourceText("a thing"), SourceText("two things"))
        parts = tuple(Part(image=place) for place in range(len(refs)))
        return PlannedSample(number, str(number), SourceSample(str(number), refs, texts, parts=parts, image_texts=own))

    unit = [
        document(0, ["000.jpg", "001.jpg"], ((0,), (0, 1))),
        document(1, ["001.jpg", "000.jpg", "002.jpg"], ((0, 1), (1,), ())),
    ]
    sources = SimpleNamespace(extended=None, read_image=lambda image: (source / image.path).read_bytes())
    preparer = Preparer(sources, lambda _: unit, 100, 1, lambda image: ModelInputs(segmenter=image))
    _, items = preparer.prepared(Order(Unit(0, 2, 0, "part", 0)), 4)
    ready = [[image.inputs is not None for image in item.images] for _, item in items]
    assert ready == [[True, True], [False, True, True]]


def test_a_worker_may_take_as_long_as_its_documents_have_images(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: now[0]))
    followed = watch.Watch(10)
    followed.begin(0)
    followed.hear(Working(0, 0, 0, 0, {}, "annotate", positions=(4,), images=3))
    now[0] = 29
    assert list(followed.overdue()) == []
    now[0] = 31
    ((worker, why),) = followed.overdue()
    assert worker == 0
    assert "no sample was finished for 30 s in annotate" in why


def test_documents_with_real_models_are_built_extended_and_labelled_alike(tmp_path):
    """What a build stores of a document is what `annotate_document` says of it."""
    source, out, extended = tmp_path / "in", tmp_path / "out", tmp_path / "out" / "columns" / "labels"
    write_documents(source, seed=11, count=2)
    lost = source / "pictures" / "000001-1.jpg"
    lost.write_bytes(lost.read_bytes()[:300])
    told = {"kind": "conversations", "uri": str(source), "annotations": "conversations.json", "images": ""}
    told |= {"documents": True, "texts": "questions"}
    changes = {"source": told, "models": "demo", "on_bad_image": "drop"}
    config = builds.make_config(tmp_path / "config.yaml", source, out, 1, **changes)
    report = builds.build_here(config, out)
    assert (report.planned, report.written, report.rejects) == (2, 2, {})
    assert (report.images.dropped, report.images.written) == (1, report.images.planned - 1)
    samples = list(stored(out))
    with pytest.warns(DemoWarning):
        annotator = Annotator.from_preset("demo", device="cpu")
    document = annotator.annotate_document([*(image.data for image in samples[0].images), *samples[0].key_json.texts])
    for image, annotation in zip(samples[0].images, document.images, strict=True):
        np.testing.assert_array_equal(image.codes, annotation.codes)
        np.testing.assert_allclose(image.coverage.astype(int), annotation.coverage.astype(int), atol=1)
        assert [phrase.text for phrase in image.phrases] == [phrase.text for phrase in annotation.phrases]
    assert any(image.selector.any() for image in samples[0].images)
    settings = settings_of(read_manifest(open_storage(out)), str(out), str(extended), {"labels"})
    builds.build_here(settings, extended, {"labels.min_coverage": 0.9})
    for sample, other in zip(samples, joined(out, ["labels"]), strict=True):
        assert (sample.key, sample.parts) == (other.key, other.parts)
        for image, again in zip(sample.images, other.images, strict=True):
            assert (image.data, image.texts) == (again.data, again.texts)
            np.testing.assert_array_equal(image.codes, again.codes)
            np.testing.assert_array_equal(again.selector, image.coverage > 230)
    assert list(verify_all(open_storage(out))) == []
