"""Trains the demo's Grounding DINO through the same forward pass that inference takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from patchmint.demo.scenes import Scene, draw_size, make_scene
from patchmint.demo.texts import ScenePhrase, SceneText, plural
from patchmint.geometry import grid_preset
from patchmint.labelers.grounded_sam import GroundedSam
from patchmint.labelers.grounding_dino.canvas import ImageBatch, position_centres
from patchmint.labelers.grounding_dino.detector import GroundingDino
from patchmint.labelers.grounding_dino.encoders import ImageFeatures, encode_images, encode_prompts
from patchmint.labelers.grounding_dino.model import untrained
from patchmint.labelers.grounding_dino.prompts import Prompt, caption_prompts, phrase_prompts
from patchmint.labelers.grounding_dino.transformer import Proposals, propose, refine
from patchmint.labelers.sam.masker import SamMasker
from patchmint.types import Size, Text
from tools.demo_training.detector_losses import ATTRIBUTES, Truth, attribute_loss, position_losses, query_losses
from tools.demo_training.measure import TrueMasker, judge_labels
from tools.demo_training.models import DETECTOR, FILES, VOCABULARY_FILE, save_weights, vocabulary, write_vocabulary

_SPELLED_OUT = 0.25
# Share of texts whose phrases are given to the model one by one.
_UNKNOWN = 0.05
# Share of words outside phrases that become unknown ones, since users' texts will have such.
_TEXTS = 3
# Of each scene: one as it is, or all joined, since a longer prompt costs little more than a short one.
_JOINED = 0.6
_SUPPRESS_FROM = 0.6
# Share of the training after which queries that find a thing again are told off.
_FUSION = 0.1
_SCALE = 0.3
_PADDING = -2


_CELL = 8
_HEADS = {"shown": len(ATTRIBUTES), "seen": len(ATTRIBUTES), "asked": len(ATTRIBUTES), "outline": _CELL**2}
"""What only training needs: attributes of the thing at a position, before and after the encoder; attributes that a
word's phrase asks for; which parts of a position's own cell are covered by anything."""


class DetectorTask:
    """Grounding DINO from random weights, on fresh scenes only."""

    name = "detector"

    def __init__(self, seed: int, held_out: int, steps: int, batch: int = 12, scenes: int = 100) -> None:
        self.model: nn.Module = untrained(DETECTOR, seed)
        for name, width in _HEADS.items():
            self.model.add_module(name, nn.Linear(256, width))
        self.memory: dict[str, Tensor] = {}
        self._vocabulary = vocabulary()
        self._detector = GroundingDino(self.model, DETECTOR, self._vocabulary)
        self._seed, self._held_out, self._batch, self._scenes = seed, held_out, batch, scenes
        self._suppress_from = round(steps * _SUPPRESS_FROM)
        _prepare(self.model)

    def losses(self, step: int) -> dict[str, Tensor]:
        """Focal loss of words, L1 and GIoU of boxes, for both stages (arXiv 2303.05499, section 3.5)."""
        rng = np.random.default_rng((self._seed, step, 3))
        size = draw_size(rng)
        scenes = [
            make_scene(self._seed, step * self._batch + row, size=size, texts=_TEXTS) for row in range(self._batch)
        ]
        # The CPU's fused attention has a slow backward pass at these sizes.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            return self._losses(scenes, rng, suppress=step >= self._suppress_from)

    def _losses(self, scenes: list[Scene], rng: np.random.Generator, *, suppress: bool) -> dict[str, Tensor]:
        features = encode_images(self.model, [self._detector.preprocess(scene.image) for scene in scenes])
        texts = [join_texts(scene.texts) if rng.random() < _JOINED else scene.texts[0] for scene in scenes]
        prompts = [self._prompt(text, rng) for text in texts]
        encoded = encode_prompts(self.model, prompts, torch.device("cpu"))
        truths = [prompt_truth(*of_pair) for of_pair in zip(scenes, texts, prompts, strict=True)]
        proposals = propose(self.model, features, encoded)
        owners = torch.stack(
            [position_owners(scene, proposals.image, feature) for scene, feature in zip(scenes, features, strict=True)]
        )
        return (
            self._attributes(scenes, proposals, owners, truths)
            | self._first_stage(proposals, owners, truths)
            | self._second_stage(proposals, truths, suppress=suppress)
        )

    def _attributes(
        self, scenes: list[Scene], proposals: Proposals, owners: Tensor, truths: list[Truth]
    ) -> dict[str, Tensor]:
        """Image and text each learn alone what there is to tell apart, before they are compared."""
        model = cast(Any, self.model)
        shown = torch.cat([thing_attributes(scene)[own[own >= 0]] for scene, own in zip(scenes, owners, strict=True)])
        memory, shape = proposals.image.memory, proposals.image.shapes[0]
        outlines = torch.stack([cell_outlines(scene, shape) for scene in scenes])
        inside = torch.cat([truth.asked for truth in truths])
        words = torch.cat(
            [
                hidden[: len(truth.named)][truth.named]
                for hidden, truth in zip(proposals.prompt.hidden, truths, strict=True)
            ]
        )
        return {
            "shown": attribute_loss(model.shown(memory[owners >= 0]), shown),
            "seen": attribute_loss(model.seen(proposals.memory[owners >= 0]), shown),
            "outline": attribute_loss(model.outline(memory[:, : outlines.shape[1]]), outlines),
            "asked": attribute_loss(model.asked(words), inside),
        }

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Patch labels with true masks in the place of SAM's: what is wrong is the detector's fault."""
        del model  # the detector holds it
        scenes = [make_scene(self._held_out, number, texts=3) for number in range(self._scenes)]
        segmenter = GroundedSam(self._detector, cast(SamMasker, TrueMasker(scenes)))
        return judge_labels(segmenter, scenes, grid_preset("llava-1.5-finetune"), phrases=False)

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the weights and the vocabulary."""
        save_weights(model, DETECTOR, folder / FILES["detector"], leave_out=tuple(f"{name}." for name in _HEADS))
        write_vocabulary(folder / VOCABULARY_FILE)

    def _first_stage(self, proposals: Proposals, owners: Tensor, truths: list[Truth]) -> dict[str, Tensor]:
        transformer = cast(Any, self.model).transformer
        width = proposals.words["encoded_text"].shape[1]
        logits = transformer.enc_out_class_embed(proposals.candidates, proposals.words)[..., :width]
        boxes = (transformer.enc_out_bbox_embed(proposals.candidates) + proposals.image.proposals).sigmoid()
        owners = owners.masked_fill(~proposals.image.usable, _PADDING)
        return position_losses(logits, boxes, owners, truths)

    def _second_stage(self, proposals: Proposals, truths: list[Truth], *, suppress: bool) -> dict[str, Tensor]:
        width = proposals.words["encoded_text"].shape[1]
        best = torch.topk(proposals.rank, DETECTOR.queries, dim=1)[1]
        # The second stage starts from the first's boxes, but doesn't teach it (as in DINO, arXiv 2203.03605).
        raw = refine(self.model, replace(proposals, candidates=proposals.candidates.detach()), best)
        return query_losses(raw.logits[..., :width], raw.boxes, truths, suppress=suppress)

    def _prompt(self, text: SceneText, rng: np.random.Generator) -> Prompt:
        if rng.random() < _SPELLED_OUT:
            prompt = phrase_prompts(text.with_phrases(), self._vocabulary)[0]
        else:
            prompt = caption_prompts(Text(text.content), self._vocabulary)[0]
        ids = prompt.ids.copy()
        for token, place in zip(prompt.tokens, prompt.places, strict=True):
            inside = any(phrase.span[0] <= token.span[0] < phrase.span[1] for phrase in text.phrases)
            if token.readable and not inside and rng.random() < _UNKNOWN:
                ids[place] = self._vocabulary.unknown
        return replace(prompt, ids=ids)


def _prepare(model: nn.Module) -> None:
    """Start nearer to the goal: upstream's starting values are for a model whose halves are trained already."""
    transformer = cast(Any, model).transformer
    with torch.no_grad():
        for fusion in transformer.encoder.fusion_layers:
            fusion.gamma_v.fill_(_FUSION)
            fusion.gamma_l.fill_(_FUSION)
        # Scores are products of 256 numbers each, without a scale: the first ones would be in the tens.
        transformer.encoder.text_layers[-1].norm2.weight.fill_(_SCALE)
        transformer.enc_output_norm.weight.fill_(_SCALE)
        transformer.decoder.norm.weight.fill_(_SCALE)


