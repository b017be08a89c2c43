"""`patchmint demo`: figures that are exactly what shards and truth say, and folders that it refuses."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter
from shard_data import Picture, write_shard

from patchmint.cli.demo import demo as demo_command
from patchmint.config import MODEL_PRESETS, TokensConfig
from patchmint.config.sources import SourceConfig
from patchmint.demo import DEMO_SEED, FRESH_SEED, HELD_OUT_SEED, TRAINING_SEED
from patchmint.demo.dataset import obtain_scenes, read_truth
from patchmint.demo.documents import obtain_documents
from patchmint.demo.judge import codes_psnr, judge_dataset, judge_documents, mask_ious, true_boxes
from patchmint.demo.overlays import overlays, write_overlays
from patchmint.demo.scenes import make_scene
from patchmint.demo.score import (
    DOCUMENT_LIMITS,
    LIMITS,
    ShardFigures,
    judged_samples,
    label_figures,
    psnr,
)
from patchmint.errors import InputError, ShardError
from patchmint.geometry import RleMasks, grid_preset
from patchmint.geometry.rle import decode_mask, encode_masks
from patchmint.images.decode import decode_image
from patchmint.judging.judge import touched_patches
from patchmint.judging.metrics import f1_and_iou
from patchmint.judging.truth import TrueThing
from patchmint.pictures.overlay import TRUTH
from patchmint.pipeline.sources import open_source
from patchmint.samples import ImageRef, PlannedSample, SourceSample, SourceText
from patchmint.shards.layout import GridLayout, Layout, TokensLayout
from patchmint.shards.sample import ShardImage, ShardSample
from patchmint.shards.schema import ImageDocument, PhraseDocument
from patchmint.storage import open_storage
from patchmint.tokenizers.build import build_tokenizer
from tools.demo_training.evaluate import psnr_and_use
from tools.demo_training.measure import true_patches

SEED, COUNT = 11, 8
GRID = grid_preset("llava-1.5-finetune")
LAYOUT = Layout(
    grid=GridLayout(rows=24, cols=24, patch_px=14, fit="pad"),
    min_coverage=0.0,
    tokens=TokensLayout(member="vqgan", grid=(16, 16), codebook_sizes=(512,), preprocessing="pad-256-bicubic"),
    notice="",
)
SCENES = [make_scene(SEED, number, texts=2) for number in range(COUNT)]
TEXTS = [(number, index, text) for number, scene in enumerate(SCENES) for index, text in enumerate(scene.texts)]
ABSENT = [(number, index, named.span) for number, index, text in TEXTS for named in text.phrases if not named.objects]
SILENT = [(number, index) for number, index, text in TEXTS if not text.objects]


def phrase(number, text, span):
    content = SCENES[number].texts[text].content
    return PhraseDocument(
        text=content[slice(*span)], text_index=text, start=span[0], end=span[1], box=(0.0, 0.0, 5.0, 5.0), score=0.5
    )


def perfect():
    """Samples whose labels are the truth; sample N has the codes N and N + 1."""
    samples = []
    for number, scene in enumerate(SCENES):
        placement = GRID.place(scene.size)
        selector = np.stack([true_patches(scene, text.objects, placement) for text in scene.texts]).astype(np.uint8)
        height, width = scene.size
        source = SourceSample(
            str(number), (ImageRef(f"{number}.jpg"),), tuple(SourceText(t.content) for t in scene.texts)
        )
        named = [(index, p.span) for index, text in enumerate(scene.texts) for p in text.phrases if p.objects]
        sample = Picture(
            planned=PlannedSample(number, f"s{number}", source),
            data=scene.jpeg,
            image=ImageDocument(width=width, height=height, format="jpeg", mode="RGB", orientation=1),
            phrases=tuple(phrase(number, index, span) for index, span in named),
            selector=selector,
            coverage=selector * 255,
            codes=np.arange(number, number + 2).repeat(128).reshape(16, 16),
        )
        samples.append(sample)
    return samples


def relabelled(sample, selector):
    return replace(sample, selector=selector, coverage=selector * 255)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return obtain_scenes(tmp_path_factory.mktemp("truth") / "scenes", seed=SEED, count=COUNT, progress=lambda _: None)


@pytest.fixture
def shards(tmp_path):
    """Writes samples into two shards."""

    def write(samples, layout=LAYOUT):
        (tmp_path / "shards").mkdir(exist_ok=True)
        for unit, part in enumerate((samples[:5], samples[5:])):
            (tmp_path / "shards" / f"{unit:06}.tar").write_bytes(write_shard(part, layout)[0])
        return open_storage(str(tmp_path))

    return write


@pytest.fixture
def score(shards, truth):
    def scored(samples):
        figures = ShardFigures()
        for sample, scene in judged_samples(shards(samples), truth):
            figures.add(sample, scene)
        return figures

    return scored


def test_true_labels_get_full_marks(score):
    assert len(ABSENT) >= 4, "the scenes here must have everything that is judged"
    assert len(SILENT) >= 1
    figures = score(perfect())
    assert figures.summary() == {"f1": 1.0, "iou": 1.0, "absent_rate": 0.0, "codes_used": (COUNT + 1) / 512}
    assert label_figures(figures.labels)["empty_text_rate"] == 0


def test_labels_shifted_by_one_patch_fall_by_as_much_as_they_must(score):
    samples = perfect()
    moved = score([relabelled(sample, np.roll(sample.selector, 1, axis=2)) for sample in samples]).summary()
    expected = []
    for sample, scene in zip(samples, SCENES, strict=True):
        for true, text in zip(sample.selector, scene.texts, strict=True):
            if text.objects:
                both = (np.roll(true, 1, axis=1) & true).sum()
                expected.append((both / true.sum(), both / (2 * true.sum() - both)))
    for name, mean in zip(("f1", "iou"), np.mean(expected, axis=0), strict=True):
        assert moved[name] == pytest.approx(mean)
        assert moved[name] < LIMITS[name].bound


def test_labels_of_the_next_sample_or_none_fail(score):
    samples = perfect()

    def with_labels(selectors):
        return score([relabelled(*pair) for pair in zip(samples, selectors, strict=True)]).summary()

    assert with_labels([other.selector for other in samples[1:] + samples[:1]])["f1"] < 0.6
    empty = with_labels([sample.selector * 0 for sample in samples])
    assert (empty["f1"], empty["iou"]) == (0, 0)
    assert with_labels([sample.selector[::-1] for sample in samples])["f1"] < 0.8


def test_an_absent_thing_counts_as_found_if_any_phrase_overlaps_its_words(score):
    samples = perfect()

    def rate(*found):
        added = [tuple(phrase(*place) for place in found if place[0] == number) for number in range(COUNT)]
        changed = [replace(s, phrases=s.phrases + more) for s, more in zip(samples, added, strict=True)]
        return score(changed).summary()["absent_rate"]

    number, text, (start, end) = next(found for found in ABSENT if found[2][0] > 0)
    assert rate((number, text, (start - 1, start + 1))) == 1 / len(ABSENT)
    assert rate(*[(number, text, (start, end))] * 2) == 1 / len(ABSENT)
    assert rate((number, text, (start - 1, start))) == 0
    if not [found for found in ABSENT if found[:2] == (number, 1 - text)]:
        assert rate((number, 1 - text, (0, len(SCENES[number].texts[1 - text].content)))) == 0
    assert rate(*ABSENT) == 1


def test_a_text_that_names_nothing_present_is_judged_apart(score):
    number, text = SILENT[0]
    samples = perfect()
    selector = samples[number].selector.copy()
    selector[text, 3, 3] = 1
    samples[number] = relabelled(samples[number], selector)
    figures = score(samples)
    assert label_figures(figures.labels)["empty_text_rate"] == pytest.approx(1 / len(SILENT))
    assert figures.summary()["f1"] == 1


def test_shards_of_other_scenes_are_refused(shards, truth):
    samples = perfect()
    first, planned = samples[0], samples[0].planned
    others = replace(planned.sample, texts=samples[1].planned.sample.texts)
    unknown = replace(planned.sample, id="99")
    for wrong in (
        [*samples, replace(first, planned=replace(planned, key="again"))],
        [replace(first, planned=replace(planned, sample=others), phrases=()), *samples[1:]],
        [replace(first, planned=replace(planned, sample=unknown)), *samples[1:]],
    ):
        with pytest.raises(ShardError, match="other scenes"):
            list(judged_samples(shards(wrong), truth))


def test_samples_without_labels_or_of_another_grid_are_refused(truth, shards):
    sample, scene = next(judged_samples(shards(perfect()), truth))
    less = [
        replace(sample, members={name: data for name, data in sample.members.items() if name != missing})
        for missing in ("selector.npy", "vqgan.npy")
    ]
    for given, true in (*((one, scene) for one in less), (sample, replace(scene, texts=scene.texts[:1]))):
        with pytest.raises(ShardError, match="lacks"):
            ShardFigures().add(given, true)


@contextmanager
def quiet(what, total):
    yield lambda number: None


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents") / "documents"
    return folder, obtain_documents(folder, seed=SEED, count=6, progress=lambda _: None)


def true_documents(folder, truth, texts_of=lambda scene: scene.texts):
    """Documents as their source gives them, with labels that are the truth; `texts_of` another's may be given."""
    source = {"kind": "conversations", "uri": str(folder), "annotations": "conversations.json"}
    settings = TypeAdapter(SourceConfig).validate_python(source | {"documents": True, "texts": "all"})
    opened = open_source(settings)
    for ordinal, sample in enumerate(opened.samples()):
        images = []
        for number, (ref, scene) in enumerate(zip(sample.images, truth.documents[sample.id], strict=True)):
            data = opened.read_image(ref)
            height, width = decode_image(data).size
            placement = GRID.place((height, width))
            nothing = np.zeros(placement.shape, np.uint8)
            masks = [text.mask for text in texts_of(scene)]
            selector = np.stack([touched_patches(mask, placement) if mask else nothing for mask in masks])
            selector = selector.astype(np.uint8)
            found = [
                PhraseDocument(
                    text=text.content[slice(*named.span)], text_index=index, start=named.span[0], end=named.span[1],
                    box=(0.0, 0.0, 5.0, 5.0), score=0.5, image=number,
                )
                for index, text in enumerate(scene.texts) for named in text.phrases if named.mask
            ]  # fmt: skip
            image = ImageDocument(width=width, height=height, format="jpeg", mode="RGB", orientation=1)
            codes = np.zeros((16, 16), int)
            images.append(ShardImage(data, image, 1, None, tuple(found), selector, selector * 255, codes))
        yield ShardSample(PlannedSample(ordinal, sample.id, sample), tuple(images))


