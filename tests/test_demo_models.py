import signal
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from patchmint.config import FeaturesConfig
from patchmint.demo.scenes import make_scene
from patchmint.errors import WeightsMismatchError
from patchmint.features.encoder import VitFeatureEncoder
from patchmint.features.model import load_vit, untrained_vit
from patchmint.features.plan import plan_features
from patchmint.geometry import RleMasks, grid_preset
from patchmint.geometry.rle import encode_masks
from patchmint.interfaces import Instances
from patchmint.labelers.grounding_dino.canvas import batch_images
from patchmint.labelers.grounding_dino.detector import GroundingDino
from patchmint.labelers.grounding_dino.encoders import encode_images
from patchmint.labelers.grounding_dino.model import load_grounding_dino
from patchmint.labelers.grounding_dino.model import untrained as untrained_dino
from patchmint.labelers.grounding_dino.prompts import Vocabulary, caption_prompts
from patchmint.labelers.sam.model import load_sam
from patchmint.labelers.sam.model import untrained as untrained_sam
from patchmint.tokenizers.vqgan.model import load_vqgan, untrained_vqgan
from patchmint.types import Text
from patchmint.weights.loading import load_state
from tools.demo_training import train_detector, train_vit
from tools.demo_training.detector_losses import ATTRIBUTES, Truth, focal, position_losses, query_losses
from tools.demo_training.loop import Schedule, Trainer
from tools.demo_training.measure import TrueMasker, box_ious, judge_labels, mask_ious, true_patches
from tools.demo_training.models import (
    DETECTOR,
    FILES,
    MASKER,
    TOKENIZER,
    VIT,
    save_weights,
    vocabulary,
    write_vocabulary,
)
from tools.demo_training.train_masker import MaskerTask, jittered, mask_losses
from tools.demo_training.train_tokenizer import TokenizerTask

GRID = grid_preset("llava-1.5-finetune")


class Knowing:
    """A segmenter that knows the truth, up to a mistake that a test makes."""

    def __init__(self, scenes, *, shift=0, invent=False):
        self.scenes = {id(scene.image): scene for scene in scenes}
        self.shift, self.invent = shift, invent

    def segment(self, images, texts):
        return [self.found(self.scenes[id(image)]) for image in images]

    def found(self, scene):
        found = [
            (index, phrase.span, np.roll(scene.mask(phrase.objects or (0,)), self.shift, axis=1))
            for index, text in enumerate(scene.texts)
            for phrase in text.phrases
            if phrase.objects or self.invent
        ]
        n = len(found)
        return Instances(
            scene.size,
            RleMasks(encode_masks(np.array([mask for _, _, mask in found], dtype=np.bool_).reshape(n, *scene.size))),
            np.array([index for index, _, _ in found], dtype=np.int64),
            np.ones(n, np.float32),
            np.zeros((n, 4), np.float32),
            np.array([span for _, span, _ in found], dtype=np.int64).reshape(n, 2),
        )


def test_figures_are_perfect_for_the_truth_and_fall_with_each_mistake():
    scenes = [make_scene(3, number, texts=3) for number in range(15)]

    def judged(**mistake):
        return judge_labels(Knowing(scenes, **mistake), scenes, GRID, phrases=False)

    right = judged()
    perfect = {"f1": 1, "iou": 1, "absent_rate": 0, "empty_text_rate": 0}
    assert right.summary() | perfect == right.summary()
    assert len(right.f1) + len(right.empty) == 45
    assert right.absent
    assert judged(shift=12).summary()["iou"] < 0.85
    invented = judged(invent=True).summary()
    assert (invented["absent_rate"], invented["empty_text_rate"]) == (1, 1)


