"""The Python API on the untrained models: shapes, sources, texts, pictures, bad input."""

import base64
import io
import re

import jsonschema
import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage import data

from patchmint import Annotator, DemoWarning, Text, UntrainedWarning
from patchmint.api.document import AnnotationDocument
from patchmint.demo import FRESH_SEED, HELD_OUT_SEED
from patchmint.demo.dataset import obtain_scenes
from patchmint.demo.scenes import make_scene
from patchmint.errors import ConfigError, ImageDecodeError, ImageTooLargeError, InputError, TextError, WeightsError
from patchmint.images.decode import decode_image

PHOTO = data.chelsea()[::2, ::2]


@pytest.fixture(scope="module")
def annotator():
    with pytest.warns(UntrainedWarning, match="mean nothing"):
        return Annotator.from_preset("untrained-tiny", device="cpu")


@pytest.fixture(scope="module")
def annotation(annotator):
    return annotator.annotate(PHOTO, ["a cat on a sofa", "two dogs"])


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_shapes_and_types(annotation):
    assert annotation.selector.shape == annotation.coverage.shape == (2, 24, 24)
    assert annotation.selector.dtype == annotation.coverage.dtype == np.uint8
    np.testing.assert_array_equal(annotation.selector, annotation.coverage > 0)
    assert not annotation.selector[:, annotation.inside == 0].any()
    assert annotation.inside.shape == (24, 24)
    assert annotation.codes.dtype == np.int32
    assert annotation.codes.ndim == 2
    assert annotation.phrases
    for phrase in annotation.phrases:
        assert phrase.text == annotation.texts[phrase.text_index].content[slice(*phrase.span)]


def test_labels_of_a_text_are_the_union_of_its_phrases(annotation):
    for text in range(2):
        kept = [label.selector for label in annotation.phrase_labels if label.text_index == text]
        np.testing.assert_array_equal(np.maximum.reduce(kept), annotation.selector[text])


@pytest.mark.parametrize("source", ["path", "bytes", "pil", "array"])
def test_sources_give_the_same(annotator, annotation, tmp_path, source):
    (tmp_path / "cat.png").write_bytes(png(PHOTO))
    image = {
        "path": tmp_path / "cat.png",
        "bytes": png(PHOTO),
        "pil": Image.fromarray(PHOTO),
        "array": PHOTO,
    }[source]
    again = annotator.annotate(image, ["a cat on a sofa", "two dogs"])
    np.testing.assert_array_equal(again.coverage, annotation.coverage)
    np.testing.assert_array_equal(again.codes, annotation.codes)


def test_one_text_or_many_is_the_same(annotator, annotation):
    alone = annotator.annotate(PHOTO, "two dogs")
    assert alone.selector.shape == (1, 24, 24)
    np.testing.assert_array_equal(alone.selector[0], annotation.selector[1])


def test_same_seed_same_labels(annotation):
    with pytest.warns(UntrainedWarning):
        other = Annotator.from_config({"models": "untrained-tiny"}, device="cpu")
    again = other.annotate(PHOTO, ["a cat on a sofa", "two dogs"])
    np.testing.assert_array_equal(again.coverage, annotation.coverage)
    np.testing.assert_array_equal(again.codes, annotation.codes)


def test_pictures(annotation):
    picture = annotation.overlay(1)
    assert picture.mode == "RGB"
    assert max(picture.size) <= 1600
    with pytest.raises(InputError, match="texts 0 to 1"):
        annotation.overlay(2)


