"""The vision encoders, small: loading, hidden states, preprocessing, batches, and settings refused before any weights.

Runs with transformers 5 and 4.57.
"""

from dataclasses import asdict, replace

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, SiglipConfig, SiglipModel, SiglipVisionModel

from patchmint.config import UNTRAINED, ModelsConfig
from patchmint.config.annotator import FeaturesConfig
from patchmint.errors import ConfigError, InputError, WeightsMismatchError, WeightsMissingError
from patchmint.features.arch import OFFICIAL, VitArch, infer_arch
from patchmint.features.encoder import VitFeatureEncoder
from patchmint.features.model import load_vit, untrained_vit
from patchmint.features.plan import build_feature_encoder, check_features, plan_features
from patchmint.geometry import Fit, PatchGrid, fit_image, grid_preset
from patchmint.geometry.presets import fixed_presets
from patchmint.weights.architecture import ARCH_METADATA_KEY
from patchmint.weights.loading import load_state

PILLOW = "Pil" if int(transformers.__version__.split(".")[0]) >= 5 else ""

ARCHS = {
    "clip": VitArch("clip", 16, 3, 2, 24, 70, 14, "quick_gelu"),
    "siglip": VitArch("siglip", 16, 3, 2, 24, 72, 14, "gelu_pytorch_tanh"),  # as SO400M, with pixels to spare
}
GRIDS = {"clip": PatchGrid(5, 5, 14, Fit.CROP), "siglip": PatchGrid(5, 5, 14, Fit.SQUASH, input_size=(72, 72))}
FAMILIES = pytest.mark.parametrize("family", ["clip", "siglip"])


def whole_model(arch):
    """A whole CLIP or SigLIP model of transformers, seeded, with a small text half."""
    # activation and epsilon are transformers' defaults for the families, as in the published configurations
    vision = {"hidden_size": arch.hidden, "intermediate_size": arch.mlp, "num_hidden_layers": arch.layers}
    vision |= {"num_attention_heads": arch.heads, "image_size": arch.image_px, "patch_size": arch.patch_px}
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config_class, model_class = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[arch.family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return model_class(config_class(vision_config=vision, text_config=text)).eval()


def tower_of(model):
    """The vision half as transformers' own class, for its `output_hidden_states`."""
    tower_class = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}[model.config.model_type]
    tower = tower_class(model.config.vision_config).eval()
    inner = getattr(tower, "vision_model", tower)
    inner.load_state_dict(model.vision_model.state_dict())
    return tower


def metadata_of(arch):
    return {ARCH_METADATA_KEY: arch.to_json()}


def images(count=5):
    rng = np.random.default_rng(5)
    sizes = [(60, 90), (140, 80), (33, 200), (72, 72), (10, 9)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes[:count]]


@pytest.fixture
def files(tmp_path):
    """Write a state dict, get it back through the loader."""

    def write(tensors, arch=None, suffix=".safetensors"):
        path = tmp_path / f"model{suffix}"
        if suffix == ".bin":
            torch.save(tensors, path)
        else:
            contiguous = {key: value.contiguous() for key, value in tensors.items()}
            safetensors.torch.save_file(contiguous, path, metadata=metadata_of(arch) if arch else None)
        return load_state(path)

    return write


def encoder_of(model, family, batch_size=8, **settings):
    spec = plan_features(FeaturesConfig(**{"select_layer": 2} | settings), model.arch, "the-encoder")
    return VitFeatureEncoder(model, spec, GRIDS[family], batch_size=batch_size)


