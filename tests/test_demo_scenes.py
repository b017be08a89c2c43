import io
import json
import re
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from patchmint.demo.dataset import write_dataset
from patchmint.demo.scenes import MAX_OBJECTS, NOTHING, Harder, make_scene
from patchmint.demo.shapes import COLOURS, FILLS, RADIUS_SHARES, SHAPES, SIZES, draw
from patchmint.demo.texts import FORMS, NUMBERS, UNKNOWN_THINGS, plural
from patchmint.errors import InputError
from patchmint.geometry.rle import decode_mask, from_coco
from tools.demo_training.models import VOCABULARY, vocabulary
from tools.demo_training.train_detector import join_texts

SEED = 42
SINGULAR = {plural(noun): noun for noun in (*SHAPES, "shape", *UNKNOWN_THINGS)}


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(SEED, number, texts=4) for number in range(150)]


@pytest.fixture(scope="module")
def harder():
    return [make_scene(SEED, 3, texts=4, harder=each) for each in get_args(Harder)]


def texts_of(scenes):
    return [(scene, text) for scene in scenes for text in scene.texts]


def phrases(scenes):
    return [(scene, text, p, text.content[slice(*p.span)]) for scene, text in texts_of(scenes) for p in text.phrases]


def test_a_scene_depends_on_seed_and_number_only():
    first, again, other, next_one = (make_scene(*of) for of in ((SEED, 3), (SEED, 3), (SEED + 1, 3), (SEED, 4)))
    assert (first.jpeg, first.texts) == (again.jpeg, again.texts)
    assert (first.ids == again.ids).all()
    assert first.jpeg not in (other.jpeg, next_one.jpeg)
    assert make_scene(SEED, 1, size=(120, 300)).size == (120, 300)


def test_harder_scenes_are_harder(scenes, harder):
    usual, clutter, tiny, long, textures = (scenes[3], *harder)
    assert len(clutter.objects) > MAX_OBJECTS
    assert max(thing.radius for thing in tiny.objects) < RADIUS_SHARES["small"][0] * min(tiny.size)
    assert max(long.size) == 4 * min(long.size)
    vivid = [np.ptp(each.image[each.ids == NOTHING].astype(int), axis=1) > 120 for each in (usual, textures)]
    assert vivid[0].mean() < 0.01 < vivid[1].mean()


def test_the_pixels_are_those_of_the_file(scenes):
    for scene in scenes[:10]:
        assert (np.asarray(Image.open(io.BytesIO(scene.jpeg))) == scene.image).all()
        assert scene.ids.shape == scene.size == scene.image.shape[:2]


def test_scenes_have_everything_that_models_must_know(scenes):
    assert {len(scene.objects) for scene in scenes} == set(range(1, MAX_OBJECTS + 1))
    for name, wanted in (("shape", SHAPES), ("colour", COLOURS), ("fill", FILLS), ("size", SIZES)):
        assert {getattr(thing, name) for scene in scenes for thing in scene.objects} == set(wanted)
    assert {text.form for _, text in texts_of(scenes)} == set(FORMS)
    aspects = {round(scene.size[1] / scene.size[0], 1) for scene in scenes}
    assert min(aspects) <= 0.5
    assert max(aspects) >= 2.0
    assert 1.0 in aspects


def test_ids_show_each_object_where_it_was_drawn_and_mostly_uncovered(scenes):
    covered = 0
    for scene in scenes:
        assert set(np.unique(scene.ids)) - {NOTHING} == set(range(len(scene.objects)))
        for index, thing in enumerate(scene.objects):
            sprite = draw(thing, np.random.default_rng(0))
            window = np.s_[sprite.top : sprite.top + len(sprite.alpha), sprite.left : sprite.left + len(sprite.alpha)]
            outline = np.zeros(scene.size, dtype=bool)
            outline[window] = sprite.alpha >= 0.5
            seen = scene.ids == index
            assert not (seen & ~outline).any()
            assert seen.sum() >= 0.59 * outline.sum()
            covered += int(seen.sum() < outline.sum())
    assert covered > 20  # there is occlusion


def test_an_objects_pixels_have_its_colour(scenes):
    checked = 0
    for scene in scenes:
        for index, thing in enumerate(scene.objects):
            if thing.fill == "solid" and thing.size == "large":
                mean = scene.image[scene.ids == index].mean(axis=0)
                nearest = min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))
                assert nearest == thing.colour
                checked += 1
    assert checked > 30


def test_a_phrase_names_exactly_the_objects_that_its_words_are_true_of(scenes, harder):
    for scene, _, phrase, words in phrases([*scenes, *harder]):
        said = {SINGULAR.get(word, word) for word in words.split()} - {"shape"}
        fitting = tuple(
            index
            for index, thing in enumerate(scene.objects)
            if said <= {thing.shape, thing.colour, thing.fill, thing.size}
        )
        assert phrase.objects == fitting, words