def test_a_document_is_its_images_each_with_its_texts(annotator, annotation, tmp_path):
    (tmp_path / "cat.png").write_bytes(png(PHOTO))
    parts = ["a cat on a sofa", tmp_path / "cat.png", "two dogs", PHOTO[:100]]
    document = annotator.annotate_document(parts)
    assert [text.content for text in document.texts] == ["a cat on a sofa", "two dogs"]
    assert document.image_texts == ((0, 1), (0, 1))
    np.testing.assert_array_equal(document.images[0].coverage, annotation.coverage)
    assert document.images[1].image.size == (100, PHOTO.shape[1])
    assert document._repr_html_().count("<figure") == 4
    near = annotator.annotate_document(["a cat", *parts, "a cup"], "neighbours")
    assert near.image_texts == ((1, 2), (2, 3))
    assert [text.content for text in near.images[1].texts] == ["two dogs", "a cup"]
    assert annotator.annotate_document([PHOTO, "a cat", "two dogs"], "neighbours").image_texts == ((0,),)
    with pytest.raises(InputError, match="a string is a text"):
        annotator.annotate_document(["photo.jpg", "a cat"])
    with pytest.raises(TextError):
        annotator.annotate_document([PHOTO])
    with pytest.raises(ImageDecodeError, match="image 1"):
        annotator.annotate_document([PHOTO, "a cat", b"no image"])
    with pytest.raises(ConfigError, match="neighbours"):
        annotator.annotate_document(parts, "own")


