"""`patchmint inspect stats`: every number against numpy over all samples; page and picture."""

import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from xml.etree import ElementTree

import numpy as np
import pytest
from inspect_data import answer, edit_column, edit_json, inspect, refusal, texted, with_tokens
from PIL import Image
from shard_data import LAYOUT, make_dataset, make_reject, make_sample, on_a_store, stored, write_shard
from test_shards_verify import edit_document

from patchmint.datasets.dataset import open_dataset
from patchmint.errors import ShardError
from patchmint.inspection.stats import collect as stats_module
from patchmint.inspection.stats.collect import book_usage, collect_stats
from patchmint.inspection.stats.distributions import QUANTILES, Counts
from patchmint.samples import Fault
from patchmint.shards.layout import GridLayout, TokensLayout
from patchmint.shards.reader import iter_samples
from patchmint.shards.schema import PhraseDocument
from patchmint.storage import open_storage

run = partial(inspect, "stats")
told = partial(answer, "stats")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHMINT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def dataset(tmp_path):
    """Three shards of varied samples: without phrases, without scores, without a kept patch."""
    of = with_tokens(30)
    samples = [make_sample(n, layout=of, phrases=n % 3 > 0, kind="png" if n % 4 == 0 else "jpeg") for n in range(13)]
    phrase = PhraseDocument(text="sec", text_index=1, start=0, end=3, box=(0.0, 0.0, 9.0, 9.0), score=-1.0)
    drawn = phrase.model_copy(update={"origin": "mixed"})
    samples[5] = replace(samples[5], phrases=(*samples[5].phrases, phrase, drawn))
    nothing = np.zeros_like(samples[7].selector)
    samples[7] = replace(samples[7], selector=nothing, coverage=nothing)
    rejects = {0: [make_reject(20)], 2: [make_reject(21), replace(make_reject(22), fault=Fault("plan", "no-text", ""))]}
    return make_dataset(tmp_path / "d", [samples[:6], samples[6:10], samples[10:]], rejects, layout=of)


def check(found, values, tolerance=0):
    """A distribution against numpy."""
    numbers = np.array(values, np.float64)
    assert found["count"] == len(numbers)
    assert found["mean"] == pytest.approx(numbers.mean())
    assert (found["minimum"], found["maximum"]) == (numbers.min(), numbers.max())
    for share in QUANTILES:
        exact = np.quantile(numbers, share, method="inverted_cdf")
        assert abs(found["quantiles"][str(share)] - exact) <= tolerance + 1e-9
    assert sum(entry["count"] for entry in found["bins"]) == len(numbers)


def test_every_number_against_numpy(dataset, monkeypatch):
    monkeypatch.setattr(stats_module, "_ROWS", 4)
    found = told(dataset)
    samples = stored(dataset)
    documents = [sample.document for sample in samples]
    assert (found["samples"], found["shards"], found["unbuilt"]) == (13, 3, 0)
    texts = [text for document in documents for text in document.texts]
    assert found["texts"] == len(texts)
    check(found["texts_per_sample"], [len(document.texts) for document in documents])
    check(found["words_per_text"], [len(text.split()) for text in texts])
    check(found["width"], [document.image.width for document in documents])
    check(found["height"], [document.image.height for document in documents])
    check(found["kilobytes"], [sample.size / 1000 for sample in samples], 0.5)
    assert found["formats"] == dict(Counter(document.image.format for document in documents))
    rejects = [("read", "image-missing", 2), ("plan", "no-text", 1)]
    assert [tuple(entry.values()) for entry in found["rejects"]] == rejects
    labels = found["labels"]
    shares = [float(np.float32(text.mean())) for sample in samples for text in sample.selector]
    check(labels["shares"], shares, 0.00005)
    assert labels["empty_texts"] == sum(share == 0 for share in shares) == 2
    phrases = [phrase for document in documents for phrase in document.phrases]
    counts = [
        sum(phrase.text_index == index for phrase in document.phrases)
        for document in documents
        for index in range(len(document.texts))
    ]
    assert (labels["phrases"], labels["unscored"]) == (len(phrases), 2)
    assert labels["origins"] == {"model": len(phrases) - 1, "mixed": 1}
    check(labels["phrases_per_text"], counts)
    check(labels["scores"], [phrase.score for phrase in phrases if phrase.score >= 0])
    usage = found["codes"][0]
    totals = np.bincount(np.concatenate([sample.codes.ravel() for sample in samples]), minlength=30)
    assert usage["counts"] == totals.tolist()
    assert (usage["used"], usage["dead"]) == ((totals > 0).sum(), (totals == 0).sum())
    share = totals[totals > 0] / totals.sum()
    assert usage["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    positions = found["positions"]
    kept = np.concatenate([sample.selector for sample in samples])
    assert (positions["samples"], positions["texts"]) == (13, len(kept))
    assert np.allclose(positions["selector"], kept.mean(axis=0))
    assert np.allclose(positions["coverage"], np.concatenate([s.coverage for s in samples]).mean(axis=0) / 255)
    # 4 x 6: the middle is rows 1 and 2, columns 1 to 4.
    mean = kept.mean(axis=0)
    around = (mean.sum() - mean[1:3, 1:5].sum()) / 16
    assert positions["centre_bias"] == pytest.approx(mean[1:3, 1:5].mean() / around)
    spread = told(dataset, "--samples", 4)["positions"]
    assert spread["samples"] == 4
    assert np.allclose(spread["selector"], np.concatenate([samples[at].selector for at in (0, 3, 6, 9)]).mean(axis=0))


def test_distributions():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.integers(0, 500, 5000), [10**7]])
    counts = Counts()
    for part in np.array_split(values, 7):
        counts.add(part)
    counts.add(np.zeros(0))
    assert len(counts._levels) <= 1 + 2**20, "an absurd value takes no memory"
    found = counts.distribution()
    assert (found.count, found.mean, found.maximum) == (5001, pytest.approx(values.mean()), 10**7)
    for share in QUANTILES:
        assert found.quantiles[str(share)] == np.quantile(values, share, method="inverted_cdf")
    for entry in found.bins[:-1]:
        assert entry.count == ((values >= entry.low) & (values < entry.high)).sum()
    assert found.bins[-1].count == (values >= found.bins[-1].low).sum()
    assert found.bins[-1].low < 500
    shares = Counts(10_000, full=1)
    shares.add(np.array([0.0, 1.0, 0.05, 0.0499]))
    bins = shares.distribution().bins
    assert [(entry.low, entry.high) for entry in bins[:2]] == [(0, 0.05), (0.05, 0.1)]
    assert [bins[0].count, bins[1].count, bins[-1].count] == [2, 1, 1]
    assert Counts().distribution() is None