@FAMILIES
@pytest.mark.parametrize("layout", ["whole", "old torch file", "tower", "tower with prefix"])
def test_every_layout_of_a_file_gives_the_models_hidden_states(family, layout, files):
    arch = ARCHS[family]
    model = whole_model(arch)
    tower = model.vision_model.state_dict()
    match layout:
        case "whole":
            state = files(model.state_dict(), arch)
        case "old torch file":  # which holds position numbers
            lengths = {"vision": arch.leading + 25, "text": 64}
            numbers = {f"{half}_model.embeddings.position_ids": torch.arange(n)[None] for half, n in lengths.items()}
            state = replace(files(model.state_dict() | numbers, suffix=".bin"), metadata=metadata_of(arch))
        case "tower":
            state = files(tower, arch)
        case "tower with prefix":
            state = files({f"vision_model.{key}": value for key, value in tower.items()}, arch)
    loaded = load_vit(state)
    assert loaded.arch == arch
    assert not loaded.training
    for name in ("layer_norm_eps", "hidden_act"):
        assert getattr(loaded.vision_model.config, name) == getattr(model.config.vision_config, name)
    assert not any(weight.requires_grad for weight in loaded.parameters())

    pixels = torch.randn(2, 3, arch.image_px, arch.image_px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tower_of(model)(pixels, output_hidden_states=True).hidden_states
    states = list(loaded.states(pixels, arch.layers))
    assert len(states) == len(expected) == arch.layers + 1
    for state, other in zip(states, expected, strict=True):
        assert state.shape == (2, arch.leading + 25, arch.hidden)
        torch.testing.assert_close(state, other, rtol=0, atol=1e-6)


@FAMILIES
@pytest.mark.parametrize("change", ["missing", "unexpected", "reshaped"])
def test_the_vision_half_must_be_whole(family, change, files):
    arch = ARCHS[family]
    tensors = dict(whole_model(arch).state_dict())
    key = "vision_model.encoder.layers.1.self_attn.q_proj.weight"
    match change:
        case "missing":
            del tensors[key]
        case "unexpected":
            tensors["vision_model.encoder.layers.1.self_attn.gate"] = torch.zeros(1)
        case "reshaped":
            tensors[key] = torch.zeros(16, 8)
    with pytest.raises(WeightsMismatchError, match=r"tower of .* 1 (missing|unexpected|of another shape) .*self_attn"):
        load_vit(files(tensors, arch))


def test_an_unknown_architecture_is_named(files):
    with pytest.raises(WeightsMismatchError, match=r"none of the known .*hidden 16, layers 3.*clip-vit-l-14-336"):
        load_vit(files(whole_model(ARCHS["clip"]).state_dict()))


@pytest.mark.parametrize(
    "change", [{"hidden": 32}, {"layers": 200}, {"mlp": 65536}, {"patch_px": 7}, {"image_px": 700}]
)
def test_metadata_that_lies_is_refused_before_memory_is_taken(change, files):
    arch = ARCHS["clip"]
    for family, lying in (("clip", replace(arch, **change)), ("siglip", arch)):
        with pytest.raises(WeightsMismatchError, match="not of the architecture that its metadata"):
            load_vit(files(whole_model(ARCHS[family]).state_dict(), lying))


@pytest.mark.parametrize(
    "tensors",
    [
        {"text_model.embeddings.token_embedding.weight": torch.zeros(4, 4)},
        {"vision_model.embeddings.patch_embedding.weight": torch.zeros(4)},
        {"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3)},
    ],
    ids=["text-only", "no-matrix", "vqgan"],
)
def test_a_file_without_a_vision_tower_is_refused(tensors, files):
    with pytest.raises(WeightsMismatchError, match="no vision encoder"):
        load_vit(files(tensors))


def test_official_shapes_are_told_apart():
    for arch in OFFICIAL.values():
        prefix = "vision_model.embeddings."
        blocks = [f"vision_model.encoder.layers.{i}.mlp.fc1.weight" for i in range(arch.layers)]
        with torch.device("meta"):
            tensors = {name: torch.empty(arch.mlp, arch.hidden) for name in blocks} | {
                f"{prefix}patch_embedding.weight": torch.empty(arch.hidden, 3, 14, 14),
                f"{prefix}position_embedding.weight": torch.empty(arch.leading + arch.side**2, arch.hidden),
            }
        if arch.leading:
            tensors[f"{prefix}class_embedding"] = torch.empty(arch.hidden)
        assert infer_arch(tensors, {}) == arch


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"family": "clip"}', ARCHS["clip"].to_json().replace("16", '"16"')])
def test_json_of_something_else_is_refused(text):
    with pytest.raises(WeightsMismatchError, match="describes no vision encoder"):
        VitArch.from_metadata({ARCH_METADATA_KEY: text})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "dino"}, "clip or siglip, not 'dino'"),
        ({"activation": "relu"}, "quick_gelu, gelu_pytorch_tanh, gelu, not 'relu'"),
        ({"layers": 257}, r"layers must lie in 1..256, not 257"),
        ({"hidden": 10**6}, "hidden must lie"),
        ({"mlp": 0}, "mlp must lie"),
        ({"hidden": 65536, "layers": 256}, "too large"),
        ({"heads": 3}, "multiple of heads"),
        ({"patch_px": 71}, "0 patches a side"),
        ({"image_px": 4096}, "292 patches a side"),
    ],
)
def test_impossible_architectures_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        VitArch(**asdict(ARCHS["clip"]) | change)


@FAMILIES
def test_only_the_blocks_that_are_needed_run(family):
    model = untrained_vit(ARCHS[family], seed=1)
    calls = []
    for index, block in enumerate(model.vision_model.encoder.layers):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    encoder_of(model, family, select_layer=1).encode(images(1))
    assert calls == [0]
    encoder_of(model, family, select_layer=0).encode(images(1))
    assert calls == [0]


