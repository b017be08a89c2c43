"""`patchmint inspect gallery`: its files, its folder, its server; the page itself: test_gallery_browser.py."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from itertools import islice, takewhile

import numpy as np
import pytest
from gallery_data import DEMO, GRID, HOSTILE, LAYOUT, SIZE, UNTRAINED, gallery_dataset, gallery_sample, payload, served
from inspect_data import inspect, refusal
from PIL import Image
from shard_data import configure, make_dataset, make_sample, on_a_store, stored, write_shard
from typer.testing import CliRunner

from patchmint.cli.inspect import inspect_app
from patchmint.datasets.dataset import open_dataset, spread
from patchmint.errors import InputError
from patchmint.geometry import Fit, PatchGrid
from patchmint.geometry.rle import encode_masks
from patchmint.inspection.gallery import remake
from patchmint.inspection.gallery.documents import script
from patchmint.inspection.gallery.folder import write_gallery
from patchmint.inspection.gallery.sample_files import file_name
from patchmint.inspection.gallery.server import GalleryServer
from patchmint.inspection.gallery.site import ASSETS, GallerySettings, Site
from patchmint.inspection.gallery.thumbnails import framed, masks_png
from patchmint.pictures.labels import PALETTE
from patchmint.shards.layout import TokensLayout

PLAIN = GallerySettings(masks=False, decoded=False)
QUICK = ("--samples", 2, "--no-masks", "--no-decoded")


run = partial(inspect, "gallery")


def site_of(folder, settings=PLAIN):
    return Site(open_dataset(folder), settings)


def sample_of(site, position=0):
    return payload(site.file(f"samples/000000/{position:06}.js"))


def unpack(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def rgba(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def refuses(why, *arguments):
    assert why in refusal("gallery", *arguments), arguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return gallery_dataset(tmp_path_factory.mktemp("gallery") / "d")


def test_the_same_files_all_at_once_and_one_by_one(folder):
    for settings in (PLAIN, GallerySettings(samples=7, size=100, masks=False, decoded=False)):
        site = site_of(folder, settings)
        files = dict(site.files())
        assert {path: site.file(path) for path in files} == files
        kinds = {path.partition("/")[0] for path in files}
        assert kinds == {*ASSETS, "data", "samples", "pictures"}
        assert sum(path.startswith("samples/") for path in files) == len(site.positions)


def test_nothing_but_its_files(folder):
    site = site_of(folder)
    last = "samples/000000/000059.js"
    assert site.file(last)
    for path in (
        *("samples/000000/000060.js", "samples/000001/000059.js", "samples/000000/000059.jpg"),
        *("samples/000000/0000059.js", "pictures/000000/000059.js", "masks/000000/000001-0.png"),
        *("decoded/000000/000001.jpg", "data/index-000001.js", "data/other-000000.js", "dataset.json", ""),
        *("../site.py", "assets/../../site.py", last + "\n", last.replace("59", "5\N{ARABIC-INDIC DIGIT NINE}")),
    ):
        assert site.file(path) is None, path


def test_meta_says_what_there_is(folder):
    meta = payload(site_of(folder, GallerySettings(samples=7, masks=False)).file("data/meta.js"))
    assert (meta["name"], meta["shown"], meta["samples"], meta["shards"]) == ("d", 7, 60, 2)
    assert meta["notice"] == LAYOUT.notice
    assert meta["palette"][1] == "rgb(86 180 233)"
    assert meta["masks"] == {"available": False, "remark": "left out (--no-masks)"}
    assert str(folder) not in json.dumps(meta)


def test_numbers_for_filters(folder):
    document = payload(site_of(folder).file("data/index-000000.js"))
    shares, counts, score = (unpack(document[name], "<u2").tolist() for name in ("shares", "counts", "score"))
    every = iter(shares)
    samples = stored(folder)
    # 64 patches: shares of four decimals or less are even, others lie between two of them.
    exact = [sorted({float(text.mean()) for text in s.selector}) for s in samples]
    levels = [[2 * int(v * 10000) + (v * 10000 % 1 > 0) for v in own] for own in exact]
    assert [list(islice(every, count)) for count in counts] == levels
    assert next(every, None) is None
    assert {level % 2 for own in levels for level in own} == {0, 1}
    best = [max((p.score for p in s.document.phrases), default=None) for s in samples]
    assert score == [65535 if value is None else 2 * round(value * 10000) for value in best]
    assert 65535 in score


def test_numbers_and_texts_of_some_samples(folder):
    site = site_of(folder, GallerySettings(samples=7))
    samples = [stored(folder)[index] for index in spread(60, 7)]
    texts = payload(site.file("data/texts-000000.js"))
    assert texts == {"keys": [s.key for s in samples], "texts": [list(s.document.texts) for s in samples]}
    document = payload(site.file("data/index-000000.js"))
    assert unpack(document["counts"], "<u2").tolist() == [len({t.mean() for t in s.selector}) for s in samples]
    assert [sample_of(site, n)["key"] for n in range(7)] == [s.key for s in samples]


def test_without_labels_there_are_no_numbers(tmp_path):
    bare = LAYOUT.model_copy(update={"min_coverage": None, "tokens": None})
    site = site_of(make_dataset(tmp_path / "d", [[make_sample(0, layout=bare)]], layout=bare), GallerySettings())
    assert payload(site.file("data/index-000000.js")) == {"shares": "", "counts": "AAA=", "score": "//8="}
    assert sample_of(site)["labels"] is None
    meta = payload(site.file("data/meta.js"))
    for part, lacked in (("masks", "labels"), ("decoded", "codes")):
        assert meta[part]["remark"] == f"this data set has no {lacked}"


def test_a_sample(folder):
    site = site_of(folder)
    for position, sample in [*enumerate(stored(folder)[:8]), (45, stored(folder)[45])]:
        shown = sample_of(site, position)
        assert (shown["key"], shown["index"]) == (sample.key, position)
        assert (shown["shard"], shown["row"]) == (
            ("shards/000000.tar", position) if position < 31 else ("shards/000001.tar", position - 31)
        )
        assert ["".join(part for part, _ in text["parts"]) for text in shown["texts"]] == list(sample.document.texts)
        phrases = [(p["words"], p["score"], tuple(p["box"])) for p in shown["texts"][0]["phrases"]]
        assert phrases == [(p.text, p.score, p.box) for p in sample.document.phrases]
        np.testing.assert_array_equal(unpack(shown["labels"]["coverage"], "u1").reshape(2, 8, 8), sample.coverage)
        np.testing.assert_array_equal(unpack(shown["labels"]["selector"], "u1").reshape(2, 8, 8), sample.selector)
        assert shown["codes"] == {"shape": [8, 8], "values": sample.codes.ravel().tolist()}


def test_highlights_stand_on_their_words(folder):
    shown = sample_of(site_of(folder), 3)["texts"][0]
    text = HOSTILE[3]
    assert shown["parts"][:4] == [[text[:2], -1], [text[2:5], 0], [text[5:6], -1], [text[6:9], 1]]
    assert text[2] == "\N{CAT}"  # two of JavaScript's characters


def test_cell_edges_lie_in_image_pixels(folder):
    grid = sample_of(site_of(folder))["grid"]
    placement = PatchGrid(8, 8, 14, Fit.CROP).place(SIZE)
    for name, edges in zip("yx", placement.edges(placement.views[0]), strict=True):
        np.testing.assert_allclose(grid[name], edges, atol=0.001)
    assert grid["x"][0] == pytest.approx(40)
    assert grid["x"][-1] == pytest.approx(200)


def test_a_grid_that_is_not_known_leaves_the_photo(tmp_path):
    folder = make_dataset(tmp_path / "d", [[make_sample(0)]])  # its settings name no grid
    shown = sample_of(site_of(folder))
    assert "x" not in shown["grid"]
    assert "grid" in shown["grid"]["problem"]
    assert shown["picture"]


def test_data_can_not_end_their_script():
    document = {"texts": [*HOSTILE, "\ud800"]}
    data = script("a/</script>", document)
    assert not set(b"<>&") & set(data)
    assert "\u2028" not in data.decode()
    assert payload(data)["texts"][: len(HOSTILE)] == list(HOSTILE)


def test_pictures_are_small_and_upright(tmp_path):
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:, :20] = 255
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    sample = make_sample(0)
    upright = sample.image.model_copy(update={"width": 60, "height": 100, "orientation": 6})
    sample = replace(sample, data=file.getvalue(), image=upright)
    site = site_of(make_dataset(tmp_path / "d", [[sample]]), GallerySettings(size=64))
    picture = rgba(site.file("pictures/000000/000000.jpg"))
    assert picture.shape == (64, 38, 4)
    assert picture[4, :, :3].mean() > 200  # white is on top


def test_what_can_not_be_read_says_so(tmp_path):
    samples = [make_sample(n) for n in range(3)]
    samples[1] = replace(samples[1], data=b"\xff\xd8\xff no picture")
    folder = configure(make_dataset(tmp_path / "d", [samples]), limits={"max_image_megapixels": 100})
    tar = folder / "shards" / "000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"s0002.json", b"s0009.json"))
    site = site_of(folder)
    first, second, third = (sample_of(site, n) for n in range(3))
    assert "damaged" in second["problem"]
    assert second["texts"]
    assert third["problem"]
    assert [sample["picture"] for sample in (first, second, third)] == [True, False, False]
    assert sum(path.startswith("pictures/") for path, _ in site.files()) == 1
    small = site_of(configure(folder, limits={"max_image_megapixels": 0.0001}))
    assert "megapixels" in sample_of(small, 0)["problem"]


def test_unfinished_builds_and_lone_tars(tmp_path):
    copy = gallery_dataset(tmp_path / "d", 10)
    (copy / "dataset.json").unlink()
    (copy / "commits" / "000001.json").unlink()
    site = site_of(copy, GallerySettings())
    meta = payload(site.file("data/meta.js"))
    assert (meta["notice"], meta["shown"], meta["unbuilt"], meta["min_coverage"]) == (LAYOUT.notice, 6, 1, None)
    assert "dataset.json" in meta["masks"]["remark"]
    assert len(sample_of(site)["grid"]["x"]) == 9

    other = tmp_path / "others.tar"
    with (
        tarfile.open(copy / "shards" / "000000.tar") as source,
        tarfile.open(other, "w", format=tarfile.USTAR_FORMAT) as target,
    ):
        for member in source:
            if member.name.startswith("s0001."):
                file = source.extractfile(member)
                member.name = member.name.replace("s0001.", "A key/<b>'%2e.")
                target.addfile(member, file)
    lone = site_of(other, GallerySettings())
    assert payload(lone.file("data/meta.js"))["notice"] == LAYOUT.notice
    assert payload(lone.file("data/texts-000000.js"))["keys"]
    assert all(re.fullmatch(r"[a-z]+(/[a-z0-9-]+)*\.[a-z]+", path) for path, _ in lone.files())


def test_from_a_store(folder):
    with on_a_store(folder) as uri:
        assert dict(Site(open_dataset(uri), PLAIN).files()).keys() == dict(site_of(folder).files()).keys()
        assert sample_of(Site(open_dataset(uri), PLAIN), 40) == sample_of(site_of(folder), 40)


def test_masks_and_decoded_pictures_are_made_again(tmp_path):
    site = site_of(gallery_dataset(tmp_path / "d", 4, **DEMO), GallerySettings(size=120))
    meta = payload(site.file("data/meta.js"))
    assert meta["masks"] == meta["decoded"] == {"available": True, "remark": ""}
    files = dict(site.files())
    assert [path for path in files if path.startswith("masks")] == [f"masks/000000/00000{n}-0.png" for n in (1, 2, 3)]
    assert sample_of(site, 1)["masks"] == [True, False]
    for path in ("masks/000000/000001-0.png", "decoded/000000/000001.jpg"):
        # A batch may round in another way than one picture alone.
        assert np.abs(rgba(site.file(path)).astype(int) - rgba(files[path])).mean() < 1
    masks, decoded = rgba(files["masks/000000/000001-0.png"]), rgba(files["decoded/000000/000001.jpg"])
    assert masks.shape == (80, 120, 4)
    assert {tuple(pixel[:3]) for pixel in masks[masks[..., 3] > 0].tolist()} <= {PALETTE[0], PALETTE[1]}
    assert decoded.shape[1] / decoded.shape[0] == pytest.approx(SIZE[1] / SIZE[0], rel=0.02)  # pad's bars are cut off
    for text in (1, 7):
        assert site.file(f"masks/000000/000001-{text}.png") is None


def test_why_there_are_no_masks(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHMINT_WEIGHTS", str(tmp_path))
    folder = gallery_dataset(tmp_path / "d", 3, **DEMO)

    def remarks(**config):
        meta = payload(site_of(configure(folder, **config), GallerySettings()).file("data/meta.js"))
        return [meta[part][what] for part in ("masks", "decoded") for what in ("available", "remark")]

    masks, why, decoded, why_not = remarks(models={"masker": "sam-vit-h", "tokenizer": "vqgan-imagenet-f16-16384"})
    assert (masks, decoded) == (False, False)
    assert "patchmint models pull sam-vit-h" in why
    assert "patchmint models pull vqgan-imagenet-f16-16384" in why_not
    assert str(tmp_path) not in why + why_not
    entry = {"name": "demo-masker", "sha256": "0" * 64, "size": 1, "licence": ""}
    masks, why, _, _ = remarks(models=DEMO["models"], entries={"masker": entry})
    assert (masks, "another sha256" in why) == (True, True)
    assert "the segmenter 'theirs'" in remarks(models={"segmenter": "theirs"})[1]
    gone = remarks(models={"masker": "/secret/gone.safetensors"})[1]
    assert ("'gone.safetensors'" in gone, "/secret" in gone) == (True, False)
    masks, why, decoded, why_not = remarks(models=None)
    assert (masks, decoded) == (False, False)
    assert "dataset.json doesn't say which model made its masks" in why
    assert "dataset.json doesn't say which model made its codes" in why_not
    # Labels that were carried over were made by the models of the data set that was extended.
    masks, _, decoded, _ = remarks(labels=None, models={"masker": "sam-vit-h"}, extended=DEMO)
    assert (masks, decoded) == (True, False)


def test_codes_that_can_not_be_drawn(tmp_path):
    samples = [gallery_sample(n) for n in range(4)]
    samples[2] = replace(samples[2], codes=samples[2].codes + 400)  # the layout's codebook has them, the model's not
    folder = configure(make_dataset(tmp_path / "d", [samples], layout=LAYOUT), grid=GRID, **UNTRAINED)
    done = run(folder, tmp_path / "g", "--no-masks", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["problems"] == 1
    assert "1 card says" in done.stderr
    shown = [payload((tmp_path / "g" / f"samples/000000/00000{n}.js").read_bytes()) for n in range(4)]
    assert [sample["decoded"] for sample in shown] == [True, True, False, True]
    assert [len(sample["remarks"]) for sample in shown] == [0, 0, 1, 0]
    assert "can't be drawn" in shown[2]["remarks"][0]
    for kind, numbers in (("decoded", (0, 1, 3)), ("pictures", range(4))):
        drawn = sorted(path.name for path in (tmp_path / "g" / kind / "000000").iterdir())
        assert drawn == [f"00000{n}.jpg" for n in numbers]


def test_settings_that_contradict_the_codes(tmp_path):
    folder = gallery_dataset(tmp_path / "d", 3, **UNTRAINED | {"tokens": {"size": 128, "fit": "pad"}})
    done = run(folder, tmp_path / "g", "--no-masks")
    assert (done.exit_code, "3 cards say" in done.stderr) == (0, True)
    assert not (tmp_path / "g" / "decoded").exists()


def test_codes_of_another_shape(tmp_path):
    folder = gallery_dataset(tmp_path / "d", 4, **UNTRAINED)
    small = TokensLayout(member="vqgan", grid=(4, 4), codebook_sizes=(512,), preprocessing="pad-128-bicubic")
    odd = replace(gallery_sample(3), codes=np.zeros((4, 4, 1), np.int64))
    files = write_shard([odd], LAYOUT.model_copy(update={"tokens": small}))
    for path, data in zip(("shards/000001.tar", "sidecars/000001.parquet"), files, strict=True):
        (folder / path).write_bytes(data)
    done = run(folder, tmp_path / "g", "--no-masks")
    assert (done.exit_code, "1 card says" in done.stderr) == (0, True)
    assert "(4, 4, 1)" in payload((tmp_path / "g" / "samples/000000/000003.js").read_bytes())["remarks"][0]


def test_masks_as_coloured_glass():
    masks = np.zeros((2, 40, 60), bool)
    masks[0, 5:20, 5:30] = masks[1, 10:35, 20:50] = True
    image = rgba(masks_png(encode_masks(masks), [2, 5], (20, 30)))
    assert image.shape == (20, 30, 4)
    assert image[0, 0, 3] == 0
    assert 0 < image[7, 6, 3] < 255
    # the first lies on top
    for place, colour in (((7, 6), 2), ((8, 12), 2), ((14, 20), 5)):
        assert tuple(image[place][:3]) == PALETTE[colour]
    assert image[10, 24, 3] == 255  # its border


@pytest.mark.parametrize(("fit", "left", "right"), [("pad", 0, 200), ("crop", 40, 160), ("squash", 0, 200)])
def test_decoded_pictures_lie_on_their_photos(fit, left, right):
    """A picture whose every pixel tells where it is, through the tokenizer's fit and back."""
    height, width = 120, 200
    cells = PatchGrid(8, 8, 16, Fit(fit))
    view = cells.place((height, width)).views[0]
    y, x = (np.array([axis.to_original(p + 0.5) for p in range(128)]) for axis in (view.y, view.x))
    square = np.stack(np.broadcast_arrays(y[:, None], x[None], 0 * x[None]), -1)
    shown = framed(np.clip(square, 0, 255).astype(np.uint8), cells, (height, width))
    rows, cols = shown.shape[:2]
    assert cols / rows == pytest.approx((right - left) / height, rel=0.03)
    assert shown[rows // 4, cols // 4, 0] == pytest.approx(height / 4, abs=3)
    assert shown[rows // 4, cols // 4, 1] == pytest.approx(left + (right - left) / 4, abs=3)


def test_writing(folder, tmp_path):
    out = tmp_path / "new" / "gallery"
    done = run(folder, out, "--samples", 5, "--no-masks", "--no-decoded")
    assert done.exit_code == 0, done
    assert "5 of 60 samples, evenly spread" in done.stdout
    assert str(out / "index.html") in done.stdout
    written = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert written == dict(site_of(folder, GallerySettings(5, masks=False, decoded=False)).files())
    assert [path.name for path in out.parent.iterdir()] == ["gallery"]
    assert out.stat().st_mode & 0o777 == 0o755
    assert out.samefile(out)


def test_as_json(folder, tmp_path):
    document = json.loads(run(folder, tmp_path / "g", "--json", "--samples", 0, "--no-masks").stdout)
    assert (document["samples"], document["of"]) == (60, 60)
    assert document["files"] == sum(path.is_file() for path in (tmp_path / "g").rglob("*"))
    assert not document["masks"]["available"]


def test_nothing_is_overwritten(folder, tmp_path):
    out = tmp_path / "g"
    out.mkdir()
    assert run(folder, out, *QUICK).exit_code == 0  # empty
    first = (out / "data" / "meta.js").stat().st_ino
    assert "--force" in str(run(folder, out, *QUICK).exception)
    assert run(folder, out, *QUICK, "--force").exit_code == 0
    assert (out / "data" / "meta.js").stat().st_ino != first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    for there in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        refuses("a gallery", folder, there, "--force")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "mine"]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("notes.txt", "notes.txt"),
        (".git/HEAD", ".git/"),
        ("samples/mine/a.txt", "samples/mine/"),
        ("pictures/000000/000001.jpg.bak", "pictures/000000/000001.jpg.bak"),
        ("samples/000000.js", "samples/000000.js"),
    ],
)
def test_only_a_gallery_alone_is_replaced(folder, tmp_path, path, named):
    out = tmp_path / "g"
    assert run(folder, out, *QUICK).exit_code == 0
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    (out / path).write_text("years")
    refuses(f"more than a gallery: {named};", folder, out, *QUICK, "--force")
    assert (out / path).read_text() == "years"
    assert (out / "index.html").exists()