def pictures_in(html: str) -> list[Image.Image]:
    found = re.findall('src="data:image/png;base64,([^"]*)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data, validate=True))) for data in found]


def test_a_notebook_shows_every_text(annotator):
    annotation = annotator.annotate(PHOTO, ["a cat", "<script>alert(\"x\")</script> & 'dogs'"])
    html = annotation._repr_html_()
    assert html.count("<figure") == html.count("</figure>") == len(pictures_in(html)) == 2
    assert "<figcaption>a cat</figcaption>" in html
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &#x27;dogs&#x27;") == 2
    for index, picture in enumerate(pictures_in(html)):
        shown = np.asarray(picture.convert("RGB"), np.int16)
        drawn = np.asarray(annotation.overlay(index, max_side=round(800 / 2**0.5)), np.int16)
        assert np.abs(shown - drawn).mean() < 8  # 256 colours
    first = Image.open(io.BytesIO(annotation._repr_png_()))
    np.testing.assert_array_equal(np.asarray(first), np.asarray(annotation.overlay(0, max_side=800)))


def test_a_notebook_stays_small(annotator):
    photo = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    one = len(annotator.annotate(photo, "a cat")._repr_html_())
    many = len(annotator.annotate(photo, ["a cat", *["..."] * 24])._repr_html_())  # the models read only one
    assert many < 5 * one < 3e6


def test_document_keeps_its_schema(annotation):
    document = annotation.to_document()
    text = document.model_dump_json()
    jsonschema.validate(document.model_dump(mode="json", by_alias=True), AnnotationDocument.model_json_schema())
    assert AnnotationDocument.model_validate_json(text) == document
    assert document.notice
    assert "null" not in text


@pytest.mark.filterwarnings("ignore::patchmint.UntrainedWarning")
def test_labels_or_codes_alone():
    labels = Annotator.from_preset("untrained-tiny", device="cpu", tokens=None).annotate(PHOTO, "a cat")
    with pytest.raises(InputError, match="tokens are null"):
        _ = labels.codes
    assert Image.open(io.BytesIO(labels._repr_png_())).size
    codes = Annotator.from_preset("untrained-tiny", device="cpu", labels=None).annotate(PHOTO, "a cat")
    assert codes.phrases == codes.phrase_labels == []
    assert codes._repr_png_() is codes._repr_html_() is None
    with pytest.raises(InputError, match="labels are null"):
        _ = codes.selector
    for each in (labels, codes):
        jsonschema.validate(
            each.to_document().model_dump(mode="json", by_alias=True), AnnotationDocument.model_json_schema()
        )


@pytest.mark.filterwarnings("ignore::patchmint.UntrainedWarning")
def test_features_where_asked_for():
    settings = {"features": {"connector": "sti", "pool": 12}, "grid": "llava-1.6", "tokens": None, "labels": None}
    annotation = Annotator.from_preset("untrained-tiny", device="cpu", **settings).annotate(PHOTO, "a cat")
    assert annotation.features.dtype == np.float16
    assert annotation.features.shape[0] == len(annotation.placement.views) * (144 + 18 + 18)
    bare = Annotator.from_preset("untrained-tiny", device="cpu").annotate(PHOTO, "a cat")
    with pytest.raises(InputError, match="features are null"):
        _ = bare.features


@pytest.mark.filterwarnings("ignore::patchmint.UntrainedWarning")
@pytest.mark.parametrize("grid", ["llava-1.5-pretrain", "llava-1.6", "siglip-so400m-384", "seed-224"])
def test_every_grid(grid):
    annotator = Annotator.from_preset("untrained-tiny", device="cpu", grid=grid, tokens=None)
    for photo in (PHOTO, PHOTO[:, :20]):
        annotation = annotator.annotate(photo, "a cat")
        assert annotation.selector.shape[1:] == annotation.placement.shape == annotation.inside.shape
        annotation.overlay()


@pytest.mark.filterwarnings("ignore::patchmint.UntrainedWarning")
def test_fast_coverage_agrees_with_exact(annotation):
    fast = Annotator.from_preset("untrained-tiny", device="cpu", labels={"coverage": "fast"}, tokens=None)
    coverage = fast.annotate(PHOTO, ["a cat on a sofa", "two dogs"]).coverage
    # The tiny SAM's logits are 32 x 32, hardly finer than the grid; test_sam.py has the limits for official sizes.
    assert not np.array_equal(coverage, annotation.coverage)
    assert np.corrcoef(coverage.ravel(), annotation.coverage.ravel())[0, 1] > 0.8


# ---- many images ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Drawn scenes of several sizes with their captions, which the demo's models know."""
    folder = tmp_path_factory.mktemp("scenes")
    truth = obtain_scenes(folder / "scenes", seed=HELD_OUT_SEED, count=5, progress=lambda _: None)
    paths = sorted((folder / "scenes").glob("*/*.jpg"))
    texts = {int(name): [text.content for text in scene.texts] for name, scene in truth.scenes.items()}
    return [(path, texts[int(path.stem)]) for path in paths]


def test_a_batch_is_as_one_by_one(scenes, monkeypatch):
    with pytest.warns(DemoWarning):
        annotator = Annotator.from_preset("demo", device="cpu")
    sizes = []
    models = annotator._models
    annotate = models.annotate
    monkeypatch.setattr(models, "annotate", lambda images, texts: sizes.append(len(images)) or annotate(images, texts))
    paths, texts = [path for path, _ in scenes], [texts for _, texts in scenes]
    images = [paths[0], str(paths[1]), paths[2].read_bytes(), Image.open(paths[3]), decode_image(paths[4])]
    images += [np.asarray(Image.open(paths[0]).resize((200, 90)))]
    texts += [texts[0][0]]
    alone = [annotator.annotate(image, words) for image, words in zip(images, texts, strict=True)]
    sizes.clear()
    batches = [
        annotator.annotate_batch(images, texts, batch_size=4),
        annotator.annotate_batch(iter(images), iter(texts)),
    ]
    assert sizes == [4, 2, 6]
    assert any(one.selector.any() for one in alone)
    for batch in batches:
        assert len(batch) == len(alone)
        for one, other in zip(alone, batch, strict=True):
            assert one.texts == other.texts
            np.testing.assert_array_equal(one.selector, other.selector)
            np.testing.assert_allclose(one.coverage.astype(int), other.coverage, atol=4)  # sums of floats, in 255ths
            np.testing.assert_array_equal(one.codes, other.codes)
            assert [phrase.span for phrase in one.phrases] == [phrase.span for phrase in other.phrases]


def test_a_batch_reads_no_further_than_it_must(annotator):
    taken = []

    def images():
        for number in range(10):
            taken.append(number)
            yield b"no image" if number == 3 else PHOTO[:64, :64]

    with pytest.raises(ImageDecodeError, match="image 3: the image \\(bytes\\)") as error:
        annotator.annotate_batch(images(), ["a cat"] * 10, batch_size=2)
    assert error.value.index == 3
    assert taken == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("images", "texts", "error", "message"),
    [
        ([PHOTO, "missing.jpg"], ["a cat", "a cat"], ImageDecodeError, "image 1: image 'missing.jpg' doesn't exist"),
        ([PHOTO], [["a cat", " "]], TextError, "image 0: text 1 is blank"),
        ([PHOTO, PHOTO], ["a cat"], InputError, "more images than texts"),
        ([PHOTO], ["a cat", "a dog"], InputError, "more texts than images"),
        (PHOTO, ["a cat"], InputError, "this is one; pass it to `annotate`"),
        ("cat.jpg", ["a cat"], InputError, "this is one; pass it to `annotate`"),
        ([PHOTO], "a cat", InputError, "for each image"),
    ],
)
def test_a_bad_batch_says_where(annotator, images, texts, error, message):
    with pytest.raises(error, match=message):
        annotator.annotate_batch(images, texts)


