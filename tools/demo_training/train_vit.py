"""Trains the demo's vision encoder: each patch learns to say what it shows a part of.

Most steps look at windows of the grid, a ninth or a quarter of it, because a step costs what its patches cost: small
things come first, whole images last. A window keeps its places in the grid, so that positions mean what they will mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from patchmint.demo.scenes import NOTHING, Scene, make_scene
from patchmint.demo.shapes import COLOURS, FILLS, SHAPES, SIZES
from patchmint.features.model import Vit, untrained_vit
from patchmint.geometry.grid import Fit, PatchGrid
from patchmint.geometry.processing import fit_image
from tools.demo_training.models import FILES, VIT, save_weights

KINDS = {"shape": SHAPES, "colour": tuple(COLOURS), "fill": FILLS, "size": SIZES}
"""What a thing is told by; classes of each kind are numbered as here."""

_WINDOWS = ((0.45, 8, 6), (0.8, 12, 3), (1.0, VIT.side, 1))
# Until this share of the steps: side of windows in patches, and how many are cut of a scene.
_MOST_SCENES = 18
# Of a step, whose windows have as many patches as a batch of whole images.
_CUTS = 7
# A patch's outline is told in 7 x 7 parts.
_BOX = 8
# A thing's silhouette is told in 8 x 8 parts of its box.
_REACH = 4.0
# Patches that make one unit of a place.
_SHOWN = {3: 0.3, 5: 1.0, 6: 0.5}
# Weights of what patches show, by hidden state: 5 is V_L, which consumers read, and 3 helps it.
_KIND_WEIGHTS = {"shape": 2.0, "colour": 1.0, "fill": 1.0, "size": 0.5}
# Shapes are hard, and whether a thing is small may not show in a window.
_ATTENTION = 1.2
# Size of a head's queries and keys: half of a patch's attention goes to the thing that it shows.
_HEADS = {
    "outline": _CUTS**2,
    "place": 4,
    "silhouette": _BOX**2,
    **{f"shown{state}": sum(map(len, KINDS.values())) + 1 for state in _SHOWN},
    "image": len(SHAPES) * len(COLOURS),
}
"""What only training needs: outlines (of state 1), places of things (3), their silhouettes (4), their classes and
whether there is any, and which shapes in which colours an image has (the CLS token)."""


@dataclass(frozen=True, eq=False)
class Seen:
    """Windows of one side and what is right for them; B windows of n patches, row-major.

    Attributes:
        pixels: float (B, n, 3 * 14 * 14), normalised.
        cells: int64 (B, n), where the patches lie in the grid.
        outlines: float (B, n, parts), share of each part of a patch that things cover.
        thing: bool (B, n), whether a patch shows anything of a thing.
        classes: int64 (B, n, kinds), of the thing that covers most of the patch; 0 where there is none.
        places: float (B, n, 4), centre and half size of that thing from the patch's centre, in units of `_REACH`.
        silhouettes: float (B, n, parts), share of each part of that thing's box that it covers.
        pairs: float (B, shapes * colours), 1 where most of such a thing is in the window.
    """

    pixels: Tensor
    cells: Tensor
    outlines: Tensor
    thing: Tensor
    classes: Tensor
    places: Tensor
    silhouettes: Tensor
    pairs: Tensor


class VitTask:
    """A CLIP from random weights, on fresh scenes only."""

    name = "vit"

    def __init__(self, seed: int, held_out: int, steps: int, batch: int = 12, scenes: int = 48) -> None:
        torch.manual_seed(seed)
        self.vit = untrained_vit(VIT, seed)
        self.model: nn.Module = self.vit
        for name, width in _HEADS.items():
            self.model.add_module(name, nn.Linear(VIT.hidden, width))
        self.memory: dict[str, Tensor] = {}
        self._seed, self._held_out, self._steps = seed, held_out, steps
        self._batch, self._scenes = batch, scenes
        _start_with_what_is_near_and_alike(self.vit)

    def losses(self, step: int) -> dict[str, Tensor]:
        """Cross entropies of outlines, classes and the image's pairs; L1 of places."""
        side, of_scene = next((side, count) for until, side, count in _WINDOWS if step < until * self._steps)
        rng = np.random.default_rng((self._seed, step, 4))
        count = self._batch * VIT.side**2 // side**2 // of_scene
        scenes = [make_scene(self._seed, step * _MOST_SCENES + row, texts=0) for row in range(count)]
        return self._losses(look(scenes, side, of_scene, rng))

    def _losses(self, seen: Seen) -> dict[str, Tensor]:
        states = hidden_states(self.vit, seen.pixels, seen.cells)
        heads = self.model.get_submodule
        outlines = heads("outline")(states[1][:, 1:])
        places = heads("place")(states[3][:, 1:])[seen.thing]
        cls = self.vit.vision_model.post_layernorm(states[-1][:, 0])
        entropy = functional.binary_cross_entropy_with_logits
        silhouettes = heads("silhouette")(states[4][:, 1:])[seen.thing]
        losses = {
            "outline": 2 * entropy(outlines, seen.outlines),
            "place": functional.smooth_l1_loss(places, seen.places[seen.thing], beta=0.1),
            "silhouette": 4 * entropy(silhouettes, seen.silhouettes[seen.thing]),
            "image": 2 * entropy(heads("image")(cls), seen.pairs),
            **dict.fromkeys(("thing", *KINDS), torch.zeros(())),
        }
        for state, weight in _SHOWN.items():
            told = self._told(self.model, states, state)
            losses["thing"] = losses["thing"] + weight * entropy(told.pop("thing")[..., 0], seen.thing.float())
            for kind, (name, logits) in enumerate(told.items()):
                loss = functional.cross_entropy(logits[seen.thing], seen.classes[..., kind][seen.thing])
                losses[name] = losses[name] + weight * _KIND_WEIGHTS[name] * loss
        return losses

    @staticmethod
    def _told(model: nn.Module, states: list[Tensor], state: int) -> dict[str, Tensor]:
        """Logits (B, n, classes) by kind, and of `thing`."""
        logits = model.get_submodule(f"shown{state}")(states[state][:, 1:])
        return dict(zip((*KINDS, "thing"), logits.split([*map(len, KINDS.values()), 1], dim=-1), strict=True))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Share of right answers by hidden state: about patches that show a thing; of `thing` about all."""
        vit, figures = cast(Vit, model), {}
        seen = look([make_scene(self._held_out, n, texts=0) for n in range(self._scenes)], VIT.side, 1)
        states = hidden_states(vit, seen.pixels, seen.cells)
        for state in _SHOWN:
            told = self._told(model, states, state)
            figures[f"thing{state}"] = float(((told.pop("thing")[..., 0] > 0) == seen.thing).float().mean())
            for kind, (name, logits) in enumerate(told.items()):
                right = logits.argmax(-1) == seen.classes[..., kind]
                figures[f"{name}{state}"] = float(right[seen.thing].float().mean())
        return figures

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the weights."""
        save_weights(model, VIT, folder / FILES["vit"], leave_out=tuple(f"{name}." for name in _HEADS))


