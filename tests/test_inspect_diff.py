"""`patchmint inspect diff`: against counting by hand with numpy."""

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from inspect_data import answer, edit_json, inspect, refusal, texted, unfinish
from shard_data import LAYOUT, make_dataset, make_sample, on_a_store, renamed
from training_data import RICH, samples

from patchmint.datasets.dataset import open_dataset
from patchmint.inspection.diff import members as diff_members
from patchmint.inspection.diff.compare import compare
from patchmint.shards.layout import GridLayout, TokensLayout

ALL = ["labels", "codes", "texts", "phrases"]


def changed(sample, *parts):
    """The same sample with some parts made otherwise."""
    rng = np.random.default_rng(sample.planned.ordinal + 1000)
    if "labels" in parts:
        coverage = np.where(rng.random(sample.coverage.shape) < 0.1, 200, sample.coverage)
        coverage = np.where(rng.random(sample.coverage.shape) < 0.2, 0, coverage)
        selector = (coverage > LAYOUT.threshold).astype(np.uint8)
        sample = replace(sample, coverage=coverage.astype(np.uint8), selector=selector)
    if "codes" in parts:
        sample = replace(sample, codes=np.where(rng.random(sample.codes.shape) < 0.3, 7, sample.codes))
    if "texts" in parts:
        texts = [f"{text.content}!" for text in sample.planned.sample.texts]
        sample = replace(texted(sample, *texts), phrases=sample.phrases)
    if "phrases" in parts:
        sample = replace(sample, phrases=sample.phrases * 2)
    return sample


def a_samples():
    return [make_sample(ordinal) for ordinal in range(20)]


def b_samples():
    """Without 0 and 1, with 20 and 21; every fourth as it was."""
    others = [
        changed(sample, *[part for n, part in enumerate(ALL, 1) if k % (n + 1)]) if k % 4 else sample
        for k, sample in enumerate(a_samples())
    ][2:]
    return [*others, make_sample(20), make_sample(21)]


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """B has other shards and another order."""
    folder = tmp_path_factory.mktemp("diff")
    a, b = a_samples(), b_samples()
    b = [b[place] for place in np.random.default_rng(3).permutation(len(b))]
    units = {"a": [a[:8], [], a[8:]], "b": [b[:3], b[3:15], b[15:]]}
    return tuple(make_dataset(folder / name, samples) for name, samples in units.items())


run = partial(inspect, "diff")
told = partial(answer, "diff", rc=1)


def pairs():
    b = {sample.planned.key: sample for sample in b_samples()}
    return [(sample, b[sample.planned.key]) for sample in a_samples() if sample.planned.key in b]


def by_hand(pairs):
    """Counts of flips by numpy, sample by sample."""
    counts, flips = Counter(), {}
    for a, b in pairs:
        on, off = int((a.selector < b.selector).sum()), int((a.selector > b.selector).sum())
        if on + off:
            flips[a.planned.key] = (on, off)
        same = a.codes == b.codes
        counts += Counter(on=on, off=off, both=int((a.selector & b.selector).sum()), patches=a.selector.size)
        counts += Counter(cells=same.size, equal=int(same.sum()), other_codes=int(not same.all()))
    return {**counts, "flips": flips, "changed": len(flips)}


