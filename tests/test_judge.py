"""`patchmint judge`: figures that pycocotools and plain loops agree with, and a truth for every image, or a count."""

import contextlib
import io
import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from shard_data import make_dataset, make_sample
from sklearn.isotonic import IsotonicRegression
from typer.testing import CliRunner

from patchmint.cli import app
from patchmint.datasets.dataset import open_dataset
from patchmint.errors import InputError
from patchmint.geometry.rle import encode_masks, to_coco, union
from patchmint.jobs.truths import open_truth
from patchmint.judging.calibrate import Calibration, fit
from patchmint.judging.judge import Found, Judge, judge
from patchmint.judging.metrics import THRESHOLDS, AveragePrecision, auroc, calibration_error, overlaps, reliability
from patchmint.judging.plant import KINDS, found_of, plant
from patchmint.judging.truth import DatasetTruth, ImageName, TruePhrase, TrueText, TrueThing

SIZE = (40, 48)
CATEGORIES = 4


def shape(rng):
    """A rectangle with a corner missing, so that box and mask disagree: its box, and its mask."""
    top, left = rng.integers(0, SIZE[0] - 13), rng.integers(0, SIZE[1] - 13)
    height, width = rng.integers(9, 13, 2)
    mask = np.zeros((1, *SIZE), bool)
    mask[0, top : top + height, left : left + width] = True
    mask[0, top : top + height // 3, left : left + width // 3] = False
    box = tuple(map(float, (left, top, left + width, top + height)))
    return box, encode_masks(mask)[0]


def near(shape, rng):
    """Another one, mostly a little beside it."""
    (left, top, right, bottom), _ = shape
    step = rng.integers(-1, 2, 4)
    x0, y0 = max(left + step[0], 0), max(top + step[1], 0)
    x1, y1 = min(max(right + step[2], x0 + 2), SIZE[1]), min(max(bottom + step[3], y0 + 2), SIZE[0])
    mask = np.zeros((1, *SIZE), bool)
    mask[0, int(y0) : int(y1), int(x0) : int(x1)] = True
    return (float(x0), float(y0), float(x1), float(y1)), encode_masks(mask)[0]


@pytest.fixture(scope="module")
def scenes():
    """For each of 200 scenes and each category: true things with whether they are crowds, found ones with scores."""
    rng = np.random.default_rng(3)
    made = []
    for _ in range(200):
        of_scene = []
        for _ in range(CATEGORIES):
            true = [(shape(rng), bool(rng.random() < 0.1)) for _ in range(rng.integers(0, 4))]
            found = [near(each, rng) for each, _ in true if rng.random() < 0.8]
            found += [shape(rng) for _ in range(rng.integers(0, 3))] if rng.random() < 0.4 else []
            scores = rng.permutation(1000)[: len(found)] / 1000 + rng.random(len(found)) / 2000
            of_scene.append((true, list(zip(found, scores.tolist(), strict=True))))
        made.append(of_scene)
    return made


def coco_ap(queries, kind):
    """pycocotools' AP of (image, category, true, found)."""
    images = [{"id": n, "height": SIZE[0], "width": SIZE[1]} for n in sorted({image for image, *_ in queries})]
    categories = [{"id": n, "name": str(n)} for n in sorted({category for _, category, *_ in queries})]
    annotations, results = [], []
    for image, category, true, found in queries:
        for ((left, top, right, bottom), mask), crowd in true:
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": int(crowd),
                "bbox": [left, top, right - left, bottom - top], "area": 100, "segmentation": to_coco(mask),
            })  # fmt: skip
        for ((left, top, right, bottom), mask), score in found:
            place = {"bbox": [left, top, right - left, bottom - top]} if kind == "bbox" else {"segmentation": mask}
            results.append({"image_id": image, "category_id": category, "score": score, **place})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


def test_average_precision_is_that_of_pycocotools(scenes):
    queries = [(image, category, *each) for image, scene in enumerate(scenes) for category, each in enumerate(scene)]
    alone = [(number, 0, *each[2:]) for number, each in enumerate(queries)]
    for part, kind in enumerate(("bbox", "segm")):
        ours = AveragePrecision()
        for image, category, true, found in queries:
            crowd = [each for _, each in true]
            order = sorted(found, key=lambda each: -each[1])
            ious = overlaps([each[part] for each, _ in found], [each[part] for each, _ in true], crowd)
            assert len(order) == len(ious)
            ours.add(image, category, [score for _, score in found], ious, crowd)
        assert ours.mean() == pytest.approx(coco_ap(queries, kind), abs=1e-9)
        assert ours.mean(pooled=True) == pytest.approx(coco_ap(alone, kind), abs=1e-9)
        twice = np.ones(len(scenes), np.uint8) * 2
        assert ours.mean(twice) == pytest.approx(ours.mean())
    assert 0.2 < ours.mean() < 0.8, kind