def test_documents_with_true_labels_get_full_marks(documents, shards):
    folder, truth = documents
    layout = LAYOUT.model_copy(update={"documents": True})
    storage = shards(list(true_documents(folder, truth)), layout)
    right = judge_documents(storage, truth, written=6, progress=quiet)
    assert right == {"documents_f1": 1.0, "documents_absent_rate": 0.0}
    storage = shards(list(true_documents(folder, truth, lambda scene: scene.texts[::-1])), layout)
    wrong = judge_documents(storage, truth, written=6, progress=quiet)
    assert wrong["documents_f1"] < 0.5
    assert not DOCUMENT_LIMITS["documents_f1"].met(wrong["documents_f1"])
    with pytest.raises(ShardError, match="hold 6 samples, but the build wrote 7"):
        judge_documents(storage, truth, written=7, progress=quiet)
    scenes = truth.documents["000003"]
    for others in (scenes[1:], (replace(scenes[0], texts=scenes[0].texts[1:]), *scenes[1:])):
        told = replace(truth, documents=truth.documents | {"000003": others})
        with pytest.raises(ShardError, match="of other scenes"):
            judge_documents(storage, told, written=6, progress=quiet)


def test_what_is_absent_from_one_picture_may_be_in_the_next(documents):
    _, truth = documents
    told = [
        [phrase.mask is not None for scene in scenes for phrase in scene.texts[turn].phrases]
        for scenes in truth.documents.values()
        for turn in range(len(scenes[0].texts))
    ]
    assert any(any(pictures) and not all(pictures) for pictures in told)
    assert any(pictures and not any(pictures) for pictures in told), "nothing is absent from all"