@pytest.mark.parametrize("block", [1, 4, 1024])
def test_labels_and_codes(builds, monkeypatch, block):
    monkeypatch.setattr(diff_members, "_BLOCK", block)
    steps = []
    difference = compare(*map(open_dataset, builds), top=100, progress=lambda *said: steps.append(said))
    hand = by_hand(pairs())
    labels, codes = difference.labels, difference.codes
    assert (labels.compared, labels.patches, labels.on, labels.off) == (18, hand["patches"], hand["on"], hand["off"])
    assert labels.changed == hand["changed"] == len(labels.most)
    assert 0 < labels.changed < 18
    assert 0 < min(labels.on, labels.off) < max(labels.on, labels.off)
    assert labels.agreement == pytest.approx(1 - (hand["on"] + hand["off"]) / hand["patches"])
    assert labels.iou == pytest.approx(hand["both"] / (hand["both"] + hand["on"] + hand["off"]))
    assert {flips.key: (flips.on, flips.off) for flips in labels.most} == hand["flips"]
    sums = [flips.on + flips.off for flips in labels.most]
    assert sums == sorted(sums, reverse=True)
    assert (codes.compared, codes.cells, codes.equal) == (18, hand["cells"], hand["equal"])
    assert codes.agreement == hand["equal"] / hand["cells"]
    assert 0 < codes.changed == hand["other_codes"] < 18
    assert steps[-1] == (18, 18)


def test_b_is_read_from_front_to_back(builds, monkeypatch):
    """Not to and fro between its shards, in A's order: from a store each change of the shard is a request more."""
    asked = {str(build): [] for build in builds}

    def spy(dataset, indices, endings, progress=None):
        asked[dataset.uri].append(list(map(int, indices)))
        return read(dataset, indices, endings, progress)

    read = diff_members.iter_stored
    monkeypatch.setattr(diff_members, "iter_stored", spy)
    monkeypatch.setattr(diff_members, "_BLOCK", 10)
    compare(*map(open_dataset, builds))
    for blocks in asked.values():
        assert [len(block) for block in blocks] == [10, 8]
        assert all(block == sorted(block) for block in blocks)


def test_what_differs_is_never_shown_as_all(tmp_path):
    """Of 40,000 cells one differs: 99.9975 %."""
    tokens = TokensLayout(member="vqgan", grid=(200, 200), codebook_sizes=(16384,), preprocessing="p")
    layout = LAYOUT.model_copy(update={"tokens": tokens})
    sample = make_sample(0, layout=layout)
    codes = sample.codes.copy()
    codes[0, 0] = (codes[0, 0] + 1) % 16384
    a = make_dataset(tmp_path / "a", [[sample]], layout=layout)
    b = make_dataset(tmp_path / "b", [[replace(sample, codes=codes)]], layout=layout)
    assert "codes of 1 sample: 99.99 % of 40000 cells agree; 1 sample changed" in run(a, b, rc=1).stdout
    assert "codes of 1 sample: 100.00 % of 40000 cells agree; 0 samples changed" in run(a, a, rc=0).stdout


def test_features_are_compared(tmp_path):
    before = samples(3, layout=RICH)
    features = before[1].features.copy()
    features[2, 1] += 0.5
    after = [before[0], replace(before[1], features=features), before[2]]
    a, b = (make_dataset(tmp_path / name, [each], layout=RICH) for name, each in (("a", before), ("b", after)))
    largest = float(np.abs(features.astype(np.float32) - before[1].features).max())
    found = told(a, b)["features"]
    assert found == {"obstacle": "", "compared": 3, "other_shape": 0, "changed": 1, "largest": largest}
    assert f"features of 3 samples: 1 sample changed, by {largest:g} at most" in run(a, b, rc=1).stdout
    assert run(a, a, rc=0).stdout.endswith("no difference\n")
    bare = make_dataset(tmp_path / "bare", [samples(3)])
    assert "features aren't compared: B has no features" in run(a, bare, rc=1).stdout