def best_matches(ious):
    """IoUs of the assignment with the greatest sum, by trying all."""
    if not ious.size:
        return np.zeros(0)
    rows, columns = sorted(ious.shape)
    wide = ious if ious.shape[0] <= ious.shape[1] else ious.T
    tried = [wide[np.arange(rows), list(chosen)] for chosen in permutations(range(columns), rows)]
    return max(tried, key=np.sum)


def test_all_figures_are_those_of_a_plain_recomputation(scenes):
    judged, seen = Judge(replicates=50, seed=1), []
    for scene in scenes[:60]:
        text = "a cat . b dog . c owl . d fox"
        spans = [(n * 8, n * 8 + 5) for n in range(CATEGORIES)]
        phrases = tuple(
            TruePhrase(span, tuple(TrueThing(*each) for each, crowd in true if not crowd))
            for span, (true, _) in zip(spans, scene, strict=True)
        )
        found = [Found((spans[n],), score, *each) for n, (_, of) in enumerate(scene) for each, score in of]
        judged.add_text(TrueText(text, phrases), found, SIZE, known=("box", "mask"))
        judged.end_image()
        seen += [(list(phrase.things), [each for each in found if each.spans == (phrase.span,)]) for phrase in phrases]
    figures = judged.figures()
    there = [(bool(things), bool(of)) for things, of in seen]
    tp, fn, fp, tn = (there.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
    mcc = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert figures["presence_mcc"] == pytest.approx(mcc, abs=1e-9)
    assert figures["missed_rate"] == fn / (tp + fn)
    assert figures["absent_rate"] == fp / (fp + tn)
    for kind, name in (("box", "cgf1_boxes"), ("mask", "cgf1_masks")):
        right, found_count, true_count = np.zeros(10), 0, 0
        for things, of in seen:
            if things:
                shapes = [[getattr(each, kind) for each in side] for side in (of, things)]
                matched = best_matches(overlaps(*shapes, [False] * len(things)))
                right += [(matched >= threshold).sum() for threshold in THRESHOLDS]
                found_count, true_count = found_count + len(of), true_count + len(things)
        assert figures[name] == pytest.approx(np.mean(2 * right / (found_count + true_count)) * mcc, abs=1e-9)
    unions = [
        overlaps([union([each.mask for each in of])], [union([each.mask for each in things])], [False])[0, 0]
        if of
        else 0
        for things, of in seen
        if things
    ]
    assert figures["mask_iou"] == pytest.approx(np.mean(unions))
    rows = judged.table()
    assert sum(row.found for row in rows) == sum(len(of) for _, of in seen)
    expected = sum(row.found * abs(row.right - row.score) for row in rows) / sum(row.found for row in rows)
    assert figures["ece"] == pytest.approx(expected)
    assert sum(each.phrases for each in judged.groups()["texts"]) == len(seen)
    for name, (low, high) in judged.intervals().items():
        assert low <= figures[name] <= high, name
        assert high > low or name == "unnamed_rate", name


def test_the_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    scores, wrong = rng.integers(0, 8, 60) / 8, rng.random(60) < 0.3
    pairs = [(a < b) + (a == b) / 2 for a in scores[wrong] for b in scores[~wrong]]
    assert auroc(scores, wrong) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(scores, wrong & False))


def run(*arguments, rc=0, command="judge"):
    done = CliRunner().invoke(app, [command, *map(str, arguments)])
    assert done.exit_code == rc, (done.stdout, done.stderr, done.exception)
    return done