@torch.no_grad()
def _start_with_what_is_near_and_alike(vit: Vit) -> None:
    """Positions whose neighbours are alike, and attention to what is alike (arXiv 2305.09828), in the random model."""
    vit.vision_model.embeddings.position_embedding.weight[1:] = waves(VIT.side, VIT.hidden)
    for block in vit.vision_model.encoder.layers:
        size = VIT.hidden // VIT.heads
        rows = [nn.init.orthogonal_(torch.empty(size, VIT.hidden), _ATTENTION) for _ in range(VIT.heads)]
        for projection in (block.self_attn.q_proj, block.self_attn.k_proj):
            projection.weight.copy_(torch.cat(rows))


def hidden_states(vit: Vit, pixels: Tensor, cells: Tensor) -> list[Tensor]:
    """All hidden states of some patches: as `Vit.states`, but of any part of the grid, and with gradients.

    Args:
        vit: the model.
        pixels: float (B, n, 3 * 14 * 14), normalised.
        cells: int64 (B, n), 0..576.

    Returns:
        float (B, 1 + n, hidden) each.
    """
    model = vit.vision_model
    positions = model.embeddings.position_embedding.weight
    patches = functional.linear(pixels, model.embeddings.patch_embedding.weight.flatten(1)) + positions[1 + cells]
    cls = (model.embeddings.class_embedding + positions[0]).expand(len(pixels), 1, -1)
    states = [model.pre_layrnorm(torch.cat([cls, patches], dim=1))]
    for block in model.encoder.layers:
        states.append(block(states[-1], attention_mask=None))
    return states


def look(scenes: list[Scene], side: int, of_scene: int, rng: np.random.Generator | None = None) -> Seen:
    """Cut windows of scenes.

    Args:
        scenes: fitted to the grid by padding; half of them in the other ways if there is chance.
        side: of a window in patches.
        of_scene: windows of each scene, around things that fit into one if there are any.
        rng: chance; None: none, for whole images.
    """
    windows = []
    for scene in scenes:
        fit = Fit.PAD if rng is None or rng.random() < 0.5 else rng.choice((Fit.CROP, Fit.SQUASH))
        grid = PatchGrid(VIT.side, VIT.side, VIT.patch_px, fit)
        numbers = np.repeat(scene.ids[..., None].astype(np.uint8) + 1, 3, axis=2)
        ids = fit_image(numbers, grid, Image.Resampling.NEAREST)[0][..., 0].astype(np.int64) - 1
        ids[ids >= len(scene.objects)] = NOTHING  # padding
        whole = _whole(scene, fit_image(scene.image, grid)[0], ids)
        windows += [_window(whole, side, rng) for _ in range(of_scene)]
    return Seen(*(torch.from_numpy(np.stack(field)) for field in zip(*windows, strict=True)))