def test_keys_texts_phrases_and_shares(builds):
    difference = compare(*map(open_dataset, builds))
    assert difference.samples == (20, 20, 18)
    assert (difference.only_a.count, difference.only_a.first) == (2, ["s0000", "s0001"])
    assert (difference.only_b.count, sorted(difference.only_b.first)) == (2, ["s0020", "s0021"])
    both = pairs()
    texts = [a.planned.key for a, b in both if a.planned.sample.texts != b.planned.sample.texts]
    phrases = [a.planned.key for a, b in both if a.phrases != b.phrases]
    assert (difference.texts.count, difference.texts.first) == (len(texts), texts)
    assert (difference.phrases.count, difference.phrases.first) == (len(phrases), phrases)
    assert 0 < len(texts) < 18
    assert 0 < len(phrases) < 18
    assert difference.phrase_counts == tuple(sum(len(pair[side].phrases) for pair in both) for side in (0, 1))
    shares = [np.mean([text.mean() for pair in both for text in pair[side].selector]) for side in (0, 1)]
    assert difference.label_shares == pytest.approx(shares, abs=1e-6)
    assert shares[0] != pytest.approx(shares[1], abs=1e-4)


def test_the_most_flips_are_few_and_the_first_of_equals(builds, tmp_path):
    difference = compare(*map(open_dataset, builds), top=3)
    flips = by_hand(pairs())["flips"]
    ranked = sorted(flips, key=lambda key: (-sum(flips[key]), key))
    assert [found.key for found in difference.labels.most] == ranked[:3]
    assert difference.labels.changed == len(flips) > 3


def test_a_spread_of_samples(builds):
    document = told(*builds, "--samples", 6)
    hand = by_hand([pairs()[place] for place in (0, 3, 6, 9, 12, 15)])
    assert (document["labels"]["compared"], document["codes"]["compared"]) == (6, 6)
    assert (document["labels"]["on"], document["labels"]["off"]) == (hand["on"], hand["off"])
    assert document["samples"]["both"] == 18


def test_the_same_is_the_same(tmp_path, builds):
    again = make_dataset(tmp_path / "again", [a_samples()[:8], [], a_samples()[8:]])
    for other in (builds[0], again):
        assert run(builds[0], other, rc=0).stdout.endswith("no difference\n")
    document = told(builds[0], builds[0], rc=0)
    assert document["same"] is True
    assert document["labels"]["agreement"] == document["labels"]["iou"] == document["codes"]["agreement"] == 1


@pytest.mark.parametrize("part", ALL)
def test_one_change_anywhere_is_a_difference(tmp_path, part):
    samples = [make_sample(i) for i in range(4)]
    a = make_dataset(tmp_path / "a", [samples])
    b = make_dataset(tmp_path / "b", [[*samples[:3], changed(samples[3], part)]])
    for path in (a, b):
        (path / "dataset.json").unlink()  # whose totals would tell
    document = told(a, b)
    assert document["same"] is False
    assert document["settings"] == []
    found = {name: document[name]["changed" if name in ("labels", "codes") else "count"] for name in ALL}
    assert found == {name: int(name == part) for name in ALL}


def test_settings(tmp_path):
    a, b = (make_dataset(tmp_path / name, [[make_sample(0)]]) for name in "ab")
    entry = {"name": "sam", "sha256": "0" * 64, "size": 1, "licence": ""}
    config = {"labels": {"box_threshold": 0.3}, "x": [1, 2], "gone": None}
    other = {"labels": {"box_threshold": 0.35}, "x": [1, 2], "output": {"k": "[red]\x1b[2J"}}
    models = {"masker": entry | {"sha256": "1" * 64}}
    edit_json(a / "dataset.json", lambda m: m.update(config=config, models={"masker": entry}))
    changes = {"config": other, "models": models, "versions": {"patchmint": "1"}, "config_digest": "d"}
    edit_json(b / "dataset.json", lambda m: m.update(changes))
    assert told(a, b)["settings"] == [
        {"field": "config.gone", "a": None},
        {"field": "config.labels.box_threshold", "a": 0.3, "b": 0.35},
        {"field": "config.output.k", "b": "[red]\x1b[2J"},
        {"field": "models.masker.sha256", "a": "0" * 64, "b": "1" * 64},
        {"field": "versions.patchmint", "a": "0", "b": "1"},
    ]
    printed = run(a, b, rc=1).stdout
    assert "config.labels.box_threshold" in printed
    assert "[red]\N{REPLACEMENT CHARACTER}[2J" in printed
    assert "\x1b" not in printed


