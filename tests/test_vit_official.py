"""CLIP ViT-L/14-336 and SigLIP SO400M-384 at full size, seeded random weights: our loader and features against a plain
recomputation from transformers' `hidden_states`.

A container is written as the published one: CLIP's a torch file with position numbers, SigLIP's safetensors; the text
half has its real names, and tensors of one number. Each model runs once: what `encode` makes is checked, and the states
that it came by.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from reference_cache import cached
from seeded_weights import Uninitialised, fill
from skimage import data
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from patchmint.config.annotator import FeaturesConfig
from patchmint.features.arch import OFFICIAL
from patchmint.features.encoder import VitFeatureEncoder, features_of
from patchmint.features.model import Vit, load_vit
from patchmint.features.plan import plan_features
from patchmint.geometry import fit_image, grid_preset
from patchmint.weights.loading import load_state

pytestmark = pytest.mark.official

# What the published `config.json` files set; everything else is the default of transformers' classes.
CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
CLASSES = {
    "clip-vit-l-14-336": (CLIP, CLIPVisionConfig, CLIPVisionModel, CLIPConfig, CLIPModel),
    "siglip-so400m-384": (SIGLIP, SiglipVisionConfig, SiglipVisionModel, SiglipConfig, SiglipModel),
}
GRIDS = {"clip-vit-l-14-336": "llava-1.5-finetune", "siglip-so400m-384": "siglip-so400m-384"}
PHOTO = data.astronaut()[:, :400]


@dataclass
class Loaded:
    name: str
    model: Vit
    expected: list[Tensor]
    """transformers' hidden states of the photo."""
    states: list[Tensor]
    """Ours."""
    features: npt.NDArray[np.float16]
    """What `encode` makes of them."""


def tower_weights(name):
    """Seeded weights of a vision tower by transformers' names."""
    settings, config_class, model_class, _, _ = CLASSES[name]
    with torch.device("meta"):
        tower = model_class(config_class(**settings))
    shapes = getattr(tower, "vision_model", tower).state_dict()
    weights = {key: torch.empty(tensor.shape) for key, tensor in shapes.items()}
    fill(weights)
    return weights


@torch.no_grad()
def transformers_states(name, weights):
    """The photo through transformers' model, as an array a state."""
    settings, config_class, model_class, _, _ = CLASSES[name]
    with Uninitialised():
        tower = model_class(config_class(**settings)).eval()
    getattr(tower, "vision_model", tower).load_state_dict(weights, assign=True)
    levels = torch.from_numpy(fit_image(PHOTO, grid_preset(GRIDS[name]))[0].copy()).permute(2, 0, 1)[None] / 255
    mean, std = (
        ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
        if name.startswith("clip")
        else ((0.5,) * 3, (0.5,) * 3)
    )
    pixels = (levels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    states = tower(pixels, output_hidden_states=True).hidden_states
    return {f"{index:02}": state.numpy() for index, state in enumerate(states)}


def save_as_published(weights, name, path):
    """A whole model's file: this tower, and names of a text half."""
    _, _, _, config_class, model_class = CLASSES[name]
    tensors = {f"vision_model.{key}": value for key, value in weights.items()}
    with torch.device("meta"):
        names = set(model_class(config_class(vision_config=CLASSES[name][0])).state_dict())
    assert {key for key in names if key.startswith("vision_model.")} == set(tensors)
    tensors |= {key: torch.zeros(1) for key in names - set(tensors)}
    if name.startswith("clip"):
        tensors["vision_model.embeddings.position_ids"] = torch.arange(577)[None]
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        torch.save(tensors, path / "pytorch_model.bin")
        return path / "pytorch_model.bin"
    safetensors.torch.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path / "model.safetensors"


@pytest.fixture(scope="module", params=list(CLASSES))
def loaded(request, tmp_path_factory):
    name = request.param
    weights = tower_weights(name)
    found = cached(name, __file__, partial(transformers_states, name, weights))
    expected = [torch.from_numpy(found[key]) for key in sorted(found)]
    path = save_as_published(weights, name, tmp_path_factory.mktemp("official"))
    del weights
    model = load_vit(load_state(path))
    path.unlink()  # pytest keeps the folders of three runs, and this is more than a gigabyte
    states = []
    running = model.states

    def watched(pixels, last):
        """The states that are asked for, and then the one that nobody has asked for."""
        for state in running(pixels, model.arch.layers):
            states.append(state)
            if len(states) <= last + 1:
                yield state

    model.states = watched
    spec = plan_features(FeaturesConfig(connector="dci", pool=12), model.arch, name)
    features = VitFeatureEncoder(model, spec, grid_preset(GRIDS[name])).encode([PHOTO])
    return Loaded(name, model, expected, states, *features)


def test_the_architecture_is_told_from_the_file(loaded):
    assert loaded.model.arch == OFFICIAL[loaded.name]
    config = loaded.model.vision_model.config
    assert config.hidden_act == OFFICIAL[loaded.name].activation
    assert {key: getattr(config, key) for key in CLASSES[loaded.name][0]} == CLASSES[loaded.name][0]


def test_hidden_states_are_transformers(loaded):
    arch = loaded.model.arch
    assert len(loaded.states) == len(loaded.expected) == arch.layers + 1
    for state, expected in zip(loaded.states, loaded.expected, strict=True):
        assert state.shape == (1, arch.leading + arch.side**2, arch.hidden)
        torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-4)


