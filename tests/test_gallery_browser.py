"""The gallery's page in a real Chromium, opened from a disk and served."""

import base64
import io
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import DESK, PHONE, chromium, settle, small_controls, until, watched_page
from gallery_data import CELLS, GRID, HOSTILE, LAYOUT, SIZE, UNTRAINED, gallery_dataset, gallery_sample, payload, served
from PIL import Image
from shard_data import configure, make_dataset, make_sample, renamed, stored, write_shard

from patchmint.datasets.dataset import Dataset, Shard, open_dataset
from patchmint.inspection.find.search import Search, find_samples
from patchmint.inspection.gallery.documents import script
from patchmint.inspection.gallery.folder import write_gallery
from patchmint.inspection.gallery.site import GallerySettings, Site
from patchmint.pictures.labels import PALETTE
from patchmint.shards.sidecar import SCHEMA
from patchmint.storage import open_storage

pytestmark = pytest.mark.browser

SAMPLES = 60
HEIGHT, WIDTH = SIZE


@dataclass(frozen=True)
class Gallery:
    """Where a gallery is, and what is in it."""

    url: str
    dataset: Path

    @cached_property
    def samples(self):
        return stored(self.dataset)


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    folder = gallery_dataset(tmp_path_factory.mktemp("browser") / "d", SAMPLES, **UNTRAINED)
    out = folder.parent / "a gallery #1"  # a name that an address must escape
    write_gallery(Site(open_dataset(folder), GallerySettings(size=256)), out)
    return Gallery((out / "index.html").as_uri(), folder)


@pytest.fixture(scope="module", params=["file", "serve"])
def gallery(request, on_disk):
    if request.param == "file":
        yield on_disk
        return
    with served(Site(open_dataset(on_disk.dataset), GallerySettings(size=256))) as server:
        yield Gallery(server.url, on_disk.dataset)


@contextmanager
def page_of(browser, gallery, state="", **options):
    with watched_page(browser, gallery.url.removesuffix("index.html"), **(DESK | options)) as (page, _):
        visit(page, gallery, state)
        yield page