def test_perplexity_and_dead_codes():
    tokens = with_tokens(4, 8).tokens
    even, one = book_usage(np.array([3, 3, 3, 3, 0, 0, 9, 0, 0, 0, 0, 0]), tokens)
    assert (even.perplexity, even.used, even.dead, even.size) == (pytest.approx(4), 4, 0, 4)
    assert (one.perplexity, one.used, one.dead, one.size) == (pytest.approx(1), 1, 7, 8)
    assert one.counts == (0, 0, 9, 0, 0, 0, 0, 0)
    assert book_usage(np.zeros(12, np.int64), tokens)[0].perplexity == 0


def test_of_anyres_the_first_view_counts(tmp_path):
    of = LAYOUT.model_copy(update={"grid": GridLayout(rows=2, cols=6, patch_px=14, fit="anyres"), "tokens": None})
    samples = []
    for ordinal in range(3):
        made = make_sample(ordinal, layout=of)
        views = (made.coverage, *[np.full_like(made.coverage, 255)] * ordinal)
        coverage = np.concatenate(views, axis=1)
        selector = (coverage > of.threshold).astype(np.uint8)
        samples.append(replace(made, coverage=coverage, selector=selector, views=1 + ordinal))
    folder = make_dataset(tmp_path / "d", [samples], layout=of)
    found = collect_stats(open_dataset(folder), 0)
    expected = np.concatenate([sample.selector[:, :2] for sample in samples]).mean(axis=0)
    assert np.allclose(found.positions.selector, expected)
    assert found.codes == ()


@pytest.mark.parametrize("finished", [True, False])
def test_patches_of_padding_do_not_count(tmp_path, finished):
    """Of 4 x 4 patches a wide image fills the two rows in the middle, a square one all."""
    grid = {"rows": 4, "cols": 4, "patch_px": 14, "fit": "pad"}
    of = LAYOUT.model_copy(update={"grid": GridLayout(**grid), "tokens": None, "min_coverage": 0.0})
    samples = []
    for height, row in ((20, 1), (40, 0)):
        kept = np.zeros((1, 4, 4), np.uint8)
        kept[0, row] = 1
        made = texted(make_sample(height, layout=of), "a")
        image = made.image.model_copy(update={"height": height})
        samples.append(replace(made, image=image, selector=kept, coverage=kept * 255))
    folder = make_dataset(tmp_path / "d", [samples], layout=of)
    edit_json(folder / "dataset.json", lambda manifest: manifest["config"].update(grid=grid))
    if not finished:
        (folder / "dataset.json").unlink()
    for padding, wide, row in ((False, 4 / 8, 1), (True, 4 / 16, 0.5)):
        found = collect_stats(open_dataset(folder), 0, padding=padding)
        assert (found.labels.shares.mean, found.labels.shares.maximum) == ((wide + 4 / 16) / 2, wide)
        assert found.positions.selector == ((row,) * 4, (0.5,) * 4, (0,) * 4, (0,) * 4)