def recomputed(loaded, connector, pool, pool_when):
    """Plainly, by the papers' numbers."""
    states = [state[:, 1:] for state in loaded.expected] if loaded.name.startswith("clip") else loaded.expected
    side, selected, half = (24, 23, 12) if loaded.name.startswith("clip") else (27, 26, 13)
    match connector:
        case "none":
            parts = [states[selected]]
        case "dci":
            halves = (states[:half], states[half : 2 * half])
            parts = [states[selected], *(sum(part) / half for part in halves)]
        case _:
            parts = [states[selected], states[7], states[15]]

    def pooled(tokens):
        plane = tokens[:, : side * side].transpose(1, 2).reshape(1, -1, side, side)
        smaller = nn.AdaptiveAvgPool2d(pool)(plane).flatten(2).transpose(1, 2)
        return torch.cat([smaller, tokens[:, side * side :]], dim=1)

    if pool and pool_when == "before":
        parts = [pooled(part) for part in parts]
    if connector == "sti":
        averages = [nn.AvgPool1d(8, 8)(part.transpose(1, 2)).transpose(1, 2) for part in parts[1:]]
        features = torch.cat([parts[0], *averages], dim=1)
    else:
        features = torch.cat(parts, dim=2)
    return pooled(features) if pool and pool_when == "after" else features


@pytest.mark.parametrize(
    ("connector", "pool", "pool_when", "clip", "siglip"),
    [
        ("none", None, "before", (576, 1024), (729, 1152)),
        ("sti", None, "before", (720, 1024), (911, 1152)),
        ("sci", None, "before", (576, 3072), (729, 3456)),
        ("dci", None, "before", (576, 3072), (729, 3456)),
        ("none", (12, 12), "before", (144, 1024), (144, 1152)),
        ("dci", (12, 12), "after", (144, 3072), (144, 3456)),
        ("sti", (12, 12), "before", (180, 1024), (180, 1152)),
        ("sti", (10, 9), "after", (90 + 144, 1024), (90 + 182, 1152)),
    ],
)
def test_features_are_recomputed_from_hidden_states(loaded, connector, pool, pool_when, clip, siglip):
    arch = loaded.model.arch
    settings = FeaturesConfig(connector=connector, pool=pool, pool_when=pool_when)
    spec = plan_features(settings, arch, loaded.name)
    made = features_of(iter(loaded.states), spec, arch)
    assert made.shape[1:] == (spec.tokens, spec.channels) == (clip if arch.family == "clip" else siglip)
    torch.testing.assert_close(made, recomputed(loaded, connector, pool, pool_when), rtol=1e-4, atol=1e-4)


def test_an_image_becomes_those_features(loaded):
    """The whole way: pixels, blocks, connector, float16."""
    assert loaded.features.dtype == np.float16
    expected = recomputed(loaded, "dci", (12, 12), "before")[0].numpy()
    np.testing.assert_allclose(loaded.features, expected, rtol=2e-3, atol=2e-3)


def test_only_the_blocks_that_are_needed_are_kept(loaded):
    spec = plan_features(FeaturesConfig(connector="dci"), loaded.model.arch, loaded.name)
    model = loaded.model.cut(max(max(part) for part in spec.layers))
    assert len(model.vision_model.encoder.layers) == loaded.model.arch.layers - 1