def test_documents_are_made_once_and_never_mixed(documents):
    folder, truth = documents
    assert obtain_documents(folder, seed=SEED, count=6, progress=pytest.fail) == truth
    with pytest.raises(InputError, match=f"holds 6 documents of seed {SEED}, not 5 of seed {SEED}; .*--documents"):
        obtain_documents(folder, seed=SEED, count=5, progress=pytest.fail)


def test_a_lost_sample_is_noticed(shards, truth):
    storage, models = shards(perfect()[:-1]), MODEL_PRESETS["untrained-tiny"]
    with pytest.raises(ShardError, match=f"hold {COUNT - 1} samples, but the build wrote {COUNT}"):
        judge_dataset(storage, truth, models, TokensConfig(), written=COUNT, progress=quiet)


def test_masks_are_judged_by_what_is_seen_of_each_thing(truth):
    assert all((true_boxes(truth.scenes[str(n)]) == scene.boxes()).all() for n, scene in enumerate(SCENES))
    scene = SCENES[0]
    true = np.stack([scene.ids == index for index in range(len(scene.objects))])
    assert mask_ious(RleMasks(encode_masks(true)), truth.scenes["0"]) == [1.0] * len(true)
    moved = np.roll(true, 3, axis=2)
    expected = [(a & b).sum() / (a | b).sum() for a, b in zip(moved, true, strict=True)]
    assert mask_ious(RleMasks(encode_masks(moved)), truth.scenes["0"]) == pytest.approx(expected)