_Arrays = tuple[npt.NDArray[Any], ...]


def _whole(scene: Scene, image: npt.NDArray[np.uint8], ids: npt.NDArray[np.int64]) -> _Arrays:
    """The fields of `Seen` for a whole image, each by patch; the last one by object and pixel."""
    n, px, count = VIT.side, VIT.patch_px, len(scene.objects)
    mean, std = (np.array(values, dtype=np.float32) for values in (VIT.inputs.mean, VIT.inputs.std))
    levels = (image.astype(np.float32) / 255 - mean) / std
    pixels = levels.reshape(n, px, n, px, 3).transpose(0, 2, 4, 1, 3).reshape(n * n, -1)
    blocks = ids.reshape(n, px, n, px).transpose(0, 2, 1, 3).reshape(n * n, px * px)
    shares = np.stack([(blocks == number).mean(1) for number in range(count)], axis=1)
    owners, thing = shares.argmax(1), shares.max(1) > 0
    parts = (blocks != NOTHING).reshape(n * n, _CUTS, px // _CUTS, _CUTS, px // _CUTS)
    known = [[words.index(getattr(one, kind)) for kind, words in KINDS.items()] for one in scene.objects]
    boxes, silhouettes = np.zeros((count, 4), dtype=np.float32), np.zeros((count, _BOX, _BOX), dtype=np.float32)
    for number in range(count):
        y, x = np.nonzero(ids == number)
        if len(x):
            (left, top), (right, bottom) = low, high = np.array([[x.min(), y.min()], [x.max() + 1, y.max() + 1]])
            boxes[number] = np.concatenate([(low + high) / 2, (high - low) / 2]) / px
            mask = Image.fromarray((ids[top:bottom, left:right] == number).astype(np.float32))
            silhouettes[number] = np.asarray(mask.resize((_BOX, _BOX), Image.Resampling.BOX))
    rows, columns = np.divmod(np.arange(n * n), n)
    own = np.stack([columns + 0.5, rows + 0.5, np.zeros(n * n), np.zeros(n * n)], axis=1).astype(np.float32)
    places = (boxes[owners] - own) / np.float32(_REACH)
    classes = np.where(thing[:, None], np.array(known)[owners], 0)
    return (
        pixels,
        parts.mean((2, 4), dtype=np.float32).reshape(n * n, -1),
        thing,
        classes,
        places,
        silhouettes[owners].reshape(n * n, -1),
        shares.astype(np.float32),
        np.array(known),
    )


def _window(whole: _Arrays, side: int, rng: np.random.Generator | None) -> _Arrays:
    pixels, outlines, thing, classes, places, silhouettes, shares, known = whole
    rest, top, left = VIT.side - side, 0, 0
    if rng is not None and rest:
        shown = np.flatnonzero(thing)
        small = shown[(2 * _REACH * places[shown, 2:] <= side).all(1)]
        cell = rng.choice(small if len(small) else shown) if len(shown) else rng.integers(VIT.side**2)
        centre = np.array(divmod(int(cell), VIT.side)) + rng.integers(-side // 4, side // 4 + 1, 2) - side // 2
        top, left = np.clip(centre, 0, rest)
    cells = (np.arange(top, top + side)[:, None] * VIT.side + np.arange(left, left + side)).flatten()
    inside = shares[cells].sum(0) >= 0.5 * np.maximum(shares.sum(0), 1e-6)
    pairs = np.zeros((len(SHAPES), len(COLOURS)), dtype=np.float32)
    pairs[known[inside, 0], known[inside, 1]] = 1
    return (
        pixels[cells],
        cells,
        outlines[cells],
        thing[cells],
        classes[cells],
        places[cells],
        silhouettes[cells],
        pairs.flatten(),
    )


def waves(side: int, width: int) -> Tensor:
    """Sines and cosines of a grid's rows and columns (arXiv 2111.06377's positions): float (side * side, width)."""
    rates = math.pi * torch.logspace(-1, 0, width // 4) * 0.5
    angles = torch.arange(side)[:, None] * rates
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return 0.3 * torch.cat([rows, columns], dim=2).flatten(0, 1)