def test_true_patches_are_those_that_an_object_touches():
    scene = make_scene(3, 1, size=(240, 240))
    y, x = np.nonzero(scene.ids == 0)
    expected = np.zeros((24, 24), dtype=bool)
    expected[y // 10, x // 10] = True
    assert np.array_equal(true_patches(scene, (0,), GRID.place(scene.size)).reshape(24, 24), expected)


def test_a_true_masker_gives_the_object_that_a_box_fits_best():
    scene = make_scene(3, 2)
    masker = TrueMasker([scene])
    nowhere = np.array([[0, 0, 3, 2]], dtype=np.float32)
    masks = masker.masks([scene.image], [np.concatenate([scene.boxes() + 2, nowhere])])[0]
    assert mask_ious(scene, RleMasks(masks.rles()[: len(scene.objects)])) == [1.0] * len(scene.objects)
    assert len(masker.masks([scene.image], [np.zeros((0, 4), np.float32)])[0]) == 0


def test_box_ious():
    first = np.array([[0, 0, 4, 4], [10, 10, 12, 12]], dtype=np.float32)
    second = np.array([[2, 0, 6, 4]], dtype=np.float32)
    assert box_ious(first, second) == pytest.approx(np.array([[8 / 24], [0]]))


def test_weights_come_back_through_the_pipelines_own_loaders(tmp_path):
    dino, sam, vqgan = untrained_dino(DETECTOR, 1), untrained_sam(MASKER, 1), untrained_vqgan(TOKENIZER, 1)
    vit = untrained_vit(VIT, 1)
    for role, model, arch in zip(FILES, (dino, sam, vqgan, vit), (DETECTOR, MASKER, TOKENIZER, VIT), strict=True):
        save_weights(model, arch, tmp_path / FILES[role])
    states = {role: load_state(tmp_path / file) for role, file in FILES.items()}
    loaded_dino, arch = load_grounding_dino(states["detector"])
    assert arch == DETECTOR
    for model, own in (
        (loaded_dino, dino),
        (load_sam(states["masker"]), sam),
        (load_vqgan(states["tokenizer"]), vqgan),
        (load_vit(states["vit"]), vit),
    ):
        for (name, value), expected in zip(model.state_dict().items(), own.state_dict().values(), strict=True):
            assert value.dtype == expected.dtype, name
            assert torch.allclose(value, expected, rtol=1e-3, atol=1e-6), name
    assert sum((tmp_path / file).stat().st_size for file in FILES.values()) < 20e6
    write_vocabulary(tmp_path / "vocab.txt")
    assert Vocabulary.from_file(tmp_path / "vocab.txt").size == DETECTOR.text_vocabulary


def test_positions_belong_to_the_object_under_their_centre():
    detector = GroundingDino(untrained_dino(DETECTOR, 0), DETECTOR, vocabulary())
    scenes = [make_scene(8, 0, size=(160, 160)), make_scene(8, 1, size=(160, 320))]
    features = encode_images(detector.model, [detector.preprocess(scene.image) for scene in scenes])
    batch = batch_images(detector.model, features)
    for row, scene in enumerate(scenes):
        owners = train_detector.position_owners(scene, batch, features[row])
        assert ((owners == -2) == batch.padding[row]).all()
        rows, columns = batch.shapes[0]
        first = owners[: rows * columns].view(rows, columns)
        cell = 160 // 8
        for y in range(8):
            for x in range(8 * scene.size[1] // 160):
                under = scene.ids[y * cell + cell // 2, x * cell + cell // 2]
                assert first[y, x] == under or (under == -1 and first[y, x] >= 0)
        assert set(range(len(scene.objects))) <= set(owners.tolist())


def test_the_words_of_a_phrase_are_right_for_its_objects_only():
    known = vocabulary()
    checked = 0
    for scene in (make_scene(9, number, texts=2) for number in range(30)):
        for text in scene.texts:
            prompt = caption_prompts(Text(text.content), known)[0]
            truth = train_detector.prompt_truth(scene, text, prompt)
            assert truth.words.shape == (len(scene.objects), len(prompt.ids))
            for token, place in zip(prompt.tokens, prompt.places, strict=True):
                naming = [p.objects for p in text.phrases if p.span[0] <= token.span[0] and token.span[1] <= p.span[1]]
                assert torch.nonzero(truth.words[:, place])[:, 0].tolist() == list(naming[0] if naming else ())
                checked += 1
            assert not truth.words[:, [0, -1]].any()  # [CLS] and [SEP]
    assert checked > 200


def test_losses_vanish_for_right_answers_and_not_for_wrong_ones():
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])
    words = torch.tensor([[False, True, False], [False, False, True]])
    truths = [Truth(boxes, words, words.any(0), torch.zeros(2, len(ATTRIBUTES)))]
    right = torch.full((1, 3, 3), -12.0)
    right[0, 0, 2], right[0, 2, 1] = 12.0, 12.0
    at = torch.stack([boxes[1], torch.tensor([0.5, 0.1, 0.1, 0.1]), boxes[0]])[None]
    assert sum(query_losses(right, at, truths, suppress=True).values()) < 1e-3
    owners = torch.tensor([[1, -1, 0]])
    assert sum(position_losses(right, at, owners, truths).values()) < 1e-3
    assert query_losses(right.flip(2), at, truths, suppress=True)["word"] > 1
    assert query_losses(right, at * 0.7, truths, suppress=True)["l1"] > 0.5
    assert position_losses(right, at, owners.flip(1), truths)["place"] > 1
    twice = right.clone()
    twice[0, 1, 1] = 12.0
    near = at.clone()
    near[0, 1] = boxes[0]
    elsewhere = query_losses(twice, at, truths, suppress=True)["word"]
    assert 0.001 < query_losses(twice, near, truths, suppress=True)["word"] < 0.3 * elsewhere
    assert query_losses(twice, near, truths, suppress=False)["word"] < 0.001
    assert query_losses(twice, at, truths, suppress=False)["word"] == elsewhere


def test_what_only_training_asks_for():
    """Attributes of things and of phrases, and outlines, against the scene itself."""
    known = vocabulary()
    for scene in (make_scene(10, number, size=(160, 320), texts=2) for number in range(10)):
        shown = train_detector.thing_attributes(scene).numpy().astype(bool)
        for thing, row in zip(scene.objects, shown, strict=True):
            assert {ATTRIBUTES[i] for i in np.flatnonzero(row)} == {thing.shape, thing.colour, thing.fill, thing.size}
        for text in scene.texts:
            prompt = caption_prompts(Text(text.content), known)[0]
            truth = train_detector.prompt_truth(scene, text, prompt)
            asked = iter(truth.asked.numpy().astype(bool))
            for token, place in zip(prompt.tokens, prompt.places, strict=True):
                of = [p for p in text.phrases if p.span[0] <= token.span[0] and token.span[1] <= p.span[1]]
                assert bool(truth.named[place]) == bool(of and token.span != (0, 0))
                if truth.named[place]:
                    wanted = {ATTRIBUTES[i] for i in np.flatnonzero(next(asked))}
                    for index in of[0].objects:
                        assert wanted <= {ATTRIBUTES[i] for i in np.flatnonzero(shown[index])}
                    assert wanted or "shape" in text.content[slice(*of[0].span)] or not of[0].objects
        outlines = train_detector.cell_outlines(scene, (8, 16)).view(8, 16, 8, 8).permute(0, 2, 1, 3).reshape(64, 128)
        assert float(outlines.mean()) == pytest.approx(float((scene.ids >= 0).mean()), abs=0.01)
        y, x = np.argwhere(scene.ids >= 0).mean(0) / (160, 320)
        rows, columns = np.argwhere(outlines.numpy() > 0.5).mean(0) / (64, 128)
        assert (rows, columns) == pytest.approx((y, x), abs=0.02)


def test_what_patches_show_and_windows_of_it():
    """Against the labels of a placement; the states of a window of all patches are the encoder's own."""
    scenes = [make_scene(11, number, texts=0) for number in range(3)]
    seen = train_vit.look(scenes, VIT.side, 1)
    for row, scene in enumerate(scenes):
        placement = GRID.place(scene.size)
        everything = tuple(range(len(scene.objects)))
        touched = true_patches(scene, everything, placement).flatten()
        assert (touched == seen.thing[row].numpy()).mean() > 0.97  # at edges, a pixel is nearest to one patch only
        shares = RleMasks(encode_masks(scene.mask(everything)[None])).coverage([0], placement).flatten()
        assert seen.outlines[row].mean(1).numpy() == pytest.approx(shares, abs=0.1)
        for number, thing in enumerate(scene.objects):
            own = true_patches(scene, (number,), placement).flatten()
            for other in set(everything) - {number}:
                own &= ~true_patches(scene, (other,), placement).flatten()
            own &= seen.thing[row].numpy()
            words = [kinds[n] for kinds, n in zip(train_vit.KINDS.values(), seen.classes[row][own][0], strict=True)]
            assert words == [thing.shape, thing.colour, thing.fill, thing.size]
            assert (seen.classes[row][own] == seen.classes[row][own][0]).all()
    parts = train_vit.look(scenes, 8, 4, np.random.default_rng(0))
    assert parts.pixels.shape == (12, 64, 588)
    assert (parts.cells[:, 8] - parts.cells[:, 0] == VIT.side).all()
    vit = untrained_vit(VIT, 0)
    encoder = VitFeatureEncoder(vit, plan_features(FeaturesConfig(), VIT, "vit"), GRID)
    pixels = encoder.pixel_values([view for scene in scenes for view in encoder.prepare(scene.image)])
    for ours, theirs in zip(train_vit.hidden_states(vit, seen.pixels, seen.cells), vit.states(pixels, 6), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_no_object_and_no_place_are_no_errors():
    none = torch.zeros(0, 3, dtype=torch.bool)
    nothing = [Truth(torch.zeros(0, 4), none, none.any(0), torch.zeros(0, len(ATTRIBUTES)))]
    logits = torch.tensor([[[-torch.inf, -1.0, -torch.inf]]], requires_grad=True)
    losses = query_losses(logits, torch.rand(1, 1, 4, requires_grad=True), nothing, suppress=True)
    torch.stack(list(losses.values())).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert focal(logits, torch.zeros_like(logits), torch.zeros_like(logits)) == 0


def test_mask_losses_fall_towards_the_truth():
    target = torch.zeros(1, 16, 16)
    target[:, 4:9, 5:12] = 1
    right = mask_losses(20 * target - 10, target)
    assert sum(right.values()) < 0.01
    assert sum(mask_losses((20 * target - 10).roll(2, 1), target).values()) > 1


@pytest.mark.parametrize("box", [[5, 5, 15, 12], [5, 5, 6, 6]])
def test_jittered_boxes_stay_boxes(box):
    boxes = np.tile(np.array([box], dtype=np.float32), (500, 1))
    moved = jittered(boxes, np.random.default_rng(0))
    assert (moved[:, 2:] - moved[:, :2] >= 1).all()
    assert box[2] == 6 or 0.2 < np.abs(moved - boxes).mean() < 3


@pytest.mark.parametrize(
    "task",
    [partial(train_detector.DetectorTask, steps=10), MaskerTask, TokenizerTask, partial(train_vit.VitTask, steps=9)],
)
def test_a_step_of_each_task_is_repeatable_and_reaches_the_weights(task):
    made = task(0, 1, batch=2, scenes=2)
    made.model.requires_grad_(True)
    first = {name: float(value.detach()) for name, value in made.losses(5).items()}
    losses = made.losses(5)
    assert {name: float(value.detach()) for name, value in losses.items()} == pytest.approx(first)
    torch.stack(list(losses.values())).sum().backward()
    reached = [name for name, p in made.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(reached) > 0.8 * sum(1 for _ in made.model.parameters()) - 30
    figures = made.evaluate(made.model.requires_grad_(False))
    assert figures
    assert all(np.isfinite(value) or name.endswith("rate") for name, value in figures.items())


class Line:
    """A task of the smallest kind, with a memory."""

    name = "line"

    def __init__(self, stop_at=-1):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.memory = {"sum": torch.zeros(1)}
        self.stop_at = stop_at

    def losses(self, step):
        if step == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        self.memory["sum"] += float(x.sum())
        return {"error": (self.model(x)[:, 0] - x.sum(1) + 0.01 * torch.randn(1)).square().mean()}

    def evaluate(self, model):
        return {"weight": float(model.state_dict()["weight"].sum())}

    def export(self, model, folder):
        torch.save(model.state_dict(), folder / "out.pt")


@pytest.fixture
def handlers():
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


def test_training_stopped_and_gone_on_with_equals_training_in_one_go(tmp_path, handlers):
    schedule = Schedule(steps=120, rate=0.05, warmup=10, evaluate_every=40)
    whole, halves, fresh = Line(), Line(stop_at=57), Line()
    Trainer(whole, schedule, tmp_path / "whole").run()
    Trainer(halves, schedule, tmp_path / "halves").run()
    assert "stopped" in (tmp_path / "halves" / "log.txt").read_text()
    assert not torch.equal(whole.model.weight, halves.model.weight)
    Trainer(fresh, schedule, tmp_path / "halves").run()
    assert torch.equal(fresh.model.weight, whole.model.weight)
    assert torch.equal(fresh.memory["sum"], whole.memory["sum"])
    assert (tmp_path / "halves" / "out.pt").read_bytes() == (tmp_path / "whole" / "out.pt").read_bytes()
    assert whole.model.state_dict()["weight"] == pytest.approx(torch.ones(1, 3), abs=0.1)
    log = (tmp_path / "halves" / "log.txt").read_text()
    assert "going on at step 58" in log
    assert "eval at 120" in log


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    own, other = Line(), Line()
    other.model = nn.Linear(4, 1)
    Trainer(own, Schedule(steps=2, rate=0.01), tmp_path).run()
    with pytest.raises(WeightsMismatchError, match="another model"):
        Trainer(other, Schedule(steps=2, rate=0.01), tmp_path).run()


def test_the_learning_rate_rises_and_falls():
    schedule = Schedule(steps=1000, rate=1.0, warmup=100)
    rates = [schedule.rate_at(step) for step in range(1001)]
    assert rates[0] == 0.01
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (99, 100)
    assert rates[-1] == pytest.approx(0.02)