@FAMILIES
def test_a_cut_model_gives_the_same(family):
    model = untrained_vit(ARCHS[family], seed=1)
    whole = encoder_of(model, family).encode(images(2))
    np.testing.assert_array_equal(whole, encoder_of(model.cut(2), family).encode(images(2)))
    assert len(model.vision_model.encoder.layers) == 2


def processed(name, image):
    """What a published processor (Pillow's, as LLaVA's were) makes of an image: float32 (views, 3, H, W)."""
    clip = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    kind, settings = {
        "clip": ("CLIP", clip),
        "siglip": ("Siglip", {"size": {"height": 384, "width": 384}, "resample": 3}),
        "next": ("LlavaNext", {"image_grid_pinpoints": pinpoints, **clip}),
    }[name]
    processor = getattr(transformers, f"{kind}ImageProcessor{PILLOW}")(**settings)
    pixels = np.asarray(processor([Image.fromarray(image)], return_tensors="pt")["pixel_values"][0])
    return pixels if pixels.ndim == 4 else pixels[None]


@pytest.mark.parametrize(
    ("name", "family", "grid"),
    [("clip", "clip", "llava-1.5-pretrain"), ("siglip", "siglip", "siglip-so400m-384"), ("next", "clip", "llava-1.6")],
)
def test_pixels_are_the_published_processors(name, family, grid):
    place = grid_preset(grid)
    arch = replace(ARCHS[family], image_px=place.input_size[0])
    spec = plan_features(FeaturesConfig(), arch, "the-encoder")
    encoder = VitFeatureEncoder(untrained_vit(arch, seed=0), spec, place)
    image = np.random.default_rng(2).integers(0, 256, (500, 640, 3), dtype=np.uint8)
    pixels = encoder.pixel_values(encoder.prepare(image))
    assert pixels.dtype == torch.float32
    expected = processed(name, image)
    np.testing.assert_allclose(pixels[: len(expected)].numpy(), expected, rtol=0, atol=2e-6)


@FAMILIES
def test_features_are_float16_of_the_selected_state(family):
    model = untrained_vit(ARCHS[family], seed=4)
    encoder = encoder_of(model, family)
    given = images(3)
    for features, image in zip(encoder.encode(given), given, strict=True):
        assert features.dtype == np.float16
        assert features.shape == (25, 16)
        pixels = encoder.pixel_values(encoder.prepare(image))
        expected = list(model.states(pixels, 2))[2][0, model.arch.leading :]
        np.testing.assert_allclose(features, expected.numpy(), rtol=1e-3, atol=1e-4)


@FAMILIES
def test_a_batch_gives_what_each_gives_alone(family):
    given = images(5)
    model = untrained_vit(ARCHS[family], seed=4)
    settings = {"connector": "dci", "layers": ((0, 1), (2, 3)), "pool": (2, 3)}
    alone = [encoder_of(model, family, **settings).encode([image])[0] for image in given]
    for batch_size in (1, 2, 5, 64):
        together = encoder_of(model, family, batch_size, **settings).encode(given)
        for left, right in zip(alone, together, strict=True):
            assert left.shape == (6, 48)
            np.testing.assert_allclose(left, right, rtol=2e-3, atol=1e-4)
    again = encoder_of(model, family, **settings).encode(given)
    np.testing.assert_array_equal(again, encoder_of(model, family, **settings).encode(given))
    assert encoder_of(model, family).encode([]) == []