def test_an_empty_batch_is_none_and_a_batch_of_none_is_refused(annotator):
    assert annotator.annotate_batch([], []) == []
    with pytest.raises(ConfigError, match="batch_size"):
        annotator.annotate_batch([PHOTO], ["a cat"], batch_size=0)


# ---- bad input: the table in docs/bad-input.md -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("missing.jpg", ImageDecodeError, "missing.jpg"),
        (b"", ImageDecodeError, "no bytes|empty|zero bytes"),
        (b"hello, I am a text file\n" * 50, ImageDecodeError, "JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF"),
        (png(PHOTO)[:5000], ImageDecodeError, "cut short|truncated|damaged"),
        (np.zeros((0, 10, 3), np.uint8), ImageDecodeError, "pixel"),
        (np.full((10, 10, 3), np.nan), ImageDecodeError, "uint8"),
        (np.zeros((10, 10, 7), np.uint8), ImageDecodeError, "shape|\\(H, W, 3\\)"),
        (None, ImageDecodeError, "NoneType"),
    ],
)
def test_bad_images_have_names(annotator, image, error, message):
    with pytest.raises(error, match=message):
        annotator.annotate(image, "a cat")


def test_a_bomb_is_refused_by_its_header(annotator):
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG", compress_level=1)
    assert len(buffer.getvalue()) < 300_000
    with pytest.raises(ImageTooLargeError, match="400"):
        annotator.annotate(buffer.getvalue(), "a cat")


@pytest.mark.parametrize("text", ["", "   \n", [], ["a cat", ""], 7, [None]])
def test_no_text_has_a_name(annotator, text):
    with pytest.raises(TextError):
        annotator.annotate(PHOTO, text)


@pytest.mark.parametrize("text", ["🐱🐶", "...", "?!", "‮\u0000"])
def test_nothing_to_read_is_an_empty_label(annotator, text):
    annotation = annotator.annotate(PHOTO, ["a cat", text])
    assert not annotation.selector[1].any()
    assert annotation.selector[0].any()
    annotation.overlay(1)


def test_50_kilobytes_of_text(annotator):
    text = f"cat {'x' * 120} . " * 380 + "cat . " * 300  # long words are one piece each: fewer passes of the model
    assert len(text) > 50_000
    annotation = annotator.annotate(PHOTO[:10, :100], text)  # scaled to the fewest pixels
    assert annotation.selector.shape == (1, 24, 24)
    starts = [phrase.span[0] for phrase in annotation.phrases]
    assert max(starts) > 49_800  # the end of the text was looked for too
    annotation.overlay()


def test_bad_settings_have_names():
    with pytest.raises(ConfigError, match="presets: official"):
        Annotator.from_preset("oficial")
    with pytest.raises(ConfigError, match="device 'abacus'"):
        Annotator.from_preset("untrained-tiny", device="abacus")


def test_missing_weights_say_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHMINT_WEIGHTS", str(tmp_path))
    everything = "groundingdino-swint-ogc bert-base-uncased-vocab sam-vit-h vqgan-imagenet-f16-16384"
    with pytest.raises(WeightsError, match=f"patchmint models pull {everything}"):
        Annotator.from_preset("official", device="cpu")