def test_data_sets_without_labels_or_codes(tmp_path):
    bare = LAYOUT.model_copy(update={"min_coverage": None, "tokens": None})
    folder = make_dataset(tmp_path / "d", [[make_sample(n, layout=bare) for n in range(3)]], layout=bare)
    found = told(folder)
    assert (found["labels"], found["positions"], found["codes"]) == (None, None, [])
    assert "patches" not in run(folder, "--png", tmp_path / "s.png", "--html", tmp_path / "s.html", rc=0).stdout


@pytest.mark.parametrize("finished", [True, False])
def test_where_every_sample_was_rejected(tmp_path, finished):
    """Just then one asks why."""
    rejects = [*map(make_reject, range(3)), replace(make_reject(3), fault=Fault("plan", "no-text", ""))]
    folder = make_dataset(tmp_path / "d", [[], []], {0: rejects[:2], 1: rejects[2:]})
    if not finished:
        (folder / "dataset.json").unlink()
    printed = run(folder, "--png", tmp_path / "s.png", "--html", tmp_path / "s.html", rc=0).stdout
    assert printed.splitlines()[0].endswith(": 0 samples in 0 shards; 0 texts; 4 rejected")
    rows = [re.findall(r"\w[\w-]*", line) for line in printed.splitlines()]
    assert ["read", "image-missing", "3"] in rows
    assert ["plan", "no-text", "1"] in rows
    assert "distribution" not in printed
    with Image.open(tmp_path / "s.png") as image:
        assert image.size[0] > 1000
    page = (tmp_path / "s.html").read_text()
    assert "image-missing" in page
    assert not {"Distributions", "Formats", "<img"} & set(re.findall(r"\w+|<\w+", page))
    found = json.loads(run(folder, "--json").stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [(entry["stage"], entry["count"]) for entry in found["rejects"]] == [("read", 3), ("plan", 1)]
    assert {name for name, value in found.items() if value} == {"dataset", "rejects"}
    assert (found["width"], found["labels"], found["codes"], found["samples"]) == (None, None, [], 0)


def test_where_there_is_nothing_at_all(tmp_path):
    assert "neither samples nor rejects" in refusal("stats", make_dataset(tmp_path / "d", [[]]))


def test_a_selector_of_other_numbers_keeps_just_the_same(tmp_path):
    """A tar of others: anything but 0 is kept, as `diff`, `show` and the gallery have it."""
    tar, sidecar = write_shard([make_sample(0)])
    (tmp_path / "a.tar").write_bytes(tar)
    (tmp_path / "a.parquet").write_bytes(sidecar)
    ones = told(tmp_path / "a.tar")["positions"]
    assert max(map(max, ones["selector"])) == 1
    (sample,) = iter_samples(open_storage(tmp_path), "a.tar")
    selector = sample.selector.tobytes()
    assert tar.count(selector) == 1
    (tmp_path / "a.tar").write_bytes(tar.replace(selector, selector.replace(b"\1", b"\7")))
    assert told(tmp_path / "a.tar")["positions"] == ones


def test_unfinished_builds_lone_tars_and_stores(dataset, tmp_path):
    expected = told(dataset)
    with on_a_store(dataset) as uri:
        assert told(uri) == expected | {"dataset": uri}
    (dataset / "dataset.json").unlink()
    (dataset / "commits" / "000001.json").unlink()
    partly = told(dataset)
    assert (partly["samples"], partly["unbuilt"]) == (9, 1)
    assert "1 unit not built yet" in run(dataset).stdout
    tar, sidecar = write_shard([make_sample(n) for n in range(4)])
    (tmp_path / "a.tar").write_bytes(tar)
    scanned = told(tmp_path / "a.tar")
    (tmp_path / "a.parquet").write_bytes(sidecar)
    assert told(tmp_path / "a.tar") == scanned


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("label_shares", [np.nan]), ("label_shares", [0.5, 0.5, 0.5])),
        *(("scores", [float("inf")]), ("scores", [])),
        *(("phrase_texts", [7]), ("phrase_texts", [-1])),
        *(("width", -5), ("codes", [30])),
    ],
)
def test_impossible_numbers_are_errors(dataset, column, value):
    edit_column(dataset / "sidecars" / "000002.parquet", column, lambda values: [value, *values[1:]])
    assert "verify" in refusal("stats", dataset, kind=ShardError)