def test_pictures_are_drawn_from_the_shards_codes(shards, truth):
    models, tokens = MODEL_PRESETS["untrained-tiny"], TokensConfig(size=64)
    tokenizer = build_tokenizer(models, tokens, "cpu")
    codes = [tokenizer.tokenize([scene.image])[0].codes[..., 0] for scene in SCENES]
    layout = LAYOUT.model_copy(update={"tokens": LAYOUT.tokens.model_copy(update={"grid": codes[0].shape})})

    def psnr_of(of_samples):
        samples = [replace(sample, codes=of_sample) for sample, of_sample in zip(perfect(), of_samples, strict=True)]
        judged = [sample for sample, _ in judged_samples(shards(samples, layout), truth)]
        return codes_psnr(models, tokens, judged, lambda number: None)

    right = psnr_of(codes)
    assert right == pytest.approx(psnr_and_use(tokenizer, SCENES)["psnr"])
    assert psnr_of([c * 0 for c in codes]) != pytest.approx(right)


def test_agreement_of_sets_and_pictures():
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert f1_and_iou(a, b) == (0.5, pytest.approx(1 / 3))
    assert f1_and_iou(a & ~a, b & ~b) == (1.0, 1.0)
    light = np.full((4, 4, 3), 255, np.uint8)
    assert psnr(light * 0, light) == pytest.approx(0)
    assert psnr(light, light - 1) == pytest.approx(20 * np.log10(255))
    assert psnr(light, light) > 100


BOUNDS = {
    "f1": 0.9,
    "iou": 0.85,
    "absent_rate": 0.05,
    "mask_iou": 0.85,
    "psnr": 22,
    "codes_used": 0.5,
    "ece": 0.05,
    "trust_auroc": 0.8,
}


def test_limits_are_those_of_the_issue():
    assert {name: limit.bound for name, limit in LIMITS.items()} == BOUNDS
    assert [name for name, limit in LIMITS.items() if limit.most] == ["absent_rate", "ece"]
    for name, right, wrong in (("f1", 0.9, 0.899), ("absent_rate", 0.05, 0.051)):
        assert LIMITS[name].met(right)
        assert not LIMITS[name].met(wrong)


