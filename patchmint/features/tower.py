"""Vision encoders for images of any size: transformers' own modules, whose hidden states are taken on the way."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.features.towers import TowerArch, own_tensors
from patchmint.types import Size
from patchmint.weights.loading import StateFile, load_into

Parts = Sequence[Sequence[int]]

_CLASSES = {
    "siglip2": "Siglip2VisionModel",
    "dinov3_vit": "DINOv3ViTModel",
    "qwen2_vl": "Qwen2VisionTransformerPretrainedModel",
    "qwen2_5_vl": "Qwen2_5_VisionTransformerPretrainedModel",
    "qwen3_vl": "Qwen3VLVisionModel",
}
_FRAMES = 2
# Qwen-VL's encoders see an image as two equal frames of a film.


class MeanStates:
    """Averages of hidden states, made while these come: no more than the averages is held in memory.

    Args:
        layers: for each part the indices of its states, each once.
    """

    def __init__(self, layers: Parts) -> None:
        self._layers = layers
        self._sums: dict[int, Tensor] = {}

    def add(self, index: int, state: Tensor) -> None:
        """Take a state in; each once, in any order."""
        for part, members in enumerate(self._layers):
            if index in members:
                self._sums[part] = self._sums[part] + state if part in self._sums else state

    @property
    def parts(self) -> list[Tensor]:
        """The average of each part."""
        return [
            self._sums[part] / len(members) if len(members) > 1 else self._sums[part]
            for part, members in enumerate(self._layers)
        ]


class Tower(nn.Module):
    """One of transformers' encoders for images of any size.

    Raises:
        ConfigError: the installed transformers hasn't got it as it is in version 5.
    """

    def __init__(self, arch: TowerArch) -> None:
        super().__init__()
        self.arch = arch
        self.tower: Any = _build(arch)

    def cut(self, blocks: int, *, merging: bool) -> Tower:
        """Drop what lies after the first `blocks` blocks, to save its memory, but what merges where that is wanted."""
        tower, blocks = self.tower, max(blocks, 1)  # the first one's input is a hidden state, too
        if self.arch.family == "siglip2":
            del tower.encoder.layers[blocks:]
            tower.use_head = False
            tower.head = None
        elif self.arch.family == "dinov3_vit":
            del tower.model.layer[blocks:]
        elif not merging:
            del tower.blocks[blocks:]
            tower.merger = nn.Identity()
            tower.deepstack_visual_indexes = []
        return self

    @torch.no_grad()
    def parts(self, pixels: Sequence[Tensor], layers: Parts | None) -> Iterator[tuple[list[Tensor], Size]]:
        """Run the encoder.

        Args:
            pixels: float (3, H, W) each, normalised, of any sizes that are multiples of `patch_px`, for Qwen-VL of
                `patch_px * merge`.
            layers: for each part the hidden states that are averaged, 0..`arch.layers`; None: the merged tokens.

        Yields:
            For each input its parts, float (1, leading + rows * cols, channels), row-major, and (rows, cols). They
            don't depend on what else is given.
        """
        sizes = [self._cells(image) for image in pixels]
        match self.arch.family:
            case "siglip2":
                given = self._naflex(pixels, sizes)
            case "dinov3_vit":
                yield from self._by_size(pixels, sizes, layers or ())
                return
            case _:
                given = self._packed(pixels, sizes)
        if layers is None:
            merge = self.arch.merge
            merged = self._merged(given)
            counts = [rows * cols // merge**2 for rows, cols in sizes]
            for tokens, (rows, cols) in zip(torch.split(merged, counts), sizes, strict=True):
                yield [tokens[None]], (rows // merge, cols // merge)
            return
        states = self._states(given, layers)
        for index, (rows, cols) in enumerate(sizes):
            yield [self._own(state, index, sizes)[None] for state in states], (rows, cols)

    def _cells(self, image: Tensor) -> Size:
        return image.shape[1] // self.arch.patch_px, image.shape[2] // self.arch.patch_px

    def _states(self, given: dict[str, Tensor], layers: Parts) -> list[Tensor]:
        """The averages of hidden states as the blocks have them."""
        means = MeanStates(layers)
        with _listening(self._blocks, means):
            self.tower(**given)
        return means.parts

    @property
    def _blocks(self) -> nn.ModuleList:
        match self.arch.family:
            case "siglip2":
                return cast(nn.ModuleList, self.tower.encoder.layers)
            case "dinov3_vit":
                return cast(nn.ModuleList, self.tower.model.layer)
        return cast(nn.ModuleList, self.tower.blocks)

    def _naflex(self, pixels: Sequence[Tensor], sizes: Sequence[Size]) -> dict[str, Tensor]:
        """What SigLIP 2 takes: patches row by row, each by pixels with their colours last; fewer are filled up."""
        side, most = self.arch.patch_px, max(rows * cols for rows, cols in sizes)
        patches, masks = [], []
        for image, (rows, cols) in zip(pixels, sizes, strict=True):
            cut = image[:, : rows * side, : cols * side].reshape(3, rows, side, cols, side)
            own = cut.permute(1, 3, 2, 4, 0).reshape(rows * cols, -1)
            patches.append(nnf.pad(own, (0, 0, 0, most - rows * cols)))
            masks.append(torch.arange(most, device=image.device) < rows * cols)
        return {
            "pixel_values": torch.stack(patches),
            "pixel_attention_mask": torch.stack(masks),
            "spatial_shapes": torch.tensor(sizes),
        }

    def _packed(self, pixels: Sequence[Tensor], sizes: Sequence[Size]) -> dict[str, Tensor]:
        """What Qwen-VL takes: all images' patches one behind another, block by block."""
        side, merge = self.arch.patch_px, self.arch.merge
        patches = []
        for image, (rows, cols) in zip(pixels, sizes, strict=True):
            cut = image.reshape(3, rows // merge, merge, side, cols // merge, merge, side)
            own = cut.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * cols, 3, 1, side, side)
            patches.append(own.expand(-1, -1, _FRAMES, -1, -1).flatten(1))
        grids = torch.tensor([(1, rows, cols) for rows, cols in sizes], device=pixels[0].device)
        return {"hidden_states": torch.cat(patches), "grid_thw": grids}

    def _by_size(
        self, pixels: Sequence[Tensor], sizes: Sequence[Size], layers: Parts
    ) -> Iterator[tuple[list[Tensor], Size]]:
        """DINOv3, whose images in a batch are of one size."""
        for size, same in groupby(zip(sizes, pixels, strict=True), key=lambda pair: pair[0]):
            states = self._states({"pixel_values": torch.stack([image for _, image in same])}, layers)
            # CLS, registers, patches
            leading, registers = self.arch.leading, self.arch.registers
            states = [torch.cat([one[:, :leading], one[:, leading + registers :]], dim=1) for one in states]
            for index in range(len(states[0])):
                yield [state[index : index + 1] for state in states], size

    def _merged(self, given: dict[str, Tensor]) -> Tensor:
        """Qwen-VL's tokens of all images, row by row."""
        with _listening(self._blocks, MeanStates(())):
            return cast(Tensor, self.tower(**given).pooler_output)

    def _own(self, state: Tensor, index: int, sizes: Sequence[Size]) -> Tensor:
        """An image's patches, row by row."""
        rows, cols = sizes[index]
        if self.arch.family == "siglip2":
            return state[index, : rows * cols]
        counts = [rows * cols for rows, cols in sizes]
        own = torch.split(state, counts)[index]
        merge = self.arch.merge
        blocks = own.reshape(-1, merge**2, own.shape[-1])
        if self.arch.family == "qwen2_5_vl":  # whose blocks have the patches window by window
            blocks = blocks[torch.argsort(self._windows(sizes[index], own.device))]
        ordered = blocks.reshape(rows // merge, cols // merge, merge, merge, -1).transpose(1, 2)
        return ordered.reshape(rows * cols, -1)

    def _windows(self, size: Size, device: torch.device) -> Tensor:
        from transformers.vision_utils import get_vision_window_index

        grid = torch.tensor([(1, *size)], device=device)
        order: Tensor = get_vision_window_index(grid, self.arch.merge, self.tower.window_size, self.arch.patch_px)[0]
        return order


@contextmanager
def _listening(blocks: nn.ModuleList, means: MeanStates) -> Iterator[None]:
    """Within it a model's hidden states are added up: 0, the first block's input, then the output of each block.

    They are of float32, as CLIP's are: what blocks add to it may come of products in another format.
    """

    def before(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = given[0].float()
        means.add(0, hidden)
        return hidden, *given[1:]

    def after(index: int) -> Any:
        def hook(_: nn.Module, __: object, answer: Tensor | tuple[Tensor, ...]) -> None:
            means.add(index, answer[0] if isinstance(answer, tuple) else answer)

        return hook

    with ExitStack() as stack:
        if len(blocks):
            stack.enter_context(_removed(blocks[0].register_forward_pre_hook(before)))
        for index, block in enumerate(blocks, start=1):
            stack.enter_context(_removed(block.register_forward_hook(after(index))))
        yield


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _build(arch: TowerArch) -> Any:
    """Transformers' own class, with memory for its weights; buffers that no file holds are right."""
    name = _CLASSES[arch.family]
    try:
        module = import_module(f"transformers.models.{arch.family}.modeling_{arch.family}")
        from transformers.initialization import no_init_weights

        made: Any = getattr(module, name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"this transformers has no {name} as version 5 has it; install transformers 5 for this vision encoder"
        ) from error
    try:
        with no_init_weights():
            return made(made.config_class(**arch.settings))
    except Exception as error:  # settings of a file: whatever transformers makes of impossible ones
        raise WeightsMismatchError(f"its config.json describes a {arch.family} that can't be: {error}") from error


def load_tower(state: StateFile, arch: TowerArch) -> Tower:
    """Build the vision encoder that a file holds, and load it; of a whole model the rest is left alone.

    Returns:
        The model on the CPU, float32, in eval mode, without gradients.

    Raises:
        WeightsMismatchError: the file isn't what its `config.json` says.
        ConfigError: this transformers doesn't know the encoder.
    """
    what = f"the {arch.family} vision encoder that config.json beside it describes"
    state = replace(state, tensors=own_tensors(state.tensors, arch))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is copied: shapes are compared before memory is taken
        load_into(_build(arch), state, what=what)
    model = Tower(arch)
    load_into(model.tower, state, what=what)
    return model.eval().requires_grad_(False)


def untrained_tower_of(arch: TowerArch, seed: int) -> Tower:
    """Build one with random weights, whose features mean nothing: the same for the same seed and torch.

    The caller's random numbers go on as if nothing had happened.
    """
    model = Tower(arch)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5)
            else:
                weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model.eval().requires_grad_(False)