WIDE = GridLayout(rows=4, cols=6, patch_px=14, fit="pad")
LARGE = TokensLayout(member="vqgan", grid=(8, 8), codebook_sizes=(512,), preprocessing="p")


@pytest.mark.parametrize(
    ("changes", "part", "why"),
    [
        ({"grid": WIDE}, "labels", "other grids: 4 x 6 patches (squash) in A, 4 x 6 patches (pad) in B"),
        ({"min_coverage": None}, "labels", "B has no labels"),
        ({"tokens": None}, "codes", "B has no codes"),
        ({"tokens": LARGE}, "codes", "other codes: 4 x 4 cells of 16384 codes in A, 8 x 8 cells of 512 codes in B"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path, changes, part, why):
    layout = LAYOUT.model_copy(update=changes)
    a, b = (
        make_dataset(tmp_path / name, [[make_sample(i, layout=of) for i in range(4)]], layout=of)
        for name, of in (("a", LAYOUT), ("b", layout))
    )
    for manifests in (True, False):
        if not manifests:
            (b / "dataset.json").unlink()
        document = told(a, b)
        other = {"labels": "codes", "codes": "labels"}[part]
        assert (document[part]["obstacle"], document[part]["compared"]) == (why, 0)
        assert (document[other]["obstacle"], document[other]["compared"]) == ("", 4)
    assert f"{part} aren't compared: {why}" in run(a, b, rc=1).stdout
    if layout.min_coverage is None:
        assert "labels" not in "".join(run(b, b, rc=0).stdout.split("\n")[:-2])


def test_labels_of_another_number_of_texts(tmp_path):
    samples = [make_sample(i) for i in range(2)]
    more = renamed(make_sample(3), "s0000")  # two texts instead of one
    a, b = make_dataset(tmp_path / "a", [samples]), make_dataset(tmp_path / "b", [[more, samples[1]]])
    labels = told(a, b)["labels"]
    assert (labels["compared"], labels["other_shape"]) == (1, 1)
    assert "1 sample, not compared" in run(a, b, rc=1).stdout


def test_nothing_in_common(tmp_path):
    a, b = (make_dataset(tmp_path / str(i), [[make_sample(i)]]) for i in range(2))
    document = told(a, b)
    assert document["samples"] == {"a": 1, "b": 1, "both": 0}
    assert document["labels"]["agreement"] is None
    assert "0 in both" in run(a, b, rc=1).stdout
    empty = make_dataset(tmp_path / "empty", [[]])
    assert told(empty, a)["only_b"] == {"count": 1, "first": ["s0000"]}


def test_one_tar_and_an_unfinished_build(tmp_path):
    a, b = (make_dataset(tmp_path / name, [[make_sample(0)], [make_sample(1)]]) for name in "ab")
    (tmp_path / "alone.tar").write_bytes((a / "shards" / "000000.tar").read_bytes())
    done = run(tmp_path / "alone.tar", a / "shards" / "000000.tar", rc=0)
    assert "no difference" in done.stdout
    assert "no dataset.json in" in done.stdout
    assert "only in B: 1 (s0001)" in run(tmp_path / "alone.tar", a, rc=1).stdout
    unfinish(b)
    gaps = [f"{b} isn't finished; units left: 1", f"settings aren't compared: no dataset.json in {b}"]
    assert told(a, b)["gaps"] == gaps


def test_nothing_to_compare_with(tmp_path, builds):
    refusal("diff", builds[0], tmp_path)
    run(builds[0], rc=2)


def test_from_a_store(builds):
    with on_a_store(builds[1]) as bucket:
        local = told(*builds)
        assert told(builds[0], bucket) | {"b": local["b"]} == local
        assert run(bucket, builds[1], rc=0).stdout.endswith("no difference\n")
