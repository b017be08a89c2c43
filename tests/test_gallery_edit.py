"""`patchmint inspect gallery --edit`: what is edited is kept at once, and by nobody but the page."""

import io
import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection

import numpy as np
import pytest
from browser import DESK, PHONE, chromium, settle, small_controls, until, watched_page
from gallery_data import SIZE, UNTRAINED, editable_dataset, gallery_dataset, gallery_sample, payload, photo, served
from inspect_data import inspect, refusal, texted
from typer.testing import CliRunner

from patchmint.cli import app
from patchmint.config import LabelsConfig, ModelsConfig
from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.edits import Edit, read_edits
from patchmint.errors import InputError
from patchmint.images.decode import decode_image
from patchmint.inspection.gallery import doubts
from patchmint.inspection.gallery.editing import Editing
from patchmint.inspection.gallery.edits import PendingEdits
from patchmint.inspection.gallery.remake import Outliner, offer_outlines
from patchmint.inspection.gallery.site import GallerySettings, Site
from patchmint.labelers.grounded_sam import build_masker
from patchmint.shards.schema import PhraseDocument

WIDTH = SIZE[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return editable_dataset(tmp_path_factory.mktemp("edit") / "d", [*map(gallery_sample, range(6))], **UNTRAINED)


def lines_of(data):
    return [line.edit for line in read_edits(io.BytesIO(data), "f")]


def lines(path):
    return lines_of(path.read_bytes()) if path.exists() else []


@contextmanager
def editing(folder, path, **settings):
    pending = PendingEdits(path)
    site = Site(open_dataset(folder), GallerySettings(**settings), pending)
    with served(site, Editing(site, pending, "ann")) as server:
        yield server


def photo_of(ordinal):
    return decode_image(photo(ordinal), max_megapixels=1).pixels


def outlines(images, boxes):
    """The mask of a box in each image, by the data set's masker."""
    masker = build_masker(ModelsConfig(**UNTRAINED["models"]), LabelsConfig(), "cpu")
    return [masks.rles()[0] for masks in masker.masks(images, [np.array([box], np.float32) for box in boxes])]


@contextmanager
def page_at(browser, server, state, **options):
    """The page as the terminal's address opens it."""
    url, token = server.url.split("#")
    with watched_page(browser, url, **(DESK | options)) as (page, watch):
        page.goto(f"{url}#{token}&{state}")
        settle(page)
        yield page, watch


def do(page, *keys):
    """Press keys, and wait until what they change is saved and shown."""
    for key in keys:
        page.keyboard.press(key)
    until(page, "(bar => bar && !bar.ariaBusy)(document.querySelector('#detail .edit-bar'))")
    settle(page)


def found(page):
    return [text.split("\n") for text in page.locator(".phrase").all_inner_texts()]


def told(page):
    return page.locator(".edit-status").inner_text()


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.mark.browser
def test_draw_save_reload_undo(browser, folder, tmp_path):
    path = tmp_path / "e.jsonl"
    with editing(folder, path) as server, page_at(browser, server, "sample=1") as (page, _):
        assert "token" not in page.evaluate("location.href")
        stored, (first, other) = (
            found(page),
            payload(server.site.file("samples/000000/000001.js"))["texts"][0]["phrases"],
        )

        def drag(start, end):
            layer = page.locator(".edit-layer").bounding_box()
            scale = layer["width"] / WIDTH
            page.mouse.move(layer["x"] + start[0] * scale, layer["y"] + start[1] * scale)
            page.mouse.down()
            page.mouse.move(layer["x"] + end[0] * scale, layer["y"] + end[1] * scale, steps=2)
            page.mouse.up()

        page.keyboard.press("n")
        drag((20, 30), (110, 90))
        do(page, "Enter")
        (drawn,) = lines(path)
        (added,) = drawn.add
        assert (drawn.key, drawn.by, drawn.at is None) == ("s0001", "ann", False)
        assert (added.text, list(added.span)) == (0, first["span"])
        np.testing.assert_allclose(added.box, (20, 30, 110, 90), atol=1)
        assert added.mask.rle == outlines([photo_of(1)], [added.box])[0]
        assert found(page) == [*stored, [first["words"], "corrected"]]
        assert page.locator("#detail img.masks").evaluate("i => i.complete && i.src").endswith("?1")

        page.keyboard.press("l")
        page.keyboard.type("</SCRIPT><script>alert(2)")
        do(page, "Enter")
        assert lines(path)[-1].change[0].phrase == "</SCRIPT><script>alert(2)"
        assert found(page)[-1] == ["</script><script>alert(2)", "corrected"]
        page.keyboard.press("e")
        do(page, "Shift+ArrowRight", "Shift+ArrowRight", "ArrowDown", "Enter")
        np.testing.assert_allclose(lines(path)[-1].change[0].box, np.add(added.box, (0, 1, 2, 1)), atol=0.01)
        page.locator(".phrase").nth(1).click()
        drag((145, 85), (135, 95))  # the middle of the second box
        do(page)
        (moved,) = lines(path)[-1].change
        assert moved.instance == 1
        np.testing.assert_allclose(moved.box, np.add(other["box"], (-10, 10, -10, 10)), atol=1)
        do(page, "x")
        do(page, "w")
        assert [edit.delete for edit in lines(path)[-2:]] == [(1,), ()]
        after, kept = found(page), path.read_bytes()
        assert [words for words, _ in after] == [first["words"], "</script><script>alert(2)"]

        page.reload()
        settle(page)
        assert (found(page), "6 edits" in told(page)) == (after, True)
        assert page.locator(".edit-bar.is-wrong").count() == 1
        do(page, "Control+z")
        assert page.locator(".edit-bar.is-wrong").count() == 0
        for _ in range(5):
            do(page, "u")
        assert (found(page), lines(path)) == (stored, [])
        for _ in range(6):
            do(page, "r")
        assert found(page) == after
        again = [edit.model_copy(update={"at": None}) for edit in lines(path)]
        assert again == [edit.model_copy(update={"at": None}) for edit in lines_of(kept)]
        assert page.evaluate("document.querySelectorAll('#detail [onerror], #detail script').length") == 0


@pytest.mark.browser
def test_the_least_certain_on_a_phone(browser, folder, tmp_path):
    path = tmp_path / "e.jsonl"
    with editing(folder, path, masker="untrained-tiny") as server, page_at(browser, server, "", **PHONE) as (page, _):
        queue = payload(server.site.file("data/doubts.js"))
        page.locator(".edit-review").tap()
        for name in ("accept", "delete", "next", "wrong"):
            do(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert small_controls(page) == []
            page.locator(f"[data-edit={name}]").tap()
        do(page)
        edits = lines(path)
        keys = [f"s{item['position']:04}" for item in (queue[0], queue[1], queue[3])]
        assert [edit.key for edit in edits] == keys
        assert (len(edits[0].change), len(edits[1].delete), edits[2].wrong) == (1, 1, True)
        assert "box" not in edits[0].model_dump(exclude_none=True)["change"][0]
        page.locator("[data-edit=undo]").tap()  # of a sample that isn't shown any more
        do(page)
        assert page.locator("#detail-key").inner_text() == keys[2]
        assert lines(path) == edits[:2]


def test_what_is_least_certain(tmp_path, monkeypatch):
    text, image = "a red bird over a blue fish", (0.0, 0.0, 120.0, 80.0)

    def sample(ordinal, *found):
        phrases = [
            PhraseDocument(
                text=words, text_index=0, start=(at := text.index(words)), end=at + len(words), box=box, score=score
            )
            for words, score, box in found
        ]
        return replace(texted(gallery_sample(10 + ordinal), text, "second"), phrases=tuple(phrases))

    sure = ("red bird", 0.9, image)
    samples = [
        sample(0, sure, ("bird", 0.8, image)),  # the same words, if fewer
        sample(1, sure, ("fish", 0.8, (0.0, 0.0, 120.0, 72.0))),
        sample(2, ("red bird", 0.36, image), sure),
        sample(3, ("bird", 0.9, (0.0, 0.0, 10.0, 10.0))),
        sample(4, ("fish", 0.5, image)),
    ]
    folder = editable_dataset(tmp_path / "d", samples, **UNTRAINED)
    pending = PendingEdits(tmp_path / "e.jsonl")
    site = Site(open_dataset(folder), GallerySettings(), pending)

    def queue():
        return [(i["position"], i["doubt"], i["why"]) for i in payload(site.file("data/doubts.js"))]

    share = 100 / (SIZE[0] * SIZE[1])
    expected = [
        (2, round(1 - 0.01 / 0.65, 4), "its score of 0.36 is near the threshold"),
        (1, 0.9, "it overlaps \u201cred bird\u201d"),
        (4, round(1 - 0.15 / 0.65, 4), "its score of 0.50 is near the threshold"),
        (3, round(1 - 100 * share, 4), "it is small"),
    ]
    assert queue() == expected
    with monkeypatch.context() as patch:
        patch.setattr(doubts, "_LOOKED_AT", 2)
        assert [position for position, *_ in queue()] == [2, 4]
    for edit in (
        {"key": "s0012", "change": [{"instance": 0}]},
        {"key": "s0011", "delete": [1]},
        {"key": "s0014", "wrong": True},
    ):
        pending.append(Edit.model_validate_json(json.dumps(edit)))
    assert queue() == expected[3:]


def test_nobody_but_the_page_edits(folder, tmp_path):
    path = tmp_path / "e.jsonl"
    with editing(folder, path) as server:
        own, port = f"http://127.0.0.1:{server.server_port}", server.server_port
        good = {"Origin": own, "X-Patchmint-Token": server.editing.token}

        def post(edit, headers=good, seen=0, path="/edit", **request):
            connection = HTTPConnection("127.0.0.1", port, timeout=20)
            body = json.dumps({"position": 2, "seen": seen, "edit": edit} | request)
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            said = answer.status, json.loads(answer.read())
            connection.close()
            return said

        delete = {"delete": [0]}
        for headers in (
            *({name: value for name, value in good.items() if name != left} for left in good),
            *(good | {"X-Patchmint-Token": token} for token in ("", "x", server.editing.token[:-1])),
            *(
                good | {"Origin": origin}
                for origin in ("null", "https://a.example", own + "0", f"http://localhost:{port}")
            ),
            good | {"Host": "a.example", "Origin": "http://a.example"},
        ):
            assert post(delete, headers)[0] == 403, headers
        assert post(delete, path="/other")[0] == 501
        for wrong, why in (
            ({"delete": [7]}, "no instance 7"),
            ({"add": [{"box": [0, 0, 9, 9], "phrase": "a fish"}]}, "has the words"),
            ({"add": [{"text": 0}]}, "box or a mask"),
            ({"remove": 1}, "remove"),
        ):
            status, said = post(wrong)
            assert (status, why in said["error"]) == (400, True), said
        assert post(delete, position=6)[0] == post(delete, more=1)[0] == post(None)[0] == 400
        assert post(delete, good | {"Content-Length": str(10**9)})[0] == 400
        assert not path.exists()

        status, said = post(delete)
        assert (status, said["sample"]["edits"], len(said["sample"]["texts"][0]["phrases"])) == (200, 1, 1)
        assert "another window" in post(delete)[1]["error"]
        PendingEdits(path).append(Edit(key="s0004", wrong=True))  # another process
        boxed = {"add": [{"box": [10.0, 20.0, 30.0, 50.5], "text": 1}]}
        assert post(boxed, seen=1)[1]["sample"]["texts"][1]["phrases"][0]["box"] == [10, 20, 30, 50.5]
        assert [edit.key for edit in lines(path)] == ["s0002", "s0004", "s0002"]
        assert payload(server.site.file("samples/000000/000004.js"))["wrong"]
        masks = server.site.file("masks/000000/000002-1.png")
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/")
        assert "connect-src 'self'" in connection.getresponse().getheader("Content-Security-Policy")
        connection.close()
    assert masks
    # Whoever opens the file next goes on from there; a page that doesn't edit has nothing of it.
    assert len(PendingEdits(path).of("s0002")) == 2
    plain = Site(open_dataset(folder), GallerySettings())
    assert plain.file("edit.js") is plain.file("data/doubts.js") is None
    assert b"connect-src" not in plain.file("index.html")


def test_an_image_stays_encoded(folder):
    """Its masks are those of the masker, whatever was outlined before."""
    outliner = Outliner(offer_outlines(open_dataset(folder)))
    images, boxes = (
        [photo_of(n) for n in (1, 2, 2, 1)],
        [(60, 40, 130, 100), (60, 40, 130, 100), (20, 20, 90, 90), (5, 5, 60, 60)],
    )
    expected = outlines(images, boxes)
    assert len({mask["counts"] for mask in expected}) == 4
    assert [outliner.outline(image, [box])[0] for image, box in zip(images, boxes, strict=True)] == expected


def test_what_is_shown_is_what_correct_stores(folder, tmp_path):
    copy, path = shutil.copytree(folder, tmp_path / "d"), tmp_path / "e.jsonl"
    pending = PendingEdits(path)
    site = Site(open_dataset(copy), GallerySettings(), pending)
    page, before = Editing(site, pending, "ann"), site.described(2)

    def request(seen, edit):
        return json.dumps({"position": 2, "seen": seen, "edit": edit}).encode()

    page.answer(request(0, {"delete": [0], "add": [{"text": 1, "box": [40, 0, 90, 33.3]}], "wrong": True}))
    shown = page.answer(request(1, {"change": [{"instance": 0}]}))["sample"]
    assert (shown["edits"], shown["wrong"]) == (2, True)
    assert shown["labels"]["kept"][1]["kept"] == 6  # half of the eight columns of 20 pixels; two rows
    assert shown["labels"] != before["labels"]
    for words in ("column corrections-0001", "nothing to do"):
        assert words in CliRunner().invoke(app, ["correct", str(copy), str(path)]).stderr
    stored = Site(open_dataset(copy), GallerySettings(), again := PendingEdits(path))
    assert stored.described(2) == shown | {"edits": 0}
    page = Editing(stored, again, "ann")
    with pytest.raises(InputError, match="correct --undo"):
        page.answer(request(0, None))
    assert page.answer(request(0, {"delete": [1], "wrong": False}))["sample"]["labels"]["kept"][1]["kept"] == 0
    assert "column corrections-0002" in CliRunner().invoke(app, ["correct", str(copy), str(path)]).stderr


def test_what_can_not_be_edited(folder, tmp_path):
    bare, edits = gallery_dataset(tmp_path / "bare", 4), tmp_path / "e.jsonl"
    assert "--labels.instances true" in refusal("gallery", bare, "--serve", "--edit")
    edits.write_text('{"key": "s0001"}\n{"key": 1}\n')
    assert "line 2" in refusal("gallery", folder, "--serve", "--edit", "--edits", edits)
    for options, why in ((["--edit"], "needs --serve"), (["--by", "ann"], "are for --edit")):
        done = inspect("gallery", folder, tmp_path / "g", *options, rc=2)
        assert why in done.stderr
    edits.write_text('{"key": "s0001", "delete": [9]}\n')
    site = Site(open_dataset(folder), GallerySettings(), PendingEdits(edits))
    assert "no instance 9" in payload(site.file("samples/000000/000001.js"))["problem"]
