"""The overlay picture: patches, boxes and words in the right places, whatever the image and the text."""

import re
import unicodedata

import matplotlib
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, features

from patchmint.errors import ConfigError, InputError
from patchmint.geometry import GRID_PRESETS, Fit, PatchGrid, fit_image, grid_preset
from patchmint.geometry.rle import encode_masks
from patchmint.pictures import text as text_module
from patchmint.pictures.fonts import SystemFont
from patchmint.pictures.labels import PALETTE, BoxLabel, draw_boxes, score_words
from patchmint.pictures.overlay import TRUTH, draw_overlay, legend_facts, shade_patches
from patchmint.pictures.text import Lettering
from patchmint.types import Phrase

SMALL = {
    "pad": PatchGrid(6, 6, 14, Fit.PAD),
    "crop": PatchGrid(6, 6, 14, Fit.CROP),
    "squash": PatchGrid(6, 6, 14, Fit.SQUASH, input_size=(90, 90)),
    "anyres": PatchGrid(6, 6, 14, Fit.ANYRES, canvases=((84, 168), (168, 84))),
}
SIZES = [(300, 450), (450, 300), (768, 1024), (97, 801)]
GREY = 128


def brightness(picture: np.ndarray) -> np.ndarray:
    return picture.astype(float).mean(axis=2)