def test_phrases_of_ones_own(annotator):
    text = Text("the cat is on the grey sofa", phrases=((4, 7), (18, 27)))
    found = annotator.annotate(PHOTO, text)
    assert {phrase.text for phrase in found.phrases} <= {"cat", "grey sofa"}
    assert found.phrases
    with pytest.raises(TextError, match="list"):
        Text.from_phrases("cat")


def test_a_text_that_is_no_unicode_has_a_name(annotator):
    with pytest.raises(TextError, match="Unicode"):
        annotator.annotate(PHOTO, "a \udcff cat")


def test_repr_tells_what_it_is(annotation):
    assert repr(annotation).startswith("<Annotation of a 226 x 150 image: 2 texts")


def test_overlapping_and_equal_phrases_have_their_boxes_each_outlined_once(monkeypatch):
    """On scenes with a red circle, in which "circle" took them all."""
    with pytest.warns(DemoWarning):
        annotator = Annotator.from_config({"tokens": None}, device="cpu")
    segmenter = annotator._models.segmenter
    outlined = []
    masks = segmenter.masker.masks

    def spy(images, boxes, **prepared):
        outlined.append([len(each) for each in boxes])
        return masks(images, boxes, **prepared)

    monkeypatch.setattr(segmenter.masker, "masks", spy)
    image = Image.new("RGB", (256, 256), (240, 240, 240))
    ImageDraw.Draw(image).ellipse((60, 60, 180, 180), fill=(220, 30, 30))
    image = np.asarray(image)
    text = Text.from_phrases(["circle", "red circle", "circle"])
    found = segmenter.segment([image], [[text]])[0]
    assert {tuple(span) for span in found.spans.tolist()} == set(text.phrases)
    assert outlined == [[len(np.unique(found.boxes, axis=0))]]
    rles = found.masks.rles()
    assert len(rles) == len(found.boxes) > outlined[0][0]
    for box in np.unique(found.boxes, axis=0):
        assert len({rles[i]["counts"] for i in np.flatnonzero((found.boxes == box).all(1))}) == 1
    alone = segmenter.segment([image], [[Text.from_phrases(["red circle"])]])[0]
    assert len(alone.boxes) == 1


def test_an_image_of_12_bits_that_doesnt_say_so_warns(annotator):
    image = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64))
    with pytest.warns(UserWarning, match="nearly black"):
        annotator.annotate(image, "a cat")


def test_overlapping_and_equal_phrases_of_24_images_alone_and_in_batches():
    """Of each scene's first thing: "circle", "red circle", "circle"; the same whatever else is in the batch."""
    with pytest.warns(DemoWarning):
        annotator = Annotator.from_config({"tokens": None, "precision": "float32"}, device="cpu")
    detector = annotator._models.segmenter.detector
    scenes = [make_scene(FRESH_SEED, number, texts=1) for number in range(24)]
    things = [scene.objects[-1] for scene in scenes]  # which nothing covers
    texts = [[Text.from_phrases([t.shape, f"{t.colour} {t.shape}", t.shape])] for t in things]
    images = [scene.image for scene in scenes]
    alone = [detector.detect([image], [asked])[0] for image, asked in zip(images, texts, strict=True)]
    complete = 0
    for found, (text,) in zip(alone, texts, strict=True):
        of = [found.only((found.spans == span).all(axis=1)) for span in text.phrases]
        np.testing.assert_array_equal(of[0].boxes, of[2].boxes)
        np.testing.assert_array_equal(of[0].scores, of[2].scores)
        complete += all(len(each.boxes) for each in of)
    assert complete >= 20
    order = np.random.default_rng(0).permutation(24)
    for size in (24, 7):
        for start in range(0, 24, size):
            some = order[start : start + size]
            batch = detector.detect([images[n] for n in some], [texts[n] for n in some])
            for number, found in zip(some, batch, strict=True):
                np.testing.assert_array_equal(found.spans, alone[number].spans)
                np.testing.assert_allclose(found.boxes, alone[number].boxes, atol=0.05)
                np.testing.assert_allclose(found.scores, alone[number].scores, atol=1e-4)