def prompt_truth(scene: Scene, text: SceneText, prompt: Prompt) -> Truth:
    """What is right for a scene and a prompt made of one of its texts."""
    height, width = scene.size
    corners = torch.from_numpy(scene.boxes() / np.array([width, height, width, height], dtype=np.float32))
    boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
    words = torch.zeros(len(scene.objects), len(prompt.ids), dtype=torch.bool)
    asked = torch.zeros(len(prompt.ids), len(ATTRIBUTES))
    named = torch.zeros(len(prompt.ids), dtype=torch.bool)
    for token, place in zip(prompt.tokens, prompt.places.tolist(), strict=True):
        for phrase in text.phrases:
            if token.span != (0, 0) and phrase.span[0] <= token.span[0] < phrase.span[1]:
                words[list(phrase.objects), place] = True
                named[place] = True
                said = text.content[slice(*phrase.span)].split()
                asked[place] = torch.tensor([word in said or plural(word) in said for word in ATTRIBUTES]).float()
    return Truth(boxes, words, named, asked[named])


def thing_attributes(scene: Scene) -> Tensor:
    """Which words are true of each object: float (objects, attributes), 0 or 1."""
    return torch.tensor([[float(thing.has(word)) for word in ATTRIBUTES] for thing in scene.objects])