HOSTILE = "a cat <img src=x onerror=alert(1)> \x1b[31m"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six samples: whatever their first text is, its first three characters were found at (0, 1.5, 20.25, 30)."""
    folder = tmp_path_factory.mktemp("judge") / "ds"
    samples = [make_sample(n) for n in range(6)]
    first = samples[0]
    source = replace(first.planned.sample, texts=(replace(first.planned.sample.texts[0], content=HOSTILE),))
    samples[0] = replace(first, planned=replace(first.planned, sample=source))
    make_dataset(folder, [samples[:3], samples[3:]])
    return folder


def entry(name, texts, **more):
    objects = [{"id": 7, "bbox": [0, 1.5, 20.25, 28.5]}, {"id": 8, "bbox": [30, 2, 5, 5]}]
    return {**name, "objects": objects, "texts": texts, **more}


def test_every_sample_is_judged_or_counted(dataset, tmp_path):
    contents = [sample.planned.sample.texts[0].content for sample in (make_sample(n) for n in range(6))]
    right, absent = {"span": [0, 3], "objects": [7]}, {"span": [4, 5], "objects": []}
    truth = {"images": [
        entry({"key": "s0000"}, [{"content": HOSTILE, "phrases": [right, {"span": [4, 7], "objects": [8]}]}]),
        entry({"image_id": "Source/1.é"}, [{"content": contents[1], "phrases": [{"span": [0, 3], "objects": []}]}]),
        entry({"file_name": "2.jpeg"}, [{"content": contents[2], "phrases": [right, absent], "whole": False}]),
        entry({"key": "s0003"}, [{"content": "of another text", "phrases": []}], width=40, height=30),
        entry({"key": "s0004"}, [{"content": contents[4], "phrases": [right]}], width=41, height=30),
        entry({"key": "nobody"}, []),
    ]}  # fmt: skip
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    told = json.loads(run(dataset, "--against", path, "--json", "--html", tmp_path / "page.html").stdout)
    assert (told["samples"], told["judged"], told["unmatched"], told["unused"]) == (6, 4, 2, 2)
    assert told["examples"] == ["s0004", "s0005"]
    assert (told["texts"], told["unknown_texts"]) == (3, 3)  # s0001 and s0003 have a second one
    figures = told["figures"]
    assert figures["missed_rate"] == pytest.approx(1 / 3)
    assert figures["absent_rate"] == 1 / 2
    assert figures["patch_f1"] is None  # boxes alone don't say which patches are right
    worst = [(bad["key"], bad["missed"], bad["wrong"]) for bad in told["worst"]]
    assert worst == [("s0001", [], ["ein"]), ("s0000", ["t <"], []), ("s0002", [], [])]
    page = (tmp_path / "page.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 3
    assert "default-src 'none'; img-src data:" in page
    assert "<img src=x" not in page
    table = run(dataset, "--against", path).stdout
    assert "\x1b[31m" not in table
    assert "6 samples = 4 judged + 2 without a known truth (s0004, s0005)" in table
    quick = json.loads(run(dataset, "--against", path, "--quick", "--json").stdout)
    for name in ("missed_rate", "absent_rate", "presence_mcc"):
        assert quick["figures"][name] == figures[name], name
    truth["images"][1]["key"] = "s0000"
    path.write_text(json.dumps(truth))
    with pytest.raises(InputError, match="two images of the key 's0000'"):
        open_truth(str(path))


def test_annotators_marks_and_other_data_sets_are_truths(dataset, tmp_path):
    told = json.loads(run(dataset, "--json").stdout)  # they drew (1, 2, 3, 4) for the same words
    assert (told["judged"], told["texts"], told["figures"]["missed_rate"]) == (6, 6 + 3, 1 / 3)
    assert told["figures"]["box_f1"] == 0
    with pytest.raises(InputError, match="aren't in the sidecars"):
        judge(open_dataset(dataset), open_truth(None), quick=True)
    other = [make_sample(n, phrases=n != 4) for n in (5, 4, 3, 2, 1)]
    make_dataset(tmp_path / "other", [other])
    for quick in (False, True):
        verdict = judge(open_dataset(dataset), DatasetTruth(open_dataset(tmp_path / "other")), quick=quick)
        assert (verdict.judged, verdict.unmatched, verdict.unused) == (5, 1, 0)
        assert verdict.figures["missed_rate"] == 0
        assert verdict.figures["unnamed_rate"] == 1 / 5  # of s0004, where the other found nothing
    assert verdict.figures["box_ap"] is None
    whole = judge(open_dataset(dataset), DatasetTruth(open_dataset(tmp_path / "other")))
    assert whole.figures["patch_f1"] == 1  # the same arrays


def test_annotations_of_sources_are_truths(tmp_path):
    images = [{"id": 9, "file_name": "a/9.jpg", "height": 30, "width": 40}, {"id": 10, "file_name": "10.jpg"}]
    images = [{"height": 30, "width": 40, **image} for image in images]
    corner, wide = [0, 0, 10, 0, 10, 10, 0, 10], [0, 0, 40, 0, 40, 10, 0, 10]
    annotations = [
        {"id": 1, "image_id": 9, "category_id": 1, "bbox": [0, 0, 10, 10], "segmentation": [corner], "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 40, 10], "segmentation": [wide], "iscrowd": 1},
    ]
    categories = [{"id": 1, "name": "Dog"}, {"id": 2, "name": "hot dog"}, {"id": 3, "name": "bus"}]
    categories.append({"id": 4, "name": "bus stop"})
    coco = {"images": images, "annotations": annotations, "categories": categories}

    def named(against, content, name):
        true = open_truth(str(against)).of(name)
        text = true and true.text(0, content)
        return text and [(content[slice(*each.span)], [thing.box for thing in each.things]) for each in text.phrases]

    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_x.json").write_text(json.dumps(coco))
    nine = ImageName("k", "other", "train/a/9.jpg", 0, SIZE)
    assert named(tmp_path, "dogs eat", nine) is None  # another size
    nine, ten = replace(nine, size=(30, 40)), ImageName("k", "10", "", 0, (30, 40))
    boxes = [(0, 0, 10, 10), (0, 0, 40, 10)]
    assert named(tmp_path, "two dogs eat a hot dog in buses", nine) == [("dog", boxes), ("hot dog", []), ("bus", [])]
    assert named(tmp_path, "a bus stop", ten) == [("bus stop", [])]
    assert named(tmp_path, "dogma, a Dog", ten) == [("Dog", [])]
    assert named(tmp_path, "a cat", ten) is None
    images[0] |= {"neg_category_ids": [2], "not_exhaustive_category_ids": [1]}
    (tmp_path / "annotations" / "instances_x.json").write_text(json.dumps(coco))
    assert named(tmp_path, "two dogs eat a hot dog in buses", nine) == [("hot dog", [])]

    refs = tmp_path / "refs"
    refs.mkdir()
    (refs / "instances.json").write_text(json.dumps(coco))
    for name, sentence in (("refs(unc).json", "left one"), ("refs(google).json", "the dog")):
        sentences = [{"sent": sentence}]
        (refs / name).write_text(json.dumps([{"image_id": 9, "ann_id": 1, "split": "val", "sentences": sentences}]))
    for sentence in ("left one", "the dog"):
        assert named(refs, sentence, replace(nine, id="9", path="")) == [(sentence, boxes[:1])]

    genome = tmp_path / "genome"
    genome.mkdir()
    for name, content in (
        ("image_data.json", {"url": "https://x/VG_100K/9.jpg"}),
        ("region_descriptions.json", {"regions": [{"phrase": "a dog", "x": 1, "y": 2, "width": 3, "height": 4}]}),
        ("objects.json", {"objects": [{"names": ["ear"], "x": 1, "y": 1, "w": 2, "h": 2}]}),
    ):
        (genome / name).write_text(json.dumps([{"image_id": 9, **content}]))
    for content, box in (("a dog", (1, 2, 4, 6)), ("ear", (1, 1, 3, 3))):
        assert named(genome, content, nine) is None
        assert named(genome, content, replace(nine, id="9")) == [(content, [box])]
    with pytest.raises(InputError, match="isn't a truth that is known"):
        open_truth(str(tmp_path / "nothing"))


def test_planted_errors_are_found_by_a_score_that_looks(dataset):
    opened = open_dataset(dataset)
    told = json.loads(run(dataset, "--plant", 0.5, "--json", "--seed", 1).stdout)
    assert (told["texts"], told["auroc"]) == (6, 0.5)  # all scores are the same
    assert 0 < told["planted"] == sum(count for count, _ in told["by_kind"].values()) < 6

    def knowing(image, text, found):
        return float(found == found_of(image)[text])

    tries = [plant(opened, 1.0, knowing, seed=seed) for seed in range(8)]
    counts = {kind: sum(each.by_kind[kind][0] for each in tries) for kind in KINDS}
    # Each text has one box, and all have the same one: these can't be planted.
    assert [kind for kind, count in counts.items() if not count] == ["another text's", "dropped", "absent added"]
    assert plant(opened, 0.5, knowing, seed=1).auroc == 1
    assert plant(opened, 0.0).auroc is None
    with pytest.raises(InputError, match="has a score"):
        plant(opened, 0.5, lambda *_: float("nan"))


def test_calibrated_scores_are_those_of_isotonic_regression(dataset, tmp_path):
    rng = np.random.default_rng(5)
    scores = rng.integers(0, 200, 3000) / 200
    right = rng.random(3000) < scores**2
    learnt = fit(scores, right)
    expected = IsotonicRegression().fit(scores, right).predict(np.unique(scores))
    np.testing.assert_allclose(learnt(np.unique(scores)), expected, atol=1e-9)
    others = rng.random(3000)
    told, meant = (
        calibration_error(reliability(each, (rng.random(3000) < others**2).tolist()))
        for each in (others.tolist(), learnt(others).tolist())
    )
    assert told > 0.1 > 0.04 > meant
    path = tmp_path / "calibration.json"
    told = json.loads(run(dataset, path, "--json", command="calibrate").stdout)
    assert (told["boxes"], told["ece_before"], told["ece_after"]) == (6, pytest.approx(0.4375), 0)  # all are wrong
    assert json.loads(run(dataset, "--calibration", path, "--json").stdout)["figures"]["ece"] == 0
    path.write_text("{}")
    with pytest.raises(InputError, match="can't be read as what `patchmint calibrate` writes"):
        Calibration.read(path)
