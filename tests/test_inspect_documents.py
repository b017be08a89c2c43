"""`patchmint inspect`, the gallery and the card, of data sets of documents; all against what the shards hold."""

import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from browser import chromium, watched_page
from gallery_data import HOSTILE, UNTRAINED, payload, served
from inspect_data import answer, edit_json, inspect, refusal, unfinish
from PIL import Image
from shard_data import (
    DOCUMENTS,
    commit_unit,
    configure,
    finish,
    image_bytes,
    make_dataset,
    make_document,
    stored,
    tar_of,
    write_plan,
)

from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.ledger import iter_rejects
from patchmint.geometry import Fit, PatchGrid
from patchmint.inspection.gallery.folder import write_gallery
from patchmint.inspection.gallery.site import GallerySettings, Site
from patchmint.jobs.card import make_card
from patchmint.samples import Fault, Part, Reject
from patchmint.shards.layout import TokensLayout
from patchmint.shards.rejects import write_rejects

MANY = 40
GRID = {"rows": 4, "cols": 6, "patch_px": 14, "fit": "squash"}
TOKENS = TokensLayout(member="vqgan", grid=(8, 8), codebook_sizes=(64,), preprocessing="pad-128-bicubic")
LAYOUT = DOCUMENTS.model_copy(update={"tokens": TOKENS})
CELLS = PatchGrid(8, 8, 16, Fit.PAD)
"""On which the codes lie."""