@FAMILIES
def test_reduced_precision_is_used_and_stays_near(family):
    model = untrained_vit(ARCHS[family], seed=4)
    spec = plan_features(FeaturesConfig(select_layer=2), model.arch, "the-encoder")
    exact, reduced = (
        np.stack(VitFeatureEncoder(model, spec, GRIDS[family], precision=dtype).encode(images(3))).astype(np.float32)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert (exact != reduced).any()
    assert np.linalg.norm(exact - reduced) < 0.02 * np.linalg.norm(exact)


def test_views_follow_each_other_and_images_keep_theirs():
    grid = PatchGrid(5, 5, 14, Fit.ANYRES, canvases=((70, 140), (140, 140), (70, 210)))
    model = untrained_vit(ARCHS["clip"], seed=4)
    spec = plan_features(FeaturesConfig(select_feature="cls_patch"), model.arch, "the-encoder")
    given = [np.full((70, 140, 3), 200, np.uint8), *images(3)]
    answers = VitFeatureEncoder(model, spec, grid, batch_size=2).encode(given)
    single = VitFeatureEncoder(model, spec, replace(grid, fit=Fit.SQUASH, canvases=()), batch_size=1)
    for image, features in zip(given, answers, strict=True):
        views = fit_image(image, grid)
        assert features.shape == (len(views) * 26, 16)
        alone = np.concatenate([single.encode([view])[0] for view in views])
        np.testing.assert_allclose(features, alone, rtol=2e-3, atol=1e-4)
    assert len({len(features) for features in answers}) > 1


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_what_float16_cannot_hold_is_refused(value):
    model = untrained_vit(ARCHS["siglip"], seed=4)
    with torch.no_grad():
        model.vision_model.encoder.layers[1].mlp.fc2.bias[3] = value
    with pytest.raises(InputError, match=r"the-encoder are beyond what float16 holds \(65504\).*(1e\+06|nan)"):
        encoder_of(model, "siglip").encode(images(1))
    assert np.isfinite(encoder_of(model, "siglip", select_layer=1).encode(images(1))).all()


def test_settings_of_the_encoder_are_checked():
    model = untrained_vit(ARCHS["clip"], seed=4)
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        encoder_of(model, "clip", batch_size=0)
    with pytest.raises(ConfigError, match=r"reads 70 x 70 px .* grids that fit: one spelled out"):
        encoder_of(model, "siglip")


@pytest.mark.parametrize("preset", fixed_presets())
def test_the_untrained_encoder_takes_every_preset(preset):
    grid = grid_preset(preset)
    encoder = build_feature_encoder(ModelsConfig(vit=UNTRAINED), FeaturesConfig(connector="sti", pool=8), grid, "cpu")
    image = images(1)[0]
    views = len(fit_image(image, grid))
    assert encoder.spec.encoder == UNTRAINED
    assert encoder.spec.tokens == 64 + 8 + 8
    assert encoder.encode([image])[0].shape == (views * 80, encoder.spec.channels)


@pytest.mark.parametrize(
    ("vit", "grid", "settings", "message"),
    [
        (
            "clip-vit-l-14-336",
            "siglip-so400m-384",
            {},
            r"336 x 336 px .*llava-1.5-pretrain, llava-1.5-finetune, .*llava-1.6-original",
        ),
        ("siglip-so400m-384", "llava-1.5-finetune", {}, r"384 x 384 px .* fit: siglip-so400m-384"),
        ("clip-vit-l-14-336", "seed-224", {}, "an input of 224 x 224 px"),
        ("clip-vit-l-14-336", "llava-1.6", {"select_layer": 25}, "not 25"),
        ("siglip-so400m-384", "siglip-so400m-384", {"select_feature": "cls_patch"}, r"needs a CLS token"),
        ("untrained-tiny", "seed-224", {"pool": 17}, "1 x 1 to 16 x 16"),
    ],
)
def test_wrong_settings_are_told_before_weights_are_looked_for(vit, grid, settings, message, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHMINT_WEIGHTS", str(tmp_path))
    models, features = ModelsConfig(vit=vit), FeaturesConfig(**settings)
    with pytest.raises(ConfigError, match=message):
        check_features(models, features, grid_preset(grid))
    with pytest.raises(ConfigError, match=message):
        build_feature_encoder(models, features, grid_preset(grid), "cpu")


def test_right_settings_go_on_to_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHMINT_WEIGHTS", str(tmp_path))
    models, grid = ModelsConfig(), grid_preset("llava-1.5-finetune")
    spec = check_features(models, FeaturesConfig(connector="sti"), grid)
    assert (spec.encoder, spec.tokens) == ("clip-vit-l-14-336", 720)
    with pytest.raises(WeightsMissingError, match="patchmint models pull clip-vit-l-14-336"):
        build_feature_encoder(models, FeaturesConfig(), grid, "cpu")


def test_a_file_of_your_own(files):
    arch = ARCHS["siglip"]
    path = files(whole_model(arch).state_dict(), arch).path
    models = ModelsConfig(vit=str(path))
    encoder = build_feature_encoder(models, FeaturesConfig(), GRIDS["siglip"], "cpu")
    assert encoder.spec.encoder == str(path)
    assert check_features(models, FeaturesConfig(), GRIDS["siglip"]) == encoder.spec
    assert encoder.encode(images(1))[0].shape == (25, 16)
    with pytest.raises(ConfigError, match=r"give features\.layers"):
        check_features(models, FeaturesConfig(connector="dci"), GRIDS["siglip"])
    with pytest.raises(ConfigError, match="in an input of 70 x 70 px"):
        check_features(models, FeaturesConfig(), GRIDS["clip"])
