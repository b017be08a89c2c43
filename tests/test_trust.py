"""Trust: wrong labels have less of it than right ones, and it is stored, found, read and learnt by."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from shard_data import DOCUMENTS, LAYOUT, configure, make_dataset, make_document, make_sample
from typer.testing import CliRunner

from patchmint.annotate.models import AnnotationModels
from patchmint.cli import app
from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.reader import iter_stored, sample_at
from patchmint.errors import ConfigError, InputError
from patchmint.geometry import RleMasks, grid_preset
from patchmint.geometry.rle import encode_masks, fill_boxes
from patchmint.interfaces import Instances
from patchmint.judging.again import Passes
from patchmint.judging.evidence import CHEAP, Added, Likeness, Look, cheap
from patchmint.judging.metrics import auroc
from patchmint.judging.plant import Planter, area_of, found_of
from patchmint.judging.trust import Trust
from patchmint.shards.layout import TokensLayout
from patchmint.shards.schema import PhraseDocument
from patchmint.training import StageDataset, StageLoader, selector_loss

WORDS = ("cat", "dog", "bus", "owl")
WRONG = (5, 17, 29, 41)
TOKENS = TokensLayout(member="vqgan", grid=(16, 16), codebook_sizes=(512,), preprocessing="pad-64-bicubic")
CODED = LAYOUT.model_copy(update={"tokens": TOKENS})
GRID = {"rows": 4, "cols": 6, "patch_px": 14, "fit": "squash"}
# A cell is 2.5 pixels of the image; the first two rows of cells are padding.


def coded(ordinal):
    """A thing of one word at the left and of another at the right, as codes; the first one's label is on it, or not."""
    rng = np.random.default_rng(ordinal)
    codes = rng.integers(0, 8, (16, 16, 1))
    word, other = rng.permutation(4)[:2].tolist()
    places = []
    for number, first in ((word, 0), (other, 8)):
        row, col, height, width = rng.integers(3, 6), first + rng.integers(1, 3), rng.integers(3, 6), rng.integers(3, 6)
        codes[row : row + height, col : col + width, 0] = 100 + 10 * number + rng.integers(0, 3, (height, width))
        places.append((2.5 * col, 2.5 * (row - 2), 2.5 * (col + width), 2.5 * (row + height - 2)))
    text = f"a {WORDS[word]}"
    box = places[ordinal in WRONG]
    found = PhraseDocument(text=text[2:], text_index=0, start=2, end=5, box=box, score=round(rng.uniform(0.4, 0.9), 4))
    made = make_sample(ordinal - ordinal % 2, layout=CODED)  # of one text
    texts = (replace(made.planned.sample.texts[0], content=text, phrases=((2, 5),), instances=()),)
    planned = replace(
        made.planned, ordinal=ordinal, key=f"s{ordinal:04}", sample=replace(made.planned.sample, texts=texts)
    )
    return replace(made, planned=planned, codes=codes, phrases=(found,))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trust") / "ds"
    samples = [coded(n) for n in range(60)]
    make_dataset(folder, [samples[:40], samples[40:]], layout=CODED)
    configure(folder, grid=GRID)
    run("trust", folder)
    return folder


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_labels_on_the_wrong_thing_are_trusted_least_and_training_leaves_them_out(dataset):
    found = json.loads(run("inspect", "find", dataset, "--where", "trust < 0.6", "--sort", "trust", "--json"))
    keys = [each["key"] for each in found["samples"]]
    assert set(keys[:4]) == {f"s{n:04}" for n in WRONG}
    assert len(keys) < 20
    assert "no faults found" in run("inspect", "verify", dataset)
    stats = json.loads(run("inspect", "stats", dataset, "--json"))
    assert stats["labels"]["trust"]["minimum"] < 0.5 < stats["labels"]["trust"]["mean"]

    every = StageDataset(dataset, include=("labels",), shuffle=False)
    trusts = torch.cat([batch.trust for batch in StageLoader(every, 7)])
    limit = float(trusts.sort().values[4])
    kept = StageDataset(dataset, include=("labels",), shuffle=False, min_trust=limit)
    assert [sample.key for sample in kept] == [f"s{n:04}" for n in range(60) if n not in WRONG]
    assert [sample.images[0].trust for sample in kept] == pytest.approx(trusts[trusts >= limit].tolist())
    assert StageDataset(dataset, include=("labels",), columns=("none",))[0].images[0].trust is None
    for wrong, message in (
        ({"min_trust": 0.0}, "min_trust"),
        ({"min_trust": 0.5, "columns": ("none",)}, "has no trust"),
    ):
        with pytest.raises(ConfigError, match=message):
            StageDataset(dataset, include=("labels",), **wrong)
    assert isinstance(CliRunner().invoke(app, ["trust", str(dataset)]).exception, InputError)  # it is there