def test_the_truth_on_disk_is_the_scenes_own(truth):
    for number, scene in enumerate(SCENES):
        told = truth.scenes[str(number)]
        assert [text.content for text in told.texts] == [text.content for text in scene.texts]
        assert list(told.objects) == [encode_masks((scene.ids == i)[None])[0] for i in range(len(scene.objects))]
        for text, known in zip(scene.texts, told.texts, strict=True):
            assert [p.span for p in known.phrases] == [p.span for p in text.phrases]
            assert [p.mask is not None for p in known.phrases] == [bool(p.objects) for p in text.phrases]
            assert known.mask == (encode_masks(scene.mask(text.objects)[None])[0] if text.objects else None)


def test_scenes_are_made_once_and_never_mixed(tmp_path):
    made = []
    folder = tmp_path / "out" / "scenes"
    (tmp_path / "out" / "scenes.partial").mkdir(parents=True)
    (tmp_path / "out" / "scenes.partial" / "left-over").touch()
    first, again = (obtain_scenes(folder, seed=3, count=2, progress=made.append) for _ in range(2))
    assert first == again
    assert made == [1, 2]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["scenes"]
    assert sorted(path.name for path in folder.iterdir()) == ["annotations", "train2017", "truth.json"]
    for seed, count in ((4, 2), (3, 3)):
        with pytest.raises(InputError, match="holds 2 scenes of seed 3"):
            obtain_scenes(folder, seed=seed, count=count, progress=made.append)


def test_what_isnt_a_demo_is_left_alone(tmp_path):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    (scenes / "mine.txt").write_text("mine")
    (tmp_path / "file").touch()
    for folder, says in ((scenes, r"truth\.json can't be read"), (tmp_path / "file" / "scenes", "Not a directory")):
        with pytest.raises(InputError, match=says):
            obtain_scenes(folder, seed=3, count=1, progress=lambda _: None)
    (scenes / "truth.json").write_text('{"seed": 3, "images": [{}]}')
    with pytest.raises(InputError, match="2 things in it are wrong"):
        read_truth(scenes)
    assert sorted(path.name for path in scenes.iterdir()) == ["mine.txt", "truth.json"]


def test_overlays_show_labels_and_truth(shards, truth, tmp_path):
    storage = shards(perfect())
    write_overlays(storage, truth, tmp_path / "overlays", 2, lambda _: None)
    assert sorted(path.name for path in (tmp_path / "overlays").iterdir()) == [
        f"s{number}-{text}.png" for number in (0, 1) for text in (0, 1)
    ]
    with Image.open(tmp_path / "overlays" / "s0-0.png") as picture:
        assert picture.width >= 560
    sample, scene = next((s, t) for s, t in judged_samples(storage, truth) if t.texts[0].mask)
    white = np.array(TRUTH)

    def drawn(*objects):
        return np.asarray(
            next(overlays(sample, replace(scene, things=tuple(TrueThing((0, 0, 0, 0), each) for each in objects))))
        )

    told, none = drawn(*scene.objects), drawn()
    assert told.shape[0] >= none.shape[0]
    assert (told == white).all(axis=2).sum() > (none == white).all(axis=2).sum() + 100
    absent = encode_masks(1 - decode_mask(scene.texts[0].mask)[None])
    np.testing.assert_array_equal(drawn(*absent), none)  # what the text doesn't name isn't drawn


def test_other_scenes_never_go_into_the_same_folder(tmp_path):
    obtain_scenes(tmp_path / "scenes", seed=SEED, count=2, progress=lambda _: None)
    for wrong in ({"scenes": 3, "seed": SEED}, {"scenes": 2, "seed": SEED + 1}, {}):
        with pytest.raises(InputError, match=f"holds 2 scenes of seed {SEED}"):
            demo_command(tmp_path, **wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


@pytest.mark.parametrize("out", ["s3://bucket/demo", "file:///tmp/demo"])
def test_a_store_is_no_place_for_a_demo(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / Path(out).parts[0]).touch()  # or a demo that took it for a folder would go on for minutes
    with pytest.raises(InputError, match="must be a folder on this machine"):
        demo_command(Path(out))


def test_the_default_scenes_are_fresh():
    assert DEMO_SEED not in {TRAINING_SEED, HELD_OUT_SEED, *range(FRESH_SEED, FRESH_SEED + 4)}