def photo_part(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The photo in a picture without notice and title."""
    scale = min(max(max(size), 768), 1280) / max(size)
    height, width = round(size[0] * scale), round(size[1] * scale)
    left = (picture.shape[1] - width) // 2
    return picture[:height, left : left + width]


def draw(image: np.ndarray, grid: PatchGrid, kept: list[tuple[int, int]], **options: object) -> np.ndarray:
    placement = grid.place(image.shape[:2])
    selector = np.zeros(placement.shape, dtype=np.uint8)
    for cell in kept:
        selector[cell] = 1
    return draw_overlay(image, placement=placement, selector=selector, **options)


# ---- patches ----


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", SMALL)
def test_the_kept_cell_is_bright_where_the_encoder_sees_it(fit: str, size: tuple[int, int]) -> None:
    """A mark painted so that the encoder sees it in one patch alone lies in the bright part of the picture."""
    grid = SMALL[fit]
    placement = grid.place(size)
    row, col = max(np.ndindex(6, 6), key=lambda cell: (placement.inside[cell], -abs(cell[0] - 2), -abs(cell[1] - 2)))
    x0, y0, x1, y1 = placement.cell_box(row, col)
    image = np.full((*size, 3), GREY, dtype=np.uint8)
    image[max(round(y0), 0) : round(y1), max(round(x0), 0) : round(x1)] = (255, 0, 0)
    seen = fit_image(image, grid)[0].astype(int)
    reddest = np.argmax((seen[:84, :84, 0] - seen[:84, :84, 1]).reshape(6, 14, 6, 14).sum(axis=(1, 3)))
    assert divmod(int(reddest), 6) == (row, col)  # the processor's own pixels agree on which patch it is

    grey_picture = brightness(photo_part(draw(np.full((*size, 3), GREY, np.uint8), grid, [(row, col)]), size))
    bright = grey_picture > 100
    scale = grey_picture.shape[1] / size[1]
    box = [round(value * scale) for value in placement.cell_box(row, col)]
    inner = np.zeros_like(bright)
    inner[max(box[1] + 3, 0) : box[3] - 3, max(box[0] + 3, 0) : box[2] - 3] = True
    assert bright[inner].all()
    outer = np.zeros_like(bright)
    outer[max(box[1] - 3, 0) : box[3] + 3, max(box[0] - 3, 0) : box[2] + 3] = True
    assert not bright[~outer].any()
    assert inner.sum() >= 100


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", SMALL)
def test_grid_lines_lie_on_cell_borders(fit: str, size: tuple[int, int]) -> None:
    grid = SMALL[fit]
    picture = brightness(photo_part(draw(np.full((*size, 3), GREY, dtype=np.uint8), grid, []), size))
    height, width = picture.shape
    placement = grid.place(size)
    x_edges = [placement.cell_box(0, col)[0] * width / size[1] for col in range(6)]
    y_edges = [placement.cell_box(row, 0)[1] * height / size[0] for row in range(6)]
    middle_x = round((max(x_edges[2], 0) + min(x_edges[3], width)) / 2)
    middle_y = round((max(y_edges[2], 0) + min(y_edges[3], height)) / 2)
    dim = np.median(picture[middle_y - 2 : middle_y + 3, middle_x - 2 : middle_x + 3])
    for line, edges, length in ((picture[middle_y], x_edges, width), (picture[:, middle_x], y_edges, height)):
        start = max(round(edges[0]), 0)
        found = np.flatnonzero(line[start : round(edges[-1]) + 1] > dim + 15) + start
        assert [round(edge) for edge in edges if 0 < round(edge) < length] == found.tolist()


def test_what_crop_cuts_away_is_dark_and_hatched_and_pad_hides_nothing() -> None:
    image = np.full((300, 600, 3), 200, dtype=np.uint8)
    everything = list(np.ndindex(6, 6))
    cropped = brightness(photo_part(draw(image, SMALL["crop"], everything), (300, 600)))
    width = cropped.shape[1]
    for side in (cropped[:, : width // 4 - 2], cropped[:, -width // 4 + 2 :]):
        assert side.mean() < 80
        assert set(np.unique(side)) == {62, 110}  # the gaps of the hatching and its lines, nothing else
    assert cropped[:, width // 4 + 2 : -width // 4 - 2].mean() > 180
    padded = brightness(photo_part(draw(image, SMALL["pad"], everything), (300, 600)))
    assert padded.min() > 140


def test_dropped_patches_lose_their_colour() -> None:
    image = np.zeros((300, 300, 3), dtype=np.uint8)
    image[...] = (250, 40, 40)
    picture = photo_part(draw(image, SMALL["squash"], [(0, 0)]), (300, 300)).astype(int)
    spread = picture.max(axis=2) - picture.min(axis=2)
    assert spread[20:90, 20:90].mean() > 150
    assert spread[200:600, 200:600].mean() < 40


def test_the_tint_follows_coverage() -> None:
    placement = SMALL["squash"].place((300, 300))
    selector = np.ones((6, 6), dtype=np.uint8)
    coverage = np.tile(np.array([1, 50, 100, 150, 200, 255], dtype=np.uint8), (6, 1))
    image = np.full((300, 300, 3), GREY, dtype=np.uint8)
    picture = draw_overlay(image, placement=placement, selector=selector, coverage=coverage)
    middles = [round((col + 0.5) * 84 / 90 * 768 / 6) for col in range(6)]
    greenness = picture[50, middles, 1].astype(int) - picture[50, middles, 0]
    assert (np.diff(greenness) > 0).all()


def test_the_legend_counts_all_views_and_says_which_is_drawn() -> None:
    placement = grid_preset("llava-1.6").place((480, 640))
    selector = np.zeros(placement.shape, dtype=np.uint8)
    selector[3, :7] = 1
    selector[100, :5] = 1
    facts = legend_facts(placement, selector, "anyres")
    assert facts[0] == "kept patches 12 of 2880 · 5 views of 24x24 anyres"
    assert "first view" in facts[1]
    assert "7 of its 576" in facts[1]
    single = grid_preset("llava-1.5-finetune").place((480, 640))
    assert legend_facts(single, selector[:24], "pad") == ["kept patches 7 of 576 · 24x24 pad"]


# ---- boxes, labels, outlines ----


@pytest.mark.parametrize("size", SIZES)
def test_a_box_has_its_colour_on_its_border(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), GREY, dtype=np.uint8)
    box = (0.2 * size[1], 0.3 * size[0], 0.7 * size[1], 0.9 * size[0])
    phrases = [Phrase("", 0, (0, 0), box, -1), Phrase("other", 0, (0, 0), (0, 0, 9, 9), 0.5)]
    picture = photo_part(draw(image, SMALL["pad"], [], phrases=phrases), size)
    scale = picture.shape[1] / size[1]
    x0, y0, x1, y1 = (round(value * scale) for value in box)
    for x, y in ((x0, y0), (x1, y1), ((x0 + x1) // 2, y0), (x0, (y0 + y1) // 2), (x1, (y0 + y1) // 2)):
        assert tuple(picture[y, x]) == PALETTE[0]
    inside = picture[(y0 + y1) // 2, (x0 + x1) // 2]
    assert tuple(inside) not in PALETTE


def test_annotators_boxes_are_dashed_and_the_legend_says_so() -> None:
    image, box = np.full((400, 400, 3), GREY, dtype=np.uint8), (40, 60, 360, 340)
    pictures, shares = {}, {}
    for origin in ("model", "annotator", "mixed"):
        pictures[origin] = draw(image, SMALL["pad"], [], phrases=[Phrase("", 0, (0, 0), box, -1, origin)])
        photo = photo_part(pictures[origin], (400, 400))
        scale = photo.shape[1] / 400
        left, top, right = (round(value * scale) for value in (box[0], box[1], box[2]))
        shares[origin] = (photo[top, left : right + 1] == PALETTE[0]).all(axis=-1).mean()
    assert shares["model"] == 1
    assert shares["annotator"] == shares["mixed"] == pytest.approx(0.5, abs=0.1)
    assert len(pictures["mixed"]) > len(pictures["model"])  # a line more in the legend
    assert [score_words(-1, origin) for origin in pictures] == ["", "annotator", "annotator's box"]
    assert score_words(0.5, "model") == "0.50"


def test_boxes_of_the_same_words_share_a_colour_with_the_caption() -> None:
    image = np.full((400, 400, 3), GREY, dtype=np.uint8)
    boxes = [(10, 60, 90, 140), (110, 60, 190, 140), (210, 60, 290, 140)]
    phrases = [
        Phrase(text, 0, span, box, 0.5)
        for text, span, box in zip(["cat", "dog", "cat"], [(2, 5), (12, 15), (2, 5)], boxes, strict=True)
    ]
    picture = draw(image, SMALL["pad"], [], phrases=phrases, caption="a cat and a dog")
    borders = [tuple(picture[round(100 * 1.92), round(x * 1.92)]) for x, *_ in boxes]
    assert borders == [PALETTE[0], PALETTE[1], PALETTE[0]]
    caption = picture[768 + 30 :].reshape(-1, 3)
    assert {PALETTE[0], PALETTE[1]} <= {tuple(pixel) for pixel in caption}
    assert PALETTE[2] not in {tuple(pixel) for pixel in caption}


def test_a_box_that_leaves_the_image_is_cut_at_its_border() -> None:
    image = np.full((400, 400, 3), GREY, dtype=np.uint8)
    phrases = [Phrase("x", 0, (0, 0), (-50, -1e9, 1e9, 450), 0.5)]
    picture = photo_part(draw(image, SMALL["pad"], [], phrases=phrases), (400, 400))
    assert tuple(picture[767, 400]) == tuple(picture[400, 767]) == PALETTE[0]


def test_masks_are_outlined() -> None:
    mask = np.zeros((1, 40, 40), dtype=np.uint8)  # at a tenth of the resolution
    mask[0, 10:30, 10:30] = 1
    phrases = [Phrase("x", 0, (0, 1), (0, 0, 400, 400), 0.5)]
    image = np.full((400, 400, 3), GREY, dtype=np.uint8)
    picture = draw(image, SMALL["pad"], [], phrases=phrases, masks=encode_masks(mask))
    at = [tuple(picture[384, x]) for x in range(768)]
    assert [x for x in range(20, 748) if at[x] == PALETTE[0]] == [191, 192, 575, 576]


class Recorder(ImageDraw.ImageDraw):
    """A canvas that remembers the filled rectangles."""

    filled: list[tuple[float, ...]]

    def rectangle(self, xy, fill=None, outline=None, width=1):  # type: ignore[no-untyped-def]
        if fill is not None:
            self.filled.append(tuple(xy))
        super().rectangle(xy, fill, outline, width)


@given(data=st.data())
@settings(max_examples=60, derandomize=True)
def test_labels_stay_in_the_picture_and_off_each_other(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 500)), data.draw(st.integers(1, 300))
    xs, ys = st.integers(0, width - 1), st.integers(0, height - 1)
    labels = []
    for index in range(data.draw(st.integers(0, 25))):
        (x0, x1), (y0, y1) = sorted(data.draw(st.tuples(xs, xs))), sorted(data.draw(st.tuples(ys, ys)))
        words = data.draw(st.text(max_size=12)) + "x"
        labels.append(BoxLabel((x0, y0, x1, y1), words, " 0.50", PALETTE[index % 6]))
    canvas = Recorder(Image.new("RGB", (width, height)))
    canvas.filled = []
    left_out = draw_boxes(canvas, labels, Lettering(14), (0, 0, width, height))
    assert left_out == len(labels) - len(canvas.filled)
    for index, (x0, y0, x1, y1) in enumerate(canvas.filled):
        assert 0 <= x0 < x1 < width
        assert 0 <= y0 < y1 < height
        for a0, b0, a1, b1 in canvas.filled[:index]:
            assert x1 < a0 or a1 < x0 or y1 < b0 or b1 < y0


# ---- text ----


def shown(line: list) -> str:
    return "".join(glyph.letters for glyph in line)


def test_lines_break_at_spaces_and_fit() -> None:
    lettering = Lettering(16)
    text = "a cat on a sofa " * 12
    lines = lettering.wrap(text, 200, 50)
    assert "".join(shown(line) for line in lines) == text
    assert len(lines) > 4
    for line in lines:
        assert lettering.width(shown(line).rstrip()) <= 200
        assert shown(line).endswith(" ")


@pytest.mark.parametrize("text", ["x" * 50_000, "lorem ipsum " * 5000, "猫" * 20_000, "\u202e" * 50_000])
def test_what_is_cut_is_counted(text: str) -> None:
    lettering = Lettering(16)
    lines = lettering.wrap(text, 300, 3)
    assert len(lines) <= 3
    body, tail = "".join(shown(line) for line in lines).split("… (+")
    left = int(tail.removesuffix(" characters)").replace(",", ""))
    if not unicodedata.category(text[0]).startswith("C"):  # else nothing of it is shown
        body = re.sub(r"\[U\+\w+\]", "x", body)
        assert left + len(body) == len(text)
    assert 0 < left <= len(text)
    assert all(lettering.width(shown(line).rstrip()) <= 300 for line in lines)


def test_letters_the_font_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "system_fonts", tuple)  # a machine without any
    lettering = Lettering(16)
    assert lettering.clean("Café ½ Ａ \x1b[31m\u202e\u200b\ud800 a\tb\nc") == "Cafe 1⁄2 A [31m a b c"
    assert lettering.note == ""
    assert lettering.clean("猫😀ש") == "[U+732B][U+1F600][U+05E9]"
    assert lettering.note == "[U+...] = no font here for CJK, Hebrew, symbols: install fontconfig, fonts-noto"
    assert lettering.width(lettering.clean("猫")) == lettering.width("[U+732B]")
    assert lettering.shorten("a long label", 40).endswith("…")
    assert lettering.width(lettering.shorten("a long label" * 999, 90, " 0.87")) <= 90
    assert lettering.shorten("cat", 90, " 0.87") == "cat 0.87"


def test_invisible_characters_change_nothing() -> None:
    image = np.full((40, 60, 3), GREY, dtype=np.uint8)
    plain = draw(image, SMALL["pad"], [], caption="a cat", title="title")
    hidden = draw(image, SMALL["pad"], [], caption="a\u200b c\x07\u202eat\x00", title="ti\u2066tle")
    assert np.array_equal(plain, hidden)


def test_the_font_that_has_a_word_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def has_only(letters: str) -> SystemFont:
        points = tuple(sorted(map(ord, letters)))
        return SystemFont(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf", 0, points, points)

    fonts = (has_only("Straßeé\u0301"), has_only("قطة"))
    monkeypatch.setattr(text_module, "system_fonts", lambda: fonts)
    lettering = Lettering(16)
    text = "cat Straße قطة e\u0301 קט"
    line = lettering.wrap(text, 900, 1)[0]
    assert [(glyph.letters, glyph.font) for glyph in line] == [
        *((letter, 0) for letter in "cat "),
        *((letter, 1) for letter in "Straße"),
        (" ", 0),
        *((letter, 2) for letter in "قطة"),
        (" ", 0),
        ("e", 1),
        ("\u0301", 1),
        (" ", 0),
        ("[U+05E7]", 0),
        ("[U+05D8]", 0),
    ]
    assert lettering.note == "[U+...] = no font here for Hebrew: install fonts-noto-core"
    joined, apart = lettering.width("قطة"), sum(map(lettering.width, "قطة"))
    assert features.check("raqm") == (joined < apart)
    assert lettering.width("e" + "\u0301" * 900) < 30  # marks don't pile up


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abc אבג דהו xyz", ["abc", " ", "דהו", " ", "אבג", " ", "xyz"]),
        ("אבג xyz דהו", ["דהו", " ", "xyz", " ", "אבג"]),
        ("אבג 0.87", ["0.87", " ", "אבג"]),
        ("a אבג 12, 34 b", ["a", " ", "34", " ", ",", "12", " ", "אבג", " ", "b"]),
        ("אבג (12)", [")", "12", "(", " ", "אבג"]),
        ("אבג, abc!", ["!", "abc", " ", "אבג,"]),
    ],
)
def test_right_to_left(text: str, shown: list[str]) -> None:
    line = [text_module.Glyph(letter) for letter in text]
    assert ["".join(glyph.letters for glyph in run) for _, run in text_module._in_visual_order(line)] == shown


def test_brackets_turn_in_a_text_from_right_to_left() -> None:
    def drawn(letters: str, *, rightwards: bool) -> np.ndarray:
        picture = Image.new("L", (30, 30))
        run = [text_module.Glyph(letter) for letter in letters]
        Lettering(16)._draw_run(ImageDraw.Draw(picture), 5, 2, run, 255, rightwards=rightwards)  # type: ignore[arg-type]
        return np.asarray(picture)

    assert drawn("(", rightwards=True).any()
    np.testing.assert_array_equal(drawn("(", rightwards=False), drawn(")", rightwards=True))


def test_a_chip_covers_nothing_of_its_neighbours() -> None:
    """What stands beside a highlighted run has the pixels that it has alone."""
    lettering = Lettering(16)
    text = 'g,cat,"f'
    marked = [None, None, *[PALETTE[0]] * 3, None, None, None]
    line = lettering.wrap(text, 400, 1, marked)[0]
    picture = Image.new("RGB", (120, 30))
    lettering.draw(ImageDraw.Draw(picture), 5, 3, line, (255, 255, 255))
    pixels = np.asarray(picture).astype(int)
    chip = np.flatnonzero((pixels == PALETTE[0]).all(axis=2).any(axis=0))
    for part, at in (("g,", 5.0), (',"f', 5 + lettering._line_width(line[:5]))):
        alone = Image.new("RGB", (120, 30))
        lettering.text(ImageDraw.Draw(alone), at, 3, part, (255, 255, 255))
        columns = np.flatnonzero(np.asarray(alone).any(axis=(0, 2)))
        assert not set(columns) & set(chip)
        np.testing.assert_array_equal(pixels[:, columns], np.asarray(alone)[:, columns])


def test_truth_has_a_colour_of_its_own_and_a_box_for_each_thing() -> None:
    image = np.full((400, 400, 3), GREY, dtype=np.uint8)
    masks = np.zeros((2, 400, 400), dtype=np.uint8)
    masks[0, 100:200, 100:200] = 1
    masks[1, 250:300, 250:300] = 1
    assert TRUTH not in PALETTE
    options = {"phrases": [Phrase("x", 0, (0, 0), (10, 300, 60, 390), 0.5)], "max_side": 400}
    told = draw(image, SMALL["pad"], [], truths=encode_masks(masks), **options)
    white = (told == TRUTH).all(axis=2)[:, (told.shape[1] - 400) // 2 :]
    for low, high in ((100, 199), (250, 299)):
        assert white[low, low : high + 1].all()
        assert white[low : high + 1, high].all()
    assert not white[210:240, 210:240].any()  # no box around both
    assert told.shape[0] > draw(image, SMALL["pad"], [], **options).shape[0]  # the legend names them


@pytest.mark.parametrize("size", [(300, 450), (450, 300)])
def test_the_photograph_stands_beside_the_overlay(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    picture = draw(image, SMALL["pad"], [], beside=True, max_side=450)
    left = (picture.shape[1] - size[1]) // 2 if size[1] > size[0] else 0
    np.testing.assert_array_equal(picture[: size[0], left : left + size[1]], image)
    overlay = draw(image, SMALL["pad"], [], max_side=450)
    bare = (overlay.shape[1] - size[1]) // 2
    below = size[0] + 6 if size[1] > size[0] else 0
    right = left if size[1] > size[0] else size[1] + 6
    np.testing.assert_array_equal(
        picture[below : below + size[0], right : right + size[1]], overlay[: size[0], bare : bare + size[1]]
    )


@given(text=st.text(max_size=300), start=st.integers(-5, 310), end=st.integers(-5, 310))
@settings(max_examples=40, derandomize=True)
def test_any_text_gives_a_picture(text: str, start: int, end: int) -> None:
    image = np.full((40, 60, 3), GREY, dtype=np.uint8)
    phrases = [Phrase(text, 0, (start, end), (3, 4, 30, 30), 0.5)]
    picture = draw(image, SMALL["pad"], [], phrases=phrases, caption=text, title=text, notice=text)
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 768
    assert picture.shape[0] < 900


def test_an_enormous_caption_makes_no_enormous_picture() -> None:
    image = np.full((40, 60, 3), GREY, dtype=np.uint8)
    text = "a cat\n" * 9000
    phrases = [Phrase(text, 0, (0, len(text)), (3, 4, 30, 30), 0.5)]
    picture = draw(image, SMALL["pad"], [], phrases=phrases, caption=text, title=text, notice=text)
    assert picture.shape[0] < 900


def test_the_notice_is_a_band_across_the_top() -> None:
    image = np.full((300, 450, 3), GREY, dtype=np.uint8)
    without = draw(image, SMALL["pad"], [])
    picture = draw(image, SMALL["pad"], [], notice="untrained weights: labels mean nothing")
    band = picture.shape[0] - without.shape[0]
    yellow = (picture[:band] == (255, 200, 0)).all(axis=2)
    assert band >= 40
    assert yellow.mean() > 0.6
    assert yellow[:, :10].any()
    assert yellow[:, -10:].any()
    assert np.array_equal(picture[band:], without)


# ---- sizes and faults ----


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 3000), (3000, 1), (64, 1280), (1500, 2100), (400, 400)])
@pytest.mark.parametrize("preset", ["llava-1.5-pretrain", "llava-1.5-finetune", "llava-1.6-original", "seed-224"])
def test_every_size(size: tuple[int, int], preset: str) -> None:
    image = np.full((*size, 3), GREY, dtype=np.uint8)
    phrases = [Phrase("a cat", 0, (0, 5), (0, 0, size[1], size[0]), 0.87)]
    picture = draw(image, grid_preset(preset), [(0, 0)], phrases=phrases, caption="a cat")
    assert 560 <= picture.shape[1] <= 1280
    assert picture.shape[0] <= 1280 + 150
    assert picture.flags.c_contiguous


@pytest.mark.parametrize("preset", GRID_PRESETS)
def test_every_preset_shows_the_whole_image(preset: str) -> None:
    """Of tiles the one that shows all is drawn, wherever in the order it is: a kept cell of it is bright."""
    image = np.full((1200, 900, 3), GREY, dtype=np.uint8)
    placement = grid_preset(preset).place((1200, 900))
    selector = np.zeros(placement.shape, dtype=np.uint8)
    rows, cols = placement.cells_of(placement.overview)
    selector[rows, cols] = 1
    kept = shade_patches(image, placement, selector[rows, cols] != 0, np.ones(selector[rows, cols].shape, np.float32))
    assert (kept[600, 450] != kept[600, 450, 0]).any()
    facts = legend_facts(placement, selector, "")
    views = len(placement.views)
    assert (f" {views} views of " in facts[0]) == (views > 1)


def test_the_same_input_gives_the_same_bytes() -> None:
    image = np.ascontiguousarray(skimage.data.chelsea())
    before = image.copy()
    phrases = [Phrase("a cat", 0, (0, 5), (60, 0, 440, 300), 0.87)]
    pictures = [
        draw(image, SMALL["pad"], [(2, 2)], phrases=phrases, caption="a cat", notice="n", max_side=300) for _ in "ab"
    ]
    assert np.array_equal(*pictures)
    assert np.array_equal(image, before)


def test_many_boxes_stay_quick_and_are_counted() -> None:
    image = np.full((300, 450, 3), GREY, dtype=np.uint8)
    phrases = [Phrase(f"thing {i}", 0, (0, 0), (i % 400, i % 250, i % 400 + 50, i % 250 + 50), 0.5) for i in range(900)]
    assert draw(image, SMALL["pad"], [], phrases=phrases).shape[1] == 768


def test_contradictions_are_named() -> None:
    image = np.full((30, 40, 3), GREY, dtype=np.uint8)
    placement = SMALL["pad"].place((30, 40))
    good = np.zeros((6, 6), dtype=np.uint8)
    phrase = Phrase("x", 0, (0, 1), (0, 0, 9, 9), 0.5)
    nowhere = Phrase("x", 0, (0, 1), (0, 0, float("nan"), 9), 0.5)
    mask = encode_masks(np.ones((1, 30, 40), dtype=np.uint8))
    cases = [
        ({"image": image[:20]}, "placed on"),
        ({"image": image.astype(float)}, "uint8"),
        ({"selector": good[:5]}, "selector"),
        ({"coverage": good[:5]}, "coverage"),
        ({"masks": mask}, "1 masks for 0"),
        ({"phrases": [phrase, nowhere]}, "finite"),
    ]
    for change, message in cases:
        options = {"image": image, "placement": placement, "selector": good} | change
        with pytest.raises(InputError, match=message):
            draw_overlay(options.pop("image"), **options)
    with pytest.raises(ConfigError, match="max_side"):
        draw_overlay(image, placement=placement, selector=good, max_side=10)