def test_planted_errors_have_less_trust_and_an_image_says_nothing_for_itself(dataset):
    trust = Trust(open_dataset(dataset, columns=("none",)))
    trust.count()
    trust.learn()
    known = list(trust.known(np.arange(60), (Planter(0.5, seed=3),)))
    wrong = np.array([each.kind >= 0 for each in known])
    assert 15 < wrong.sum() < 40
    assert auroc(np.array([trust.of(each) for each in known]), wrong) > 0.9
    with pytest.raises(InputError, match="learn it again"):
        Trust(open_dataset(dataset), model=trust.model.model_copy(update={"names": ("score_least",)}))

    image = sample_at(open_dataset(dataset), 0).images[0]
    found, look, likeness = found_of(image), Look.of(image, open_dataset(dataset)), Likeness()
    added = Added.of(look, (30, 40), found)
    likeness.add(look, added)
    for own, inside in ((added, 0), (Added({}, {}), 1.5)):
        values = dict(zip(CHEAP, cheap(likeness, look, (30, 40), own, found[0]), strict=True))
        assert values["inside_mean"] == pytest.approx(inside, abs=0.6 if inside else 1e-5)


def test_errors_take_the_masks_along(dataset):
    image = sample_at(open_dataset(dataset), 0).images[0]
    (label,) = found_of(image)[0]
    mask = encode_masks(fill_boxes([label.phrase.box], (30, 40))[None])[0]
    label, moved = replace(label, mask=mask), 0
    for seed in range(20):
        (made, *_), kind = Planter(1.0, seed).corrupt((label,), (30, 40))
        if kind >= 0:
            moved += 1
            drawn, box = area_of([made], (30, 40)), fill_boxes([made.phrase.box], (30, 40)) > 0
            assert (drawn & box).sum() > 0.6 * (drawn | box).sum()
            assert not np.array_equal(drawn, area_of([label], (30, 40)))
    assert moved > 3


def test_documents_have_trust_for_each_image_and_text(tmp_path):
    make_dataset(tmp_path / "ds", [[make_document(n, images=2 + n % 2) for n in range(12)]], layout=DOCUMENTS)
    run("trust", configure(tmp_path / "ds", grid=GRID))
    opened = open_dataset(tmp_path / "ds")
    for _, sample in iter_stored(opened, np.arange(12), {"json"}):
        pairs = [(image.number, text) for image in sample.images for text in image.texts]
        assert len(sample.key_json.trust) == len(pairs)
        silent = [trust for (_, text), trust in zip(pairs, sample.key_json.trust, strict=True) if text == 0]
        assert set(silent) == {0.5}  # nothing was found for it
    assert "no faults found" in run("inspect", "verify", tmp_path / "ds")
    batch = next(iter(StageLoader(StageDataset(tmp_path / "ds", include=("labels",), min_trust=0.1), 4)))
    assert batch.trust.shape == (batch.image_offsets[-1],)


class Bright:
    """A segmenter that finds bright pixels, whatever the text."""

    def segment(self, images, texts):
        found = []
        for image, own in zip(images, texts, strict=True):
            y, x = np.nonzero(image[..., 0] > 128)
            boxes = np.array([[x.min(), y.min(), x.max() + 1, y.max() + 1]] * len(own), np.float32)
            masks = encode_masks(np.stack([image[..., 0] > 128] * len(own)))
            spans = np.array([(0, len(text.content)) for text in own])
            size, ones = image.shape[:2], np.ones(len(own), np.float32)
            found.append(
                Instances(size, RleMasks(masks), np.arange(len(own)), ones, boxes, spans, ("model",) * len(own))
            )
        return found


def test_passes_answer_in_pixels_of_the_image_itself(dataset):
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[4:12, 20:36] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    image = sample_at(open_dataset(dataset), 0).images[0]
    image = replace(image, members={**image.members, "jpg": file.getvalue()})
    passes = Passes(AnnotationModels(Bright(), {}, None, grid_preset("llava-1.5-finetune"), 0.0))
    (heard,) = passes.again([image], [found_of(image)])
    boxes = np.array([box for ((box, _),) in heard[0]])
    assert boxes == pytest.approx(np.tile([20.0, 4.0, 36.0, 12.0], (3, 1)), abs=1.5)


def test_a_weighted_loss_is_the_mean_of_weighted_patches():
    logits, labels = torch.randn(3, 5), torch.randint(0, 2, (3, 5))
    assert selector_loss(logits, labels, weight=torch.ones(3)) == pytest.approx(selector_loss(logits, labels).item())
    first = selector_loss(logits[:1], labels[:1])
    assert selector_loss(logits, labels, weight=torch.tensor([0.3, 0, 0])) == pytest.approx(first.item())
    for wrong in (torch.zeros(3), torch.ones(5)):
        with pytest.raises(InputError, match="weight"):
            selector_loss(logits, labels, weight=wrong)