def test_labels_of_another_grid_are_an_error(dataset):
    edit_json(dataset / "dataset.json", lambda manifest: manifest["layout"]["grid"].update(cols=5))
    assert "has no labels of 4 x 5 patches" in str(run(dataset).exception)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("grid", "rows", 10**6),
        ("grid", "cols", 1025),
        ("grid", "patch_px", 10**30),
        *(("tokens", "grid", shape) for shape in ([2**20, 2**20], [1025, 1024], [4, 0], [1] * 100)),
        *(("tokens", "codebook_sizes", sizes) for sizes in ([2**31], [2**40], [2**23, 2**23, 1], [0], [-5, 35])),
        ("tokens", "codebook_sizes", [1] * 5000),
    ],
)
def test_layouts_that_no_model_has_are_errors(dataset, part, name, value):
    """Not something to make room for."""
    edit_json(dataset / "dataset.json", lambda manifest: manifest["layout"][part].update({name: value}))
    for command in ("stats", "info"):
        assert f"layout.{part}.{name}" in refusal(command, dataset, kind=ShardError)
    assert "dataset.json" in inspect("verify", dataset, rc=1).stdout


def test_large_layouts_that_models_have():
    tokens = {"member": "t", "preprocessing": "x"}
    many = ((1024, 1024), (2**24,)), ((4, 64, 64), (2**18,)), ((750,), (1024,) * 32), ((16, 16), (2,) * 32)
    for grid, sizes in many:
        assert TokensLayout(grid=grid, codebook_sizes=sizes, **tokens).codebook_sizes == sizes
    assert GridLayout(rows=1024, cols=1024, patch_px=1024, fit="pad").rows == 1024


def test_a_lone_tar_that_boasts_takes_no_memory(tmp_path):
    grid = {"rows": 10**6, "cols": 10**6, "patch_px": 14, "fit": "squash", "views": 1}
    (tmp_path / "a.tar").write_bytes(edit_document(grid=grid)(write_shard([make_sample(3)])[0]))
    assert "has no labels of 1000000 x 1000000 patches" in str(run(tmp_path / "a.tar").exception)


def test_in_the_terminal(dataset):
    printed = run(dataset, rc=0).stdout
    lines = printed.splitlines()
    assert lines[0].endswith("13 samples in 3 shards; 19 texts; 3 rejected; 9 jpeg, 4 png")
    for words in ("words a text", "label share of a text", "perplexity", "image-missing", "(darkest: kept by"):
        assert words in printed
    grid = [line for line in lines if re.fullmatch("│[ ░▒▓█]{12}│", line)]
    assert len(grid) == 4
    assert any("█" in line for line in grid)


def test_the_page_needs_nothing_else(dataset, tmp_path, monkeypatch):
    page = tmp_path / "s.html"
    monkeypatch.chdir(dataset.parent)
    name = r"<b>$\q$&d"
    (dataset.parent / name).symlink_to(dataset)
    assert run(name, "--html", page, "--png", tmp_path / "s.png").exit_code == 0
    html = page.read_text()
    assert r"&lt;b&gt;$\q$&amp;d" in html
    assert "<b>$" not in html
    assert not re.search(r"<script|https?://|javascript:|\son\w+=", html)
    assert "prefers-color-scheme: dark" in html
    pictures = re.findall(r'"data:image/svg\+xml;base64,([^"]+)"', html)
    assert len(pictures) == 18, "nine plots, light and dark"
    for picture in pictures:
        assert ElementTree.fromstring(base64.b64decode(picture)).tag.endswith("svg")
    assert len(set(pictures)) == 18
    with Image.open(io.BytesIO((tmp_path / "s.png").read_bytes())) as image:
        assert image.size > (1000, 800)
    assert "image-missing" in html


def test_a_hostile_notice_and_reason_are_text(tmp_path):
    of = LAYOUT.model_copy(update={"notice": "<img src=x onerror=alert(1)> [red]\x1b[2J"})
    reject = replace(make_reject(1), fault=Fault("read", "<script>alert(1)</script>[bold]\x1b[2J", ""))
    folder = make_dataset(tmp_path / "d", [[make_sample(0, layout=of)]], {0: [reject]}, layout=of)
    done = run(folder, "--html", tmp_path / "s.html")
    assert "\x1b" not in done.stdout
    assert "[red]" in done.stdout
    html = (tmp_path / "s.html").read_text()
    assert "<img src=x" not in html
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;[bold]" in html


@pytest.mark.parametrize(
    ("option", "path", "words"),
    [
        ("--png", "s.jpg", "ends with .png"),
        ("--html", "s.htm", "ends with .html"),
        ("--html", "no/s.html", "no folder"),
    ],
)
def test_files_that_cannot_be_written(dataset, tmp_path, option, path, words):
    assert words in refusal("stats", dataset, option, tmp_path / path)