def cell_outlines(scene: Scene, shape: Size) -> Tensor:
    """How much of each part of each of the finest level's cells is covered by anything: float (S, parts), 0..1.

    An image fills its level: scenes that are trained on together have one size.
    """
    rows, columns = shape
    covered = Image.fromarray((scene.ids >= 0).astype(np.uint8) * 255)
    parts = np.asarray(covered.resize((columns * _CELL, rows * _CELL), Image.Resampling.BOX), dtype=np.float32) / 255
    return torch.from_numpy(parts.reshape(rows, _CELL, columns, _CELL).transpose(0, 2, 1, 3).reshape(-1, _CELL**2))


def position_owners(scene: Scene, batch: ImageBatch, features: ImageFeatures) -> Tensor:
    """The object under the centre of each position, int64 (S,): -1 = none, -2 = padding.

    An object under no centre gets the nearest position of the finest level.
    """
    height, width = scene.size
    owners = []
    for level, (rows, columns) in enumerate(batch.shapes):
        own = features.levels[level].shape[1:]
        of_level = torch.full((rows, columns), _PADDING)
        centres = position_centres((own[0], own[1]), torch.device("cpu")).numpy()
        shares = centres / (own[1], own[0])
        under = scene.ids[(shares[:, 1] * height).astype(int), (shares[:, 0] * width).astype(int)]
        if level == 0:
            under = _with_missed(under, scene, centres, (own[0], own[1]))
        of_level[: own[0], : own[1]] = torch.from_numpy(under.astype(np.int64)).view(own)
        owners.append(of_level.flatten())
    return torch.cat(owners)


def _with_missed(
    under: npt.NDArray[np.int8], scene: Scene, centres: npt.NDArray[np.float32], shape: Size
) -> npt.NDArray[np.int8]:
    under = under.copy()
    for index, box in enumerate(scene.boxes()):
        if not (under == index).any():
            middle = (box[:2] + box[2:]) / 2 / (scene.size[1], scene.size[0]) * (shape[1], shape[0])
            under[np.square(centres - middle).sum(1).argmin()] = index
    return under


def join_texts(texts: Sequence[SceneText]) -> SceneText:
    """One text of several, a sentence each."""
    content = ""
    phrases: list[ScenePhrase] = []
    for text in texts:
        start = len(content)
        phrases += [ScenePhrase((p.span[0] + start, p.span[1] + start), p.objects) for p in text.phrases]
        content += text.content.rstrip(".") + ". "
    return SceneText("joined", content.rstrip(), tuple(phrases))