def visit(page, gallery, state):
    page.goto(gallery.url + state)
    settle(page)


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def pixels(page, place=".card >> nth=0"):
    """RGBA (height, width, 4) of an overlay."""
    url = page.locator(place).locator(".overlay").evaluate("canvas => canvas.toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))


def positions(page):
    return [int(text) for text in page.locator(".card").evaluate_all("cards => cards.map(c => c.dataset.position)")]


def cells_of(canvas):
    """The colour in the middle of each cell of the grid, which `crop` lays on the image's middle 160 pixels."""
    height, width = canvas.shape[:2]
    rows = (np.arange(CELLS) + 0.5) * height / CELLS
    cols = (40 + (np.arange(CELLS) + 0.5) * 160 / CELLS) * width / WIDTH
    return canvas[np.ix_(rows.astype(int), cols.astype(int))]


def is_kept(cells):
    """Mint, not dark."""
    return cells[..., 1] > 150


def on_canvas(x, width):
    """Where an x of the image lies; halves go up, as in JavaScript."""
    return int(x * width / WIDTH + 0.5)


def best_patches(coverage, percent):
    flat = coverage.ravel().astype(int)
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[: percent * flat.size // 100]] = True
    return kept.reshape(coverage.shape)


def test_switches(browser, gallery):
    with page_of(browser, gallery, "#page=1") as page:
        first = page.locator(".card").nth(1)
        both = pixels(page, ".card >> nth=1")
        assert both[..., 3].any()
        press(page, "b")
        patches = pixels(page, ".card >> nth=1")
        assert (both != patches).any()
        page.keyboard.press("p")
        assert not pixels(page, ".card >> nth=1").any()
        assert not page.locator("#legend").is_visible()
        page.keyboard.press("h")
        heat = pixels(page, ".card >> nth=1")
        assert heat[..., 3].all()
        assert (heat != patches).any()
        assert page.locator("#legend").is_visible()
        page.keyboard.press("h")
        assert not first.locator("img.masks").is_visible()
        page.keyboard.press("m")
        assert first.locator("img.masks").is_visible()
        settle(page)
        assert first.locator("img.masks").evaluate("i => i.naturalWidth") == 240
        page.get_by_role("button", name="decoded").click()
        settle(page)
        decoded = first.locator(".second img")
        assert decoded.is_visible()
        assert decoded.evaluate("i => i.naturalWidth / i.naturalHeight") == pytest.approx(WIDTH / HEIGHT, rel=0.02)
        pressed = page.locator("[data-switch]").evaluate_all("all => all.map(b => b.ariaPressed)")
        assert pressed == ["false", "false", "false", "true", "true"]
        assert page.url.endswith("#show=masks%2Cdecoded")


def test_patches_as_labelled_and_at_a_ratio(browser, on_disk):
    with page_of(browser, on_disk, "#show=patches") as page:
        for position in (0, 3, 11):
            sample, place = on_disk.samples[position], f".card >> nth={position}"
            np.testing.assert_array_equal(is_kept(cells_of(pixels(page, place))), sample.selector[0] == 1)
            assert f"{sample.selector[0].sum()}/64 kept" in page.locator(place).inner_text()
        page.locator("#keep-on").check()
        for percent in (25, 0, 3, 70, 100):
            page.locator("#keep").fill(str(percent))
            for position in (0, 11):
                wanted = best_patches(on_disk.samples[position].coverage[0], percent)
                shown = is_kept(cells_of(pixels(page, f".card >> nth={position}")))
                np.testing.assert_array_equal(shown, wanted)
                assert f"{wanted.sum()}/64 kept" in page.locator(".card").nth(position).inner_text()
        assert "keep=100" in page.url
        visit(page, on_disk, "#show=patches&keep=25&sample=11&text=1")
        assert "kept 16 of 64 patches" in page.locator("#detail").inner_text()
        shown = is_kept(cells_of(pixels(page, "#detail")))
        np.testing.assert_array_equal(shown, best_patches(on_disk.samples[11].coverage[1], 25))


def test_overlays_lie_where_they_should(browser, on_disk):
    with page_of(browser, on_disk, "#show=patches") as page:
        canvas = pixels(page, ".card >> nth=1").astype(int)
        height, width = canvas.shape[:2]
        assert width / height == pytest.approx(WIDTH / HEIGHT, rel=0.02)
        left, right = on_canvas(40, width), on_canvas(200, width)
        outside = np.concatenate([canvas[:, : left - 2], canvas[:, right + 2 :]], axis=1)
        assert (outside[..., 3] > 190).all()  # hatched: the encoder doesn't see it
        assert (outside[..., 0] > 60).any()
        assert (canvas[:, left + 2 : right - 2, 3] < 190).mean() > 0.6
        kept = on_disk.samples[1].selector[0]
        row, col = next(
            (r, c) for r in range(CELLS) for c in range(CELLS) if kept[r, c] and (c == 0 or not kept[r, c - 1])
        )
        edge = on_canvas(40 + col * 160 / CELLS, width)
        y = round((row + 0.5) * height / CELLS)
        np.testing.assert_allclose(canvas[y, edge], (64, 255, 180, 255), atol=2)  # the border begins on the cell's edge

        visit(page, on_disk, "#show=boxes")
        canvas = pixels(page, ".card >> nth=1").astype(int)
        for phrase, colour in zip(on_disk.samples[1].document.phrases, PALETTE, strict=False):
            x0, y0, x1, y1 = (round(v * width / WIDTH) for v in phrase.box)
            # Half way down on the outer side, where nothing else is drawn.
            x, y = x0 if colour == PALETTE[0] else x1, (y0 + y1) // 2
            near = canvas[y, max(x - 1, 0) : x + 2]
            assert (np.abs(near[:, :3] - colour).max(axis=1) <= 3).any(), (phrase.box, near)
            assert not canvas[y, x + 6 if x == x1 else x - 6].any()


def test_filters_and_order(browser, on_disk):
    samples = on_disk.samples
    shares = [[float(text.mean()) for text in sample.selector] for sample in samples]
    scores = [max((p.score for p in sample.document.phrases), default=None) for sample in samples]
    texts = ["\n".join([sample.key, *sample.document.texts]).lower() for sample in samples]
    dataset = open_dataset(on_disk.dataset)

    def wanted(state, keep, order=None):
        visit(page, on_disk, f"#show=&{state}")  # overlays take time
        hits = [position for position in range(SAMPLES) if keep(position)]
        order = sorted(hits, key=order) if order else hits
        finder = "patchmint.finder"
        assert page.evaluate(f"Array.from({{ length: {finder}.total() }}, (_, i) => {finder}.at(i))") == order, state
        assert positions(page) == order[:24], state

    def as_find_does(state, **bounds):
        found = find_samples(dataset, Search(**bounds))[1].tolist()
        assert 0 < len(found) < SAMPLES
        wanted(state, lambda n: n in found)

    with page_of(browser, on_disk) as page:
        wanted("q=PARK", lambda n: "park" in texts[n])
        wanted("q=s0044", lambda n: n == 44)
        wanted("q=%3Cimg", lambda n: "<img" in texts[n])
        wanted("q=%D8%AD%D9%85%D8%B1%D8%A7%D8%A1", lambda n: n == 2)
        wanted("q=nowhere", lambda n: False)
        assert page.locator("#hits").inner_text() == "0 hits"
        # Shares are so many of 64 patches, 19 of them 29.6875 %: no bound is rounded onto them.
        for low, high in ((29.68, 29.69), (29.69, 34), (0, 29.68), (25, 25)):
            as_find_does(f"share={low}-{high}", min_share=low / 100, max_share=high / 100)
        as_find_does("score=40-60.5", min_score=0.4, max_score=0.605)
        as_find_does("score=51-51", min_score=0.51, max_score=0.51)
        wanted(
            "score=40-60&q=scene%201",
            lambda n: scores[n] is not None and 0.4 <= scores[n] <= 0.6 and "scene 1" in texts[n],
        )
        wanted("sort=share-", lambda n: True, lambda n: (-max(shares[n]), n))
        wanted("sort=score", lambda n: True, lambda n: (scores[n] is None, scores[n], n))
        wanted(
            "sort=score-&q=scene", lambda n: "scene" in texts[n], lambda n: (scores[n] is None, -(scores[n] or 0), n)
        )


def test_filters_by_hand(browser, on_disk):
    with page_of(browser, on_disk) as page:
        page.locator("#query").fill("park with a dog")
        until(page, "document.getElementById('hits').textContent.includes('hits')")
        settle(page)
        assert "55 hits" in page.locator("#hits").inner_text()
        page.locator("#score-from").fill("70")
        page.locator("#score-from").blur()
        settle(page)
        count = sum(
            "park with a dog" in sample.document.texts[0] and any(p.score >= 0.7 for p in sample.document.phrases)
            for sample in on_disk.samples
        )
        assert count > 0
        assert f"{count} hits" in page.locator("#hits").inner_text()
        page.locator("#reset").click()
        settle(page)
        assert "60 samples" in page.locator("#hits").inner_text()


def test_pages_and_keyboard(browser, gallery):
    with page_of(browser, gallery) as page:
        assert positions(page) == list(range(24))
        press(page, "]")
        settle(page)
        assert positions(page) == list(range(24, 48))
        page.get_by_role("button", name="Last page").first.click()
        settle(page)
        assert positions(page) == list(range(48, 60))
        assert page.get_by_role("button", name="Next page").first.is_disabled()
        page.go_back()
        settle(page)
        assert positions(page) == list(range(24, 48))
        press(page, "[")
        settle(page)
        focused = "document.activeElement.dataset.position"
        for key, position in (("j", 0), ("ArrowRight", 1), ("j", 2), ("k", 1), ("ArrowDown", 5), ("ArrowUp", 1)):
            press(page, key)
            assert page.evaluate(focused) == str(position), key
        press(page, "Enter")
        page.locator("#detail[open]").wait_for()
        settle(page)
        assert "sample=1" in page.url
        assert "s0001" in page.locator("#detail-key").inner_text()
        press(page, "ArrowDown")
        assert page.locator(".text-choice[aria-pressed=true]").inner_text().startswith("2")
        press(page, "ArrowRight")
        until(page, "document.getElementById('detail-key').textContent === 's0002'")
        press(page, "b")
        assert page.locator("[data-switch=boxes]").get_attribute("aria-pressed") == "false"
        press(page, "Escape")
        until(page, "!document.getElementById('detail').open && !location.hash.includes('sample')")
        assert page.evaluate(focused) == "2"
        press(page, "/")
        assert page.evaluate("document.activeElement.id") == "query"
        page.keyboard.type("b?")
        assert page.locator("#query").input_value() == "b?"
        press(page, "Escape", "?")
        assert page.locator("#help").is_visible()
        press(page, "Escape")
        assert not page.locator("#help").is_visible()


def test_links_hold_everything(browser, on_disk):
    link = "#page=2&per=36&q=dog&share=1-90&sort=share&keep=40&show=patches%2Cheat&theme=dark&sample=20&text=1"
    with page_of(browser, on_disk, link) as page:
        assert "s0020" in page.locator("#detail-key").inner_text()
        for place, value in (("query", "dog"), ("keep", "40"), ("share-from", "1"), ("sort", "share")):
            assert page.locator(f"#{place}").input_value() == value
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert page.evaluate("patchmint.addressOf({})") == link
    nonsense = "#page=-3&per=7&share=a-b&sort=evil&keep=1000&show=%3Cscript%3E&sample=99999&text=x&theme=pink"
    with page_of(browser, on_disk, nonsense) as page:
        assert positions(page) == list(range(24))
        assert page.evaluate("patchmint.addressOf({})") == "#show="


def test_hostile_texts_are_texts(browser, gallery):
    with page_of(browser, gallery) as page:
        for position, text in enumerate(HOSTILE):
            card = page.locator(f".card >> nth={position} >> .card-text")
            assert card.evaluate("e => e.textContent").removesuffix("…") == text[:320].strip() or position == 3
            visit(page, gallery, f"#sample={position}")
            until(page, f"document.getElementById('detail-key').textContent === 's{position:04}'")
            words = page.locator("#detail .text-words")
            if position == 3:
                assert len(words.evaluate("e => e.textContent")) < 2000
                page.get_by_role("button", name="Show the whole text").click()
            assert words.evaluate("e => e.textContent") == text
            direction = "rtl" if position == 2 else "ltr"
            assert words.evaluate("e => getComputedStyle(e).direction") == direction
            page.keyboard.press("Escape")
        assert page.locator("#notice").inner_text() == LAYOUT.notice
        assert page.evaluate("[...document.querySelectorAll('script')].every(s => s.src)")
        assert page.evaluate("document.querySelectorAll('[onerror], iframe, main b').length") == 0
        assert page.locator("h1").inner_text() == "d"


CLOSE = "document.getElementById('detail').close();"


@pytest.mark.parametrize("then", ["location.hash = '#sample=5'", "patchmint.set({ sample: 5 })"])
def test_another_sample_opened_at_once(browser, on_disk, then):
    with page_of(browser, on_disk, "#sample=2") as page:
        page.evaluate(f"{{ {CLOSE} {then} }}")
        settle(page)
        until(page, "document.getElementById('detail-key').textContent === 's0005'")
        page.wait_for_timeout(50)
        assert page.locator("#detail").is_visible()
        assert page.evaluate("location.hash") == "#sample=5"


def test_details(browser, gallery):
    with page_of(browser, gallery, "#sample=1&show=boxes") as page:
        sample = gallery.samples[1]
        phrases = page.locator(".phrase")
        assert phrases.count() == 2
        assert phrases.nth(0).inner_text().split("\n")[-1] == f"{sample.document.phrases[0].score:.2f}"
        before = pixels(page, "#detail")
        phrases.nth(1).hover()
        marked = pixels(page, "#detail")
        assert (before != marked).any()
        page.locator("#detail-key").hover()
        assert (pixels(page, "#detail") == before).all()
        assert page.locator("#detail table").count() == 0
        page.locator("#detail summary").click()
        until(page, "document.querySelector('#detail table')")
        cells = page.locator("#detail td").all_inner_texts()
        assert [int(cell) for cell in cells] == sample.codes.ravel().tolist()
        facts = page.locator("#detail dl").inner_text()
        for fact in (f"{WIDTH} × {HEIGHT}", "shards/000000.tar", "images/1.jpeg", "Source/1.é", "8 × 8, crop"):
            assert fact in facts
        page.locator("#detail [data-switch=patches]").click()  # the switches are in reach
        assert (pixels(page, "#detail") != before).any()
        page.get_by_role("button", name="Close").first.click()
        assert page.locator("#bar").evaluate("bar => bar.parentElement.tagName") == "BODY"


def test_on_a_phone(browser, on_disk):
    with page_of(browser, on_disk, "#show=boxes,patches,heat,decoded", **PHONE) as page:
        page.locator("#filters summary").tap()
        for state in ("", "#q=dog&sort=share-", "#sample=3&text=0", "#sample=2&show=boxes,heat"):
            visit(page, on_disk, state)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, state
            inside = "document.getElementById('detail')"
            assert page.evaluate(f"!{inside}.open || {inside}.querySelector('.side').scrollWidth <= 390")
            assert small_controls(page) == []


def luminance(page, place):
    colour = page.locator(place).first.evaluate("e => getComputedStyle(e).backgroundColor")
    return float(np.mean([float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]))


def test_light_and_dark(browser, on_disk):
    for scheme, other in (("light", "dark"), ("dark", "light")):
        with page_of(browser, on_disk, color_scheme=scheme) as page:
            first = luminance(page, "body")
            assert (first > 128) == (scheme == "light")
            page.locator("#theme").click()
            assert (luminance(page, "body") > 128) == (other == "light")
            assert f"theme={other}" in page.url
            page.locator("#theme").click()
            assert luminance(page, "body") == first


def contrast(one, other):
    def light(colour):
        linear = [(c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4) for c in (v / 255 for v in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(browser, on_disk, scheme):
    with page_of(browser, on_disk, "#keep=25&sample=1", color_scheme=scheme) as page:
        found = page.evaluate(
            """() => {
                const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
                const own = (e) => rgb(getComputedStyle(e).backgroundColor);
                const ground = (e) => (!e ? [255, 255, 255] : own(e)[3] !== 0 ? own(e) : ground(e.parentElement));
                const all = document.querySelectorAll("p, button, dt, dd, label, h1, h2, summary, mark, output, kbd");
                return [...all].filter((e) => e.checkVisibility() && e.textContent.trim() && !e.disabled)
                    .map((e) => [e.outerHTML.slice(0, 80), rgb(getComputedStyle(e).color), ground(e)]);
            }"""
        )
        assert len(found) > 40
        assert [item[0] for item in found if contrast(item[1], item[2]) < 4.5] == []
        unnamed = "b => !(b.getAttribute('aria-label') || b.textContent.trim() || b.labels?.length)"
        assert page.locator("button, input, select").evaluate_all(f"all => all.filter({unnamed}).length") == 0


def test_what_is_missing_says_so(browser, tmp_path):
    samples = [make_sample(n) for n in range(3)]
    samples[1] = replace(samples[1], data=b"\xff\xd8\xff<b>no picture</b>")
    grid = {"rows": 4, "cols": 6, "patch_px": 14, "fit": "squash"}
    folder = configure(make_dataset(tmp_path / "d", [samples]), grid=grid)
    site = Site(open_dataset(folder), GallerySettings(samples=2))
    with served(site) as server, page_of(browser, Gallery(server.url, folder)) as page:
        assert "2 of 3 samples in 1 shard, evenly spread" in page.locator("#count").inner_text()
        masks = page.locator("[data-switch=masks]")
        assert masks.get_attribute("aria-disabled") == "true"
        assert "doesn't say which model made its masks" in masks.get_attribute("title")
        press(page, "m")
        assert masks.get_attribute("aria-pressed") == "false"
        broken = page.locator(".card").nth(1)
        assert "damaged" in broken.locator(".frame-note").inner_text()
        assert "second text" in broken.inner_text() or broken.locator(".card-text").inner_text()
        press(page, "j", "j", "Enter")
        until(page, "document.getElementById('detail-key').textContent === 's0001'")
        assert "damaged" in page.locator("#detail .frame-note").inner_text()


def test_what_can_not_be_drawn_says_so(browser, tmp_path):
    samples = [gallery_sample(n) for n in range(10, 13)]
    samples[1] = replace(samples[1], codes=samples[1].codes + 400)
    folder = configure(make_dataset(tmp_path / "d", [samples], layout=LAYOUT), grid=GRID, **UNTRAINED)
    write_gallery(Site(open_dataset(folder), GallerySettings(masks=False)), tmp_path / "g")
    anyres = tmp_path / "g" / "samples" / "000000" / "000002.js"
    sample = payload(anyres.read_bytes())
    sample["grid"] |= {"fit": "anyres", "views": 3}
    anyres.write_bytes(script("samples/000000/000002", sample))
    gallery = Gallery((tmp_path / "g" / "index.html").as_uri(), folder)
    with page_of(browser, gallery, "#show=patches,decoded&keep=25") as page:
        cards = page.locator(".card")
        assert "codes can't be drawn" in cards.nth(1).locator(".frame-note").inner_text()
        assert [cards.nth(n).locator(".second").is_visible() for n in range(3)] == [True, False, True]
        assert [cards.nth(n).locator(".frame-note").is_visible() for n in range(3)] == [False, True, False]
        assert "16/64 kept ·" in cards.nth(0).inner_text()
        assert "16/64 kept of the first view ·" in cards.nth(2).inner_text()
        for position, words in ((0, "64 patches, the best"), (2, "64 patches of the first view, the best")):
            visit(page, gallery, f"#keep=25&sample={position}")
            until(page, f"document.getElementById('detail-key').textContent.startsWith('s00{10 + position}')")
            line = page.locator(".kept-line").inner_text()
            assert words in line
            assert ("over all views" in line) == (position == 2)
        first, second = (f"{text.mean():.1%}" for text in samples[0].selector)
        page.goto(gallery.url)
        card = page.locator(".card").first.inner_text()
        assert f"share {first}" in card
        assert (f"(another text {second})" in card) == (samples[0].selector[1].sum() > samples[0].selector[0].sum())


@pytest.mark.parametrize("device", [DESK, PHONE])
def test_the_photo_stands_beside_what_is_drawn_on_it(browser, on_disk, device):
    with page_of(browser, on_disk, "#sample=10&show=patches,decoded", **device) as page:
        stages = page.locator("#detail .stage")
        assert [stages.nth(n).is_visible() for n in range(3)] == [True, True, True]
        frame = page.locator("#detail .frame").bounding_box()
        places = [stages.nth(n).bounding_box() for n in range(3)]
        for place, below in zip(places, [*places[1:], {"y": frame["y"] + frame["height"] + 1}], strict=True):
            assert frame["y"] <= place["y"] < place["y"] + place["height"] <= below["y"]
            assert place["width"] == pytest.approx(place["height"] * WIDTH / HEIGHT, abs=1)
        assert page.locator("#detail .plain canvas, .card .plain").count() == 0
        visit(page, on_disk, "#sample=10&show=")
        assert not page.locator("#detail .plain").is_visible()  # it would be the same picture twice


def test_a_card_has_the_score_of_its_text(browser, tmp_path):
    sample = gallery_sample(12)
    other = sample.phrases[0].model_copy(update={"text": "second", "text_index": 1, "start": 0, "end": 6, "score": 0.9})
    folder = make_dataset(tmp_path / "d", [[replace(sample, phrases=(*sample.phrases, other))]], layout=LAYOUT)
    write_gallery(Site(open_dataset(folder), GallerySettings(masks=False, decoded=False)), tmp_path / "g")
    with page_of(browser, Gallery((tmp_path / "g" / "index.html").as_uri(), folder)) as page:
        assert "best 0.32 (another text 0.90)" in page.locator(".card").inner_text()
        page.goto(page.url.partition("#")[0] + "#q=second")
        settle(page)
        assert page.locator(".card-facts").inner_text().endswith("best 0.90")


def wide_dataset(folder, shards=3, each=10_000):
    """Many samples by their sidecars; in the tars there are those of the first page and of the last."""
    for room in ("shards", "sidecars"):
        (folder / room).mkdir(parents=True)
    listed = []
    for unit in range(shards):
        ends = [*range(24), *range(each - 24, each)]
        kept = [renamed(gallery_sample(10), f"k{unit * each + row:06}") for row in ends]
        tar, sidecar = write_shard(kept, LAYOUT)
        real = {row["key"]: row for row in pq.read_table(io.BytesIO(sidecar)).to_pylist()}
        template = next(iter(real.values()))
        rows = []
        for row in range(each):
            key = f"k{unit * each + row:06}"
            rare = ["a needle in the hay"] if row % 5000 == 4321 else ["hay"]
            found = real.get(key, template | {"key": key})
            rows.append(found | {"texts": rare, "label_shares": [row / each], "scores": [(unit + 1) / 10]})
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "sidecars" / f"{unit:06}.parquet")
        (folder / "shards" / f"{unit:06}.tar").write_bytes(tar)
        listed.append(Shard(unit, f"shards/{unit:06}.tar", f"sidecars/{unit:06}.parquet", each, 0, len(tar)))
    return Dataset(str(folder), open_storage(folder), None, tuple(listed))


def test_a_wide_one_loads_what_it_shows(browser, tmp_path):
    dataset = wide_dataset(tmp_path / "wide")
    with served(Site(dataset, GallerySettings())) as server, watched_page(browser, server.url, **DESK) as (page, watch):
        url = server.url
        page.goto(url)
        settle(page)
        asked = [address.removeprefix(url) for address in watch.requests]
        assert sum(path.startswith("samples/") for path in asked) == 24
        assert sum(path.startswith("pictures/") for path in asked) == 24
        assert [path for path in asked if path.startswith("data/")] == ["data/meta.js"]
        assert len(asked) < 60
        assert page.locator(".card").count() == 24
        assert "1–24 of 30,000 samples" in page.locator("#hits").inner_text()

        watch.requests.clear()
        page.goto(f"{url}#page=1250")
        settle(page)
        assert positions(page)[-1] == 29_999
        assert len(watch.requests) == 48

        watch.requests.clear()
        page.goto(f"{url}#score=25-35&share=0-0.23")
        settle(page)
        assert positions(page) == list(range(20_000, 20_024))
        assert sum("data/index" in address for address in watch.requests) == 3
        page.goto(f"{url}#sort=share&score=5-15")
        settle(page)
        assert positions(page) == list(range(24))
        assert sum("data/index" in address for address in watch.requests) == 3  # they stay

        watch.requests.clear()
        page.goto(f"{url}#q=needle")
        until(page, "document.getElementById('hits').textContent === '6 hits'")
        assert positions(page) == [4321, 9321, 14_321, 19_321, 24_321, 29_321]
        assert [address for address in watch.requests if "texts" in address] == [
            f"{url}data/texts-{chunk:06}.js" for chunk in range(15)
        ]
        assert page.evaluate("document.querySelectorAll('script').length") < 10  # let go again