def test_what_is_put_there_meanwhile_stays(folder, tmp_path):
    out = tmp_path / "g"
    out.mkdir()
    site = site_of(folder, GallerySettings(2, masks=False, decoded=False))
    with pytest.raises(InputError, match="a gallery"):
        write_gallery(site, out, progress=lambda *_: (out / "notes.txt").write_text("years"))
    assert (out / "notes.txt").read_text() == "years"
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_a_link_stays_one(folder, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert str(tmp_path / "real" / "index.html") in run(folder, tmp_path / "link", *QUICK).stdout
    assert run(folder, tmp_path / "link", *QUICK, "--force").exit_code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "index.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_where_no_gallery_can_be(tmp_path, monkeypatch):
    copy = gallery_dataset(tmp_path / "d", 4)
    empty = tmp_path / "empty" / "inner"
    empty.mkdir(parents=True)
    monkeypatch.chdir(empty)
    with monkeypatch.context() as patch:
        patch.setattr(Site, "files", lambda *_: pytest.fail("the work had begun"))
        for out in (".", "..", "/", tmp_path):
            refuses("in use", copy, out, "--force")
        for out in (copy / "shards" / "g", copy, "../../d/g"):
            refuses("in the data set", copy, out, "--force")
        refuses("a folder on this machine", copy, "s3://bucket/g", "--force")
    assert not list(copy.rglob("g"))
    beside = run(copy / "shards" / "000000.tar", copy.parent / "beside", "--no-masks", "--no-decoded")
    assert beside.exit_code == 0


def test_half_a_gallery_is_never_seen(folder, tmp_path, monkeypatch):
    def cut(*_, **__):
        yield "index.html", b""
        raise InputError("cut")

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't write"):
        write_gallery(site_of(folder), tmp_path / "file" / "g")
    monkeypatch.setattr(Site, "files", cut)
    with pytest.raises(InputError, match="cut"):
        write_gallery(site_of(folder), tmp_path / "g")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bad_usage(folder, tmp_path):
    for arguments in ((folder,), (folder, tmp_path / "g", "--serve"), (folder, tmp_path / "g", "--size", 1)):
        assert run(*arguments).exit_code == 2
    refuses("", tmp_path, tmp_path / "g")
    assert "127.0.0.1" in run("--help").stdout


def ask(port, path, method="GET", **headers):
    with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        return reply, reply.read()


def test_serving(folder):
    site = site_of(folder)
    with served(site) as server:
        assert server.server_address[0] == "127.0.0.1"
        port = server.server_port
        for path, kind in (
            ("/", "text/html; charset=utf-8"),
            ("/gallery.js", "text/javascript; charset=utf-8"),
            ("/gallery.css?v=1", "text/css; charset=utf-8"),
            ("/icon.svg", "image/svg+xml"),
            ("/data/texts-000000.js", "text/javascript; charset=utf-8"),
            ("/pictures/000000/000003.jpg", "image/jpeg"),
        ):
            reply, data = ask(port, path)
            assert (reply.status, reply.headers["Content-Type"]) == (200, kind)
            assert data == site.file(path[1:].partition("?")[0] or "index.html")
            assert reply.headers["X-Content-Type-Options"] == "nosniff"
            assert reply.headers["Referrer-Policy"] == "no-referrer"
            assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
            assert "unsafe" not in reply.headers["Content-Security-Policy"]
        reply, data = ask(port, "/", "HEAD")
        assert (reply.status, data, int(reply.headers["Content-Length"])) == (200, b"", len(site.file("index.html")))
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(port, "/", method)[0].status == 501
        for path in ("/../../etc/passwd", "/%2e%2e/site.py", "//etc/passwd", "/data/", "/samples/000000/000060.js"):
            assert ask(port, path)[0].status == 404
        for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
            assert ask(port, "/", Host=host)[0].status == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
            reply, data = ask(port, "/data/meta.js", Host=host)
            assert (reply.status, b"receive" in data) == (421, False)
        with pytest.raises(InputError, match="--port"):
            GalleryServer(site, port)


def test_a_broken_shard_is_an_answer(tmp_path):
    copy = gallery_dataset(tmp_path / "d", 4)
    site = site_of(copy)
    (copy / "sidecars" / "000000.parquet").write_bytes(b"nothing")
    with served(site) as server:
        reply, data = ask(server.server_port, "/data/index-000000.js")
        assert (reply.status, b"verify" in data) == (500, True)
        assert ask(server.server_port, "/")[0].status == 200


def test_the_command_serves_until_ctrl_c(folder):
    code = "from patchmint.cli import main; main()"
    command = [sys.executable, "-c", code, "inspect", "gallery", str(folder), "--serve", "--port", "0", "--json"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        # a shell's background jobs, and what they start, ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = threading.Timer(60, process.kill)
        deadline.start()
        lines = list(takewhile(lambda line: line != "}\n", iter(process.stdout.readline, "")))
        port = int(json.loads("".join(lines) + "}")["url"].rsplit(":", 1)[1].strip("/"))
        assert payload(ask(port, "/data/meta.js")[1])["shown"] == 60
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        deadline.cancel()
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("precision", "drawn"), [(None, "auto"), ("float32", "float32"), ("float16", "auto"), (7, "auto")]
)
def test_masks_are_drawn_in_the_number_format_of_the_build(precision, drawn):
    assert remake._precision({} if precision is None else {"precision": precision}) == drawn


def test_numbers_are_those_of_show(tmp_path, monkeypatch):
    """The terminal and the page write the same counts, shares and scores of a sample, for each of its texts."""
    monkeypatch.setenv("PATCHMINT_CACHE", str(tmp_path / "cache"))
    samples = [gallery_sample(n) for n in range(10, 15)]
    even = tuple(phrase.model_copy(update={"score": 0.125}) for phrase in samples[1].phrases)
    samples[1] = replace(samples[1], phrases=even)  # where Python and JavaScript round differently
    folder = configure(make_dataset(tmp_path / "d", [samples], layout=LAYOUT), grid=GRID)
    site = Site(open_dataset(folder), GallerySettings(masks=False, decoded=False))
    for position in range(len(samples)):
        told = CliRunner().invoke(inspect_app, ["show", str(folder), f"#{position}"], env={"COLUMNS": "200"}).output
        shown = payload(site.file(file_name("samples", position)))
        kept = re.findall(r"(\d+) of (\d+) patches kept \((.*?)\)", told)
        assert kept == [(str(k["kept"]), str(k["all"]), k["share"]) for k in shown["labels"]["kept"]]
        scores = re.findall(r"^ *\d+  .*  +(\d\.\d\d)  [\d.]+ [\d.]+ [\d.]+ [\d.]+$", told, re.M)
        assert scores == [p["score_words"] for text in shown["texts"] for p in text["phrases"]]
        codes = [int(code) for line in told.partition("codes ")[2].splitlines()[1:9] for code in line.split()]
        assert codes == shown["codes"]["values"]