def test_number_words_and_plurals_are_true(scenes):
    counted = 0
    for _, text, phrase, words in phrases(scenes):
        if phrase.objects:
            assert (words.split()[-1] in SINGULAR) == (len(phrase.objects) > 1)
        before = text.content[: phrase.span[0]].split()
        if before and before[-1] in NUMBERS:
            assert NUMBERS.index(before[-1]) == len(phrase.objects)
            counted += 1
        if before and before[-1] in ("a", "an"):
            assert len(phrase.objects) <= 1
    assert counted > 10


def test_relations_are_true_and_their_phrases_clear_without_them(scenes):
    checked = 0
    for scene, text in (pair for pair in texts_of(scenes) if pair[1].form == "relation"):
        (first,), (second,) = (phrase.objects for phrase in text.phrases)
        (x, y), (other_x, other_y) = scene.objects[first].centre, scene.objects[second].centre
        (told,) = re.findall(r" (left of|right of|above|below) ", text.content)
        assert {"left of": x < other_x, "right of": x > other_x, "above": y < other_y, "below": y > other_y}[told]
        checked += 1
    assert checked > 20


def test_absent_things_are_asked_for_in_every_second_form(scenes):
    absent = {text.form for _, text, phrase, _ in phrases(scenes) if not phrase.objects}
    assert absent >= {"list", "count", "sentence", "absent", "long"}
    assert not absent & {"single", "plural", "relation"}
    for _, text in texts_of(scenes):
        assert (text.form == "absent") <= (not text.objects)


def test_no_text_says_the_same_twice(scenes):
    for _, text in texts_of(scenes):
        named = [phrase.objects for phrase in text.phrases if phrase.objects]
        assert len(named) == len(set(named))


def test_joined_texts_keep_their_phrases(scenes):
    for scene in scenes[:40]:
        joined = join_texts(scene.texts)
        parts = [words for _, _, _, words in phrases([scene])]
        assert [joined.content[slice(*phrase.span)] for phrase in joined.phrases] == parts
        assert ".." not in joined.content


def test_the_vocabulary_knows_all_words_but_those_of_unknown_things(scenes):
    known = vocabulary()
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    unknown = {*UNKNOWN_THINGS, *map(plural, UNKNOWN_THINGS)}
    for _, text in texts_of(scenes):
        assert {text.content[slice(*t.span)] for t in known.tokenize(text.content) if t.id == known.unknown} <= unknown
    assert not unknown & set(VOCABULARY)


def test_the_data_set_is_coco_with_the_truth_beside_it(tmp_path):
    done = []
    write_dataset(tmp_path, seed=SEED, count=12, texts=3, progress=done.append)
    assert done == list(range(1, 13))
    instances = COCO(str(tmp_path / "annotations" / "instances_train2017.json"))
    captions = COCO(str(tmp_path / "annotations" / "captions_train2017.json"))
    truth = json.loads((tmp_path / "truth.json").read_text())
    for number in range(12):
        scene = make_scene(SEED, number, texts=3)
        image = instances.loadImgs([number])[0]
        assert (tmp_path / "train2017" / image["file_name"]).read_bytes() == scene.jpeg
        assert (image["height"], image["width"]) == scene.size
        annotations = instances.loadAnns(instances.getAnnIds([number]))
        for index, annotation in enumerate(annotations):
            mask = decode_mask(from_coco(annotation["segmentation"]))
            assert (mask == (scene.ids == index)).all()
            assert annotation["area"] == (scene.ids == index).sum()
            left, top, width, height = annotation["bbox"]
            assert [left, top, left + width, top + height] == scene.boxes()[index].tolist()
            assert instances.cats[annotation["category_id"]]["name"] == scene.objects[index].shape
        judged = truth["images"][number]
        assert judged["image_id"] == number
        said = [annotation["caption"] for annotation in captions.loadAnns(captions.getAnnIds([number]))]
        assert said == [text["content"] for text in judged["texts"]] == [text.content for text in scene.texts]
        ids = [annotation["id"] for annotation in annotations]
        assert judged["objects"] == [{name: each[name] for name in judged["objects"][0]} for each in annotations]
        for text, known in zip(scene.texts, judged["texts"], strict=True):
            for phrase, of_phrase in zip(text.phrases, known["phrases"], strict=True):
                assert of_phrase["text"] == text.content[slice(*phrase.span)]
                assert of_phrase["objects"] == [ids[index] for index in phrase.objects]


def test_the_data_set_is_the_same_every_time_and_never_written_over(tmp_path):
    for name in ("one", "two"):
        write_dataset(tmp_path / name, seed=1, count=3)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    with pytest.raises(InputError, match="holds scenes already"):
        write_dataset(tmp_path / "one", seed=2, count=3)


def test_words_tell_sizes_apart():
    for scene in (make_scene(5, number) for number in range(40)):
        shares = {size: [t.radius / min(scene.size) for t in scene.objects if t.size == size] for size in SIZES}
        assert max(shares["small"], default=0) < 0.13 < 0.16 < min(shares["large"], default=1)
    assert replace(make_scene(5, 0).objects[0], size="large").has("large")