def hostile(ordinal, text):
    """A document whose first text says this."""
    document = make_document(ordinal, layout=LAYOUT)
    source = document.planned.sample
    parts = tuple(Part(text, role=part.role) if part.text == source.texts[0].content else part for part in source.parts)
    texts = (replace(source.texts[0], content=text, phrases=(), instances=()), *source.texts[1:])
    return replace(document, planned=replace(document.planned, sample=replace(source, texts=texts, parts=parts)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    first = [make_document(number, count, layout=LAYOUT) for number, count in enumerate((1, 2, 6, MANY))]
    second = [hostile(4 + number, text) for number, text in enumerate((*HOSTILE, "\x1b[31mred\x07"))]
    silent = make_document(20, 3, turns=False, layout=LAYOUT)
    parts = make_dataset(tmp_path_factory.mktemp("documents") / "d", [first, [*second, silent]], layout=LAYOUT)
    return configure(parts, grid=GRID, **UNTRAINED)


@pytest.fixture(scope="module")
def samples(folder):
    return stored(folder)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHMINT_CACHE", str(tmp_path / "cache"))


def shown_cells(image):
    return CELLS.place((image.info.height, image.info.width)).inside > 0


def test_show(folder, samples, tmp_path):
    told, sample = answer("show", folder, "d0002"), samples[2]
    assert told["document"]["sequence"][0] == {"text": "", "image": 0, "role": "human"}
    assert told["document"]["image_texts"] == [[0, 1], [1]] * 3
    assert [phrase["image"] for phrase in told["document"]["phrases"]] == list(range(6))
    for image, read in zip(told["images"], sample.images, strict=True):
        assert (image["number"], image["shown_texts"]) == (read.number, list(read.texts))
        assert all(image[name] == getattr(read, name).tolist() for name in ("selector", "coverage", "codes"))
    one = answer("show", folder, "d0002", "--image", "3", "--text", "1")
    assert [(image["number"], image["shown_texts"]) for image in one["images"]] == [(3, [1])]
    assert one["images"][0]["selector"] == [sample.images[3].selector[0].tolist()]
    assert [image["number"] for image in answer("show", folder, "d0002", "--text", "0")["images"]] == [0, 2, 4]
    assert "no image 6" in refusal("show", folder, "d0002", "--image", "6")
    assert "labels other images than 1" in refusal("show", folder, "d0002", "--image", "1", "--text", "0")
    inspect("show", folder, "d0001", "--png", tmp_path / "o.png", rc=0)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["o-0-0.png", "o-0-1.png", "o-1-1.png"]


def test_shown_as_it_is_read(folder):
    lines = inspect("show", folder, "d0001", rc=0).stdout.splitlines()
    start = lines.index("human: [image 0] [image 1] eine Straße in Zürich [image 1]")
    assert lines[start + 1 : start + 3] == ["gpt: The answer to 1.", ""]
    assert "image 1 of 0..1" in lines
    many = inspect("show", folder, "d0003", rc=0).stdout
    assert "36 more images: --image N shows one" in many
    hostile = inspect("show", folder, "#9", rc=0).stdout
    assert "red" in hostile
    assert not {"\x1b", "\x07"} & set(hostile)


def test_what_is_damaged_is_said(tmp_path):
    folder = make_dataset(tmp_path / "d", [[make_document(0)]], layout=DOCUMENTS)
    tar = folder / "shards/000000.tar"
    for whole, broken in (
        (b'"image_texts_json":"[[0,1],[1]]"', b'"image_texts_json":"[[0,9],[1]]"'),
        (b'"image":1', b'"image":7'),
    ):
        kept = tar.read_bytes()
        assert whole in kept
        tar.write_bytes(kept.replace(whole, broken))
        done = inspect("show", folder, "d0000")
        assert "that it hasn't" in str(done.exception)
        file = Site(open_dataset(folder), GallerySettings()).file("samples/000000/000000.js")
        assert "that it hasn't" in payload(file)["problem"]
        tar.write_bytes(kept)


def test_find(folder):
    told = answer("find", folder, "--where", "images > 2 and list_contains(share_texts, 1)", "--sort", "images desc")
    assert [(sample["key"], sample["images"]) for sample in told["samples"]] == [
        ("d0003", MANY),
        ("d0002", 6),
        ("d0020", 3),
    ]
    assert told["samples"][1]["pairs"] == [[0, 0], [0, 1], [1, 1], [2, 0], [2, 1], [3, 1], [4, 0], [4, 1], [5, 1]]
    assert "images" in inspect("find", folder, "--where", "images = 40", rc=0).stdout
    assert answer("find", folder, "--text", "Zürich")["found"] == 1


def test_images_that_documents_were_written_without(tmp_path):
    folder, fault = tmp_path / "d", Fault("read", "part-image-missing", "it isn't there")
    write_plan(folder, {0: 2})
    dropped = [Reject(0, "d0000", "a", fault, image=1), Reject(1, "d0001", "b", Fault("read", "image-missing", "no"))]
    commit_unit(folder, 0, [make_document(0)], [dropped[1]], layout=DOCUMENTS)
    finish(folder, [0], 2, 1, DOCUMENTS)
    with (folder / "rejects/000000.parquet").open("wb") as file:
        write_rejects(file, dropped, documents=True)
    assert sum(table.num_rows for table in iter_rejects(open_dataset(folder))) == 2
    told = answer("find", folder, "--rejects", "--where", "image >= 0")
    assert told["rejects"] == [
        {
            "ordinal": 0,
            "key": "d0000",
            "id": "a",
            "stage": "read",
            "reason": "part-image-missing",
            "message": "it isn't there",
            "image": 1,
        }
    ]
    assert "d0000.1" in inspect("find", folder, "--rejects", rc=0).stdout
    told = answer("stats", folder)
    assert [[entry["reason"] for entry in told[kind]] for kind in ("rejects", "dropped")] == [
        ["image-missing"],
        ["part-image-missing"],
    ]


def test_stats(folder, samples):
    told = answer("stats", folder)
    images = [image for sample in samples for image in sample.images]
    labels = [(image, place) for image in images for place in range(len(image.texts))]
    assert (told["samples"], told["images"], told["formats"]) == (len(samples), len(images), {"jpeg": len(images)})
    assert told["images_per_sample"]["mean"] == pytest.approx(np.mean([len(sample.images) for sample in samples]))
    assert told["labels"]["labels"] == len(labels)
    assert told["labels"]["shares"]["mean"] == pytest.approx(
        np.mean([image.selector[place].mean() for image, place in labels]), abs=1e-4
    )
    found = Counter((phrase.image, phrase.text_index, sample.key) for sample in samples for phrase in sample.phrases)
    assert told["labels"]["phrases"] == found.total() == len(images)
    per_label = [found[image.number, image.texts[place], image.key] for image, place in labels]
    assert told["labels"]["phrases_per_text"]["mean"] == pytest.approx(np.mean(per_label))
    codes = np.concatenate([image.codes[shown_cells(image)] for image in images])
    assert told["codes"][0]["counts"] == np.bincount(codes, minlength=64).tolist()
    every = np.concatenate([image.codes.ravel() for image in images])
    assert answer("stats", folder, "--padding")["codes"][0]["counts"] == np.bincount(every, minlength=64).tolist()
    kept = np.mean([image.selector[place] for image, place in labels], axis=0)
    np.testing.assert_allclose(told["positions"]["selector"], kept)
    assert "images a document" in inspect("stats", folder, rc=0).stdout


def test_codes(folder, samples, tmp_path):
    counted = Counter()
    for sample in samples:
        for image in sample.images:
            counted.update((int(code), image.name) for code in image.codes[shown_cells(image)])
    code = Counter({code: times for (code, _), times in counted.items()}).most_common(1)[0][0]
    told = answer("codes", folder, str(code), "--limit", "99", "--sheet", tmp_path / "s.png")
    assert {image["name"]: image["count"] for image in told["shown"]} == {
        name: times for (own, name), times in counted.items() if own == code
    }
    assert told["occurrences"] == sum(times for (own, _), times in counted.items() if own == code)
    for shown in told["shown"]:
        image = samples[shown["index"]].images[shown["image"]]
        assert {image.codes[tuple(cell)] for cell in shown["cells"]} == {code}
        assert f"{shown['key']}.{shown['image']}" == shown["name"] == image.name
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 100
    assert "of 11 documents" in inspect("codes", folder, str(code), rc=0).stdout


def test_diff(folder, tmp_path):
    assert inspect("diff", folder, folder, rc=0).stdout.endswith("no difference\n")
    changed = [make_document(number, count, layout=LAYOUT) for number, count in enumerate((2, 2, 6, MANY))]
    selector = 1 - changed[2].images[5].selector
    flipped = replace(changed[2].images[5], selector=selector, coverage=selector * 255)
    changed[2] = replace(changed[2], images=(*changed[2].images[:5], flipped))
    other = make_dataset(tmp_path / "o", [changed], layout=LAYOUT)
    told = answer("diff", folder, other, rc=1)
    assert told["images"] == {"count": 1, "first": ["d0000"]}  # one image became two
    assert told["labels"]["other_shape"] == 1
    assert [(flips["key"], flips["on"] + flips["off"]) for flips in told["labels"]["most"]] == [("d0002", 24)]
    assert told["codes"]["changed"] == 0
    assert "another number of images: 1 (d0000)" in inspect("diff", folder, other, rc=1).stdout


def test_ls_and_info(folder, samples):
    told = answer("ls", folder / "shards/000000.tar")["samples"]
    assert [sample["members"] for sample in told] == [list(sample.members) for sample in samples[:4]]
    (folder / "sidecars/000000.parquet").rename(folder / "kept")
    try:
        assert answer("ls", folder / "shards/000000.tar")["samples"] == told
    finally:
        (folder / "kept").rename(folder / "sidecars/000000.parquet")
    assert answer("info", folder)["layout"]["documents"] is True
    lone = inspect("info", folder / "shards/000000.tar", rc=0).stdout
    assert "images    49 written" in lone
    assert "KEY.IMAGE.selector.npy" in lone
    assert "KEY.json" in lone


def test_an_unfinished_build(tmp_path):
    folder = make_dataset(tmp_path / "d", [[make_document(0)], [make_document(1)]], layout=DOCUMENTS)
    unfinish(folder)
    assert answer("show", folder, "#0")["document"]["key"] == "d0000"
    assert answer("info", folder)["layout"]["documents"] is True
    assert answer("stats", folder)["images"] == 2
    assert answer("find", folder, "--where", "images = 2")["found"] == 1


def test_a_tar_of_another_program(tmp_path):
    photos = [image_bytes(number, "jpeg") for number in range(3)]
    named = [("a.0.jpg", photos[0]), ("a.1.jpg", photos[1]), ("a.txt", b"two"), ("b.jpg", photos[2]), ("b.txt", b"one")]
    tar = tmp_path / "other.tar"
    tar.write_bytes(tar_of(named))
    shown = inspect("show", tar, "a", rc=0).stdout
    assert "[image 0] [image 1] two" in shown
    assert "grid" not in shown
    assert "grid" not in inspect("show", tar, "b", rc=0).stdout
    assert "KEY.IMAGE.jpg" in inspect("info", tar, rc=0).stdout
    assert answer("stats", tar)["images"] == 3
    site = Site(open_dataset(tar), GallerySettings())
    pictures = [path for path, _ in site.files() if path.startswith("pictures/")]
    assert pictures == [f"pictures/000000/{name}.jpg" for name in ("000000-0", "000000-1", "000001")]
    assert all(site.file(path) for path in pictures)


def test_card(folder):
    opened = open_dataset(folder)
    files = make_card(opened, opened.manifest, "org/name", "")
    card = files["README.md"].decode()
    assert "| KEY.IMAGE.selector.npy |" in card
    assert 'sample["0.selector.npy"]' in card
    assert "A sample is a document" in card
    assert sum(path.endswith(".jpg") for path in files) == 2


def test_gallery_files(folder, samples, tmp_path):
    edit_json(folder / "dataset.json", lambda told: told["config"].update(labels=None))  # masks can't be made again
    site = Site(open_dataset(folder), GallerySettings(size=64, decoded=False))
    written = dict(site.files())
    assert all(site.file(path) == data for path, data in written.items())
    assert sum(path.startswith("pictures/") for path in written) == sum(len(sample.images) for sample in samples)
    told = payload(written["samples/000000/000003.js"])
    assert [part["image"] for part in told["sequence"] if part["image"] >= 0] == [*range(MANY), MANY - 1]
    for view, image in zip(told["images"], samples[3].images, strict=True):
        assert [text["number"] for text in view["texts"]] == list(image.texts)
        assert view["codes"]["values"] == image.codes.ravel().tolist()
        assert view["labels"]["kept"][0]["kept"] == image.selector[0].sum()
    remade = Site(site.dataset, GallerySettings(masks=False))
    first, drawn = (remade.file(f"decoded/000000/000001-{number}.jpg") for number in range(2))
    assert first != drawn
    assert Image.open(io.BytesIO(drawn)).size == (64, 48)
    for path in ("pictures/000000/000003.jpg", "pictures/000000/000003-40.jpg", "samples/000000/000003-1.js"):
        assert site.file(path) is None
    photo = Image.open(io.BytesIO(written["pictures/000000/000002-5.jpg"]))
    assert photo.size == (40, 30)
    out = write_gallery(site, tmp_path / "g").folder
    assert write_gallery(site, out, force=True).problems == 0


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def url(folder):
    with served(Site(open_dataset(folder), GallerySettings(size=64, masks=False, decoded=False))) as server:
        yield server.url


@pytest.mark.browser
@pytest.mark.parametrize("screen", [(1280, 900), (390, 844)])
def test_strips(browser, url, samples, screen):
    viewport = {"width": screen[0], "height": screen[1]}
    with watched_page(browser, url, viewport=viewport) as (page, _):
        page.goto(url)
        cards = page.locator(".card .strip")
        cards.nth(10).wait_for()
        assert [cards.nth(n).locator(".strip-image").count() for n in (0, 1, 3)] == [2, 3, 6]
        assert "34 more images" in cards.nth(3).inner_text()
        assert HOSTILE[0] in cards.nth(4).inner_text()
        assert page.evaluate("document.querySelectorAll('[onerror], iframe').length") == 0
        page.goto(f"{url}#sample=3")
        strip = page.locator("#detail .strip")
        strip.wait_for()
        parts = strip.locator(":scope > *")
        numbers = [text for text in strip.locator(".stage-name").all_inner_texts() if text.startswith("image")]
        assert numbers == [f"image {n + 1}" for n in (*range(MANY), MANY - 1)]
        assert parts.last.inner_text() == "gpt The answer to 3."
        strip.locator(".strip-image").nth(7).click()
        page.wait_for_timeout(300)
        check(page, samples[3], 7)
        page.keyboard.press("]")
        page.wait_for_timeout(300)
        check(page, samples[3], 8)
        assert strip.locator('[aria-pressed="true"] > .stage-name').all_inner_texts() == ["image 9"]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)
        assert "image=" not in page.url


def check(page, sample, number):
    """The large image is that one, with the texts that label it, and the kept patches of the first of them."""
    image = sample.images[number]
    facts = page.locator("#detail .facts").inner_text()
    assert f"image {number + 1} of {len(sample.images)}" in facts
    assert image.source.path in facts
    kept = page.locator("#detail .kept-line").inner_text()
    assert f"kept {image.selector[0].sum()} of 24 patches" in kept
    choices = page.locator("#detail .text-number").all_inner_texts()
    assert choices == ([str(text + 1) for text in image.texts] if len(image.texts) > 1 else [])
