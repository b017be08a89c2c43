"""Vision encoders for images of any size, small, from folders in Hugging Face's layout, against transformers' own.

Needs transformers 5, as they do.
"""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from patchmint.config import UNTRAINED, BuildConfig, ModelsConfig
from patchmint.config.annotator import FeaturesConfig
from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.features import encoder as encoder_module
from patchmint.features.model import load_encoder
from patchmint.features.plan import build_feature_encoder, check_features
from patchmint.geometry import Fit, NativeGrid, PatchGrid, Resize, grid_preset
from patchmint.geometry.presets import merged
from patchmint.pipeline.plan.memory import estimate_memory, weights_of
from patchmint.weights.loading import load_named

if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("transformers 4 has them in other forms", allow_module_level=True)

TINY = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
QWEN = {"depth": 3, "num_heads": 2, "patch_size": 14}
QWEN_25 = QWEN | {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 24}
SIZES = [(60, 90), (33, 150), (300, 170)]


@dataclass(frozen=True)
class Case:
    """A model of transformers, its processor, and the grid of its patches."""

    model: Any
    settings: dict
    processor: Any
    grid: NativeGrid | PatchGrid


def smart(patch):
    return NativeGrid(patch, 1, 2 * patch, Resize.SMART, 4 * patch**2, 60 * patch**2)


def qwen_processor(patch, **settings):
    size = {"shortest_edge": 4 * patch**2, "longest_edge": 60 * patch**2}
    return transformers.Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, size=size, **settings)


HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CASES = {
    "siglip2": Case(
        transformers.Siglip2VisionModel,
        TINY | {"patch_size": 16, "num_patches": 25},
        transformers.Siglip2ImageProcessorPil(patch_size=16, max_num_patches=40),
        NativeGrid(16, 1, 16, Resize.PATCHES, 0, 40),
    ),
    "dinov3": Case(
        transformers.DINOv3ViTModel,
        TINY | {"patch_size": 16, "num_register_tokens": 4, "use_gated_mlp": True},
        transformers.DINOv3ViTImageProcessor(size={"height": 64, "width": 64}),
        PatchGrid(4, 4, 16, Fit.SQUASH),
    ),
    "qwen2": Case(
        Qwen2VisionTransformerPretrainedModel,
        QWEN | {"embed_dim": 32, "hidden_size": 24, "mlp_ratio": 2},
        qwen_processor(14),
        smart(14),
    ),
    "qwen2.5": Case(
        Qwen2_5_VisionTransformerPretrainedModel,
        QWEN_25 | {"window_size": 56, "fullatt_block_indexes": [1]},
        qwen_processor(14),
        smart(14),
    ),
    "qwen3": Case(
        Qwen3VLVisionModel,
        QWEN_25 | {"patch_size": 16, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]},
        qwen_processor(16, **HALVES),
        smart(16),
    ),
}
EACH = pytest.mark.parametrize("name", CASES)


@cache
def images():
    rng = np.random.default_rng(5)
    rough = [rng.integers(0, 256, (size[0] // 9 + 1, size[1] // 9 + 1, 3), dtype=np.uint8) for size in SIZES]
    pairs = zip(rough, SIZES, strict=True)
    return [np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)) for image, size in pairs]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each model with random weights, saved as transformers saves it."""
    models = {}
    for name, case in CASES.items():
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(3)
            model = case.model(case.model.config_class(**case.settings)).eval()
            for weight in model.parameters():
                weight.normal_(std=max(weight[0].numel(), 1) ** -0.5 if weight.ndim > 1 else 0.3)
        folder = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(folder)
        case.processor.save_pretrained(folder)
        models[name] = (model, folder)
    return models


def encoder_of(folder, grid, **settings):
    return build_feature_encoder(ModelsConfig(vit=str(folder)), FeaturesConfig(**settings), grid, "cpu")


@torch.no_grad()
def asked(case, model, image):
    """Transformers' own hidden states of one image, float (patches, channels) row by row, and its merged tokens."""
    given = case.processor(images=[Image.fromarray(image)], return_tensors="pt")
    if "image_grid_thw" not in given:
        states = model(**given, output_hidden_states=True).hidden_states
        if "spatial_shapes" in given:
            return [state[0, given["pixel_attention_mask"][0].bool()] for state in states], None
        return [state[0, 5:] for state in states], None
    thw = given["image_grid_thw"]
    answer = model(given["pixel_values"], grid_thw=thw, output_hidden_states=True)
    _, rows, cols = thw[0].tolist()
    # Where block (i, j) stands: its 2 x 2 patches follow each other.
    order = np.arange(rows * cols).reshape(rows // 2, 2, cols // 2, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    if hasattr(model, "window_size"):
        from transformers.vision_utils import get_vision_window_index

        order = order[get_vision_window_index(thw, 2, model.window_size, model.patch_size)[0].numpy()]
    states = [
        torch.empty_like(state).index_copy_(0, torch.tensor(order.ravel()), state) for state in answer.hidden_states
    ]
    return states, answer.pooler_output


@EACH
def test_features_are_the_models_hidden_states(name, folders):
    """Of the processor's own pixels; DINOv3's resizes floats, and ours bytes."""
    case, (model, folder) = CASES[name], folders[name]
    given = images()
    encoders = {layer: encoder_of(folder, case.grid, select_layer=layer) for layer in (0, 2, -1)}
    found = {layer: encoder.encode(given) for layer, encoder in encoders.items()}
    for index, image in enumerate(given):
        states, _ = asked(case, model, image)
        placement = case.grid.place(image.shape[:2])
        for layer, features in found.items():
            assert features[index].shape == (placement.tokens, 32)
            off = np.abs(features[index].astype(np.float32) - states[layer].numpy()).max()
            assert off < (0.08 if name == "dinov3" else 0.004), (layer, off)
            assert np.abs(states[layer].numpy()).max() > 1


@pytest.mark.parametrize("name", ["qwen2", "qwen2.5", "qwen3"])
def test_merged_tokens_are_what_the_language_model_sees(name, folders):
    case, (model, folder) = CASES[name], folders[name]
    grid = merged(case.grid, 2)
    encoder = encoder_of(folder, grid)
    assert (encoder.spec.grid, encoder.spec.channels, encoder.spec.select_feature) == ((0, 0), 24, "merged")
    for image, features in zip(images(), encoder.encode(images()), strict=True):
        expected = asked(case, model, image)[1].numpy()
        assert features.shape == expected.shape == (grid.place(image.shape[:2]).tokens, 24)
        assert np.abs(features.astype(np.float32) - expected).max() < 0.004
    for settings in ({"select_layer": 1}, {"connector": "sci", "layers": [[0]]}):
        with pytest.raises(ConfigError, match=r"has merged at its end; .*the grid's merge: 1"):
            encoder_of(folder, grid, **settings)


@EACH
def test_a_batch_gives_what_each_gives_alone(name, folders, monkeypatch):
    encoder = encoder_of(folders[name][1], CASES[name].grid)
    together, alone = encoder.encode(images()), [encoder.encode([image])[0] for image in images()]
    monkeypatch.setattr(encoder_module, "_MOST_PATCHES", 80)  # two of them in a pass
    for one, other in zip(together, encoder.encode(images()), strict=True):
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), rtol=1e-3, atol=2e-3)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), rtol=1e-3, atol=2e-3)


@EACH
def test_reduced_precision_is_used_and_stays_near(name, folders):
    """Products in bfloat16; what is added up stays in float32."""
    case, (_, folder) = CASES[name], folders[name]
    models, features = ModelsConfig(vit=str(folder)), FeaturesConfig()
    full, reduced = (
        build_feature_encoder(models, features, case.grid, "cpu", precision).encode(images())[1].astype(np.float32)
        for precision in ("float32", "bfloat16")
    )
    off = np.abs(full - reduced)
    assert 1e-4 < off.max() < 0.1 * np.abs(full).max()
    model, pixels = load_encoder(load_named(str(folder))), torch.rand(3, 4 * case.grid.patch_px, 4 * case.grid.patch_px)
    with torch.autocast("cpu", torch.bfloat16):
        ((parts, _),) = model.parts([pixels], ((0,), (3,)))
    assert {part.dtype for part in parts} == {torch.float32}


@EACH
def test_connectors_and_pooling(name, folders):
    """Parts of several layers beside each other, and DeCo's bins, whatever the image's rows and columns."""
    case, (_, folder) = CASES[name], folders[name]
    layers = {layer: encoder_of(folder, case.grid, select_layer=layer).encode(images()[:2]) for layer in (1, 2, 3)}
    joined = encoder_of(folder, case.grid, connector="dci", select_layer=3, layers=[[1, 2]]).encode(images()[:2])
    pooled = encoder_of(folder, case.grid, select_layer=3, pool=(2, 1))
    assert pooled.spec.grid == (2, 1)
    for index, image in enumerate(images()[:2]):
        v, one, two = (layers[layer][index].astype(np.float32) for layer in (3, 1, 2))
        np.testing.assert_allclose(joined[index][:, :32], v, rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(joined[index][:, 32:], (one + two) / 2, rtol=2e-3, atol=4e-3)
        rows, cols = case.grid.place(image.shape[:2]).shape
        whole = torch.tensor(v).reshape(rows, cols, 32).permute(2, 0, 1)
        expected = torch.nn.functional.adaptive_avg_pool2d(whole, (2, 1)).flatten(1).T.numpy()
        np.testing.assert_allclose(pooled.encode([image])[0], expected, rtol=2e-3, atol=2e-3)
    if isinstance(case.grid, NativeGrid):
        with pytest.raises(ConfigError, match="sti appends tokens that have no place"):
            encoder_of(folder, case.grid, connector="sti", layers=[[1]])


def test_dinov3_has_a_cls_token(folders):
    case, (model, folder) = CASES["dinov3"], folders["dinov3"]
    encoder = encoder_of(folder, case.grid, select_feature="cls_patch")
    given = case.processor(images=[Image.fromarray(images()[0])], return_tensors="pt")
    with torch.no_grad():
        state = model(**given, output_hidden_states=True).hidden_states[-1][0]
    features = encoder.encode(images()[:1])[0]
    assert features.shape == (17, 32)
    assert np.abs(features[0] - state[0].numpy()).max() < 0.08
    other_size = encoder_of(folder, PatchGrid(3, 5, 16, Fit.SQUASH), select_feature="cls_patch")
    assert other_size.encode(images()[:1])[0].shape == (16, 32)


@pytest.mark.parametrize("image_size", [70, 96])
def test_clip_and_siglip_of_any_size(image_size, tmp_path):
    """Not only the published ones: `config.json` says which, and `preprocessor_config.json` how pixels are prepared."""
    side = image_size // 14
    for kind in ("CLIP", "Siglip"):
        settings = TINY | {"image_size": image_size, "patch_size": 14, "hidden_act": "gelu"}
        config_class, model_class = (getattr(transformers, f"{kind}Vision{part}") for part in ("Config", "Model"))
        torch.manual_seed(4)
        model = model_class(config_class(**settings)).eval()
        size = {"height": image_size, "width": image_size}
        crop = {"do_center_crop": False} if kind == "CLIP" else {}
        processor = getattr(transformers, f"{kind}ImageProcessorPil")(size=size, resample=2, **HALVES, **crop)
        folder = tmp_path / f"{kind}{image_size}"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        encoder = encoder_of(folder, PatchGrid(side, side, 14, Fit.SQUASH, (image_size, image_size)))
        given = processor(images=[Image.fromarray(images()[1])], return_tensors="pt")
        with torch.no_grad():
            expected = model(**given, output_hidden_states=True).hidden_states[-2][0, kind == "CLIP" :].numpy()
        found = encoder.encode(images()[1:2])[0]
        assert found.shape == (side**2, 32)
        assert np.abs(found - expected).max() < 0.004


def whole_model(folder, prefix, kind, tensors, path):
    """The same in a whole model's file, in bfloat16, beside a language model."""
    state = {f"{prefix}{key}": value.to(torch.bfloat16).contiguous() for key, value in tensors.items()}
    state["language_model.embed_tokens.weight"] = torch.zeros(3, 2)
    safetensors.torch.save_file(state, path)
    vision = json.loads((folder / "config.json").read_text())
    path.with_name("config.json").write_text(json.dumps({"model_type": kind, "vision_config": vision}))


@pytest.mark.parametrize(
    ("name", "kind", "prefix"), [("qwen2.5", "qwen2_5_vl", "visual."), ("siglip2", "siglip2", "vision_model.")]
)
def test_the_tower_of_a_whole_model(name, kind, prefix, folders, tmp_path):
    folder = folders[name][1]
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    # of a model in several files the one with the encoder is given
    path = tmp_path / ("model-00001-of-00002.safetensors" if name == "qwen2.5" else "model.safetensors")
    whole_model(folder, prefix, kind, tensors, path)
    given = path if name == "qwen2.5" else tmp_path
    grid, image = CASES[name].grid, images()[:1]
    alone, within = (encoder_of(one, grid).encode(image)[0] for one in (folder, given))
    assert np.corrcoef(alone.ravel(), within.ravel())[0, 1] > 0.99  # bfloat16 keeps 8 bits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "config.json describes a siglip2 that can't be: embed_dim must be divisible"),
        ({"num_patches": 99}, "position_embedding"),
        ({"model_type": "qwen3_vl"}, "has no tensor patch_embed"),
        ({"num_hidden_layers": 10**9}, "its tensors aren't those of the siglip2_vision_model"),
    ],
)
def test_a_config_that_lies_is_refused(change, message, folders, tmp_path):
    folder = folders["siglip2"][1]
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((WeightsMismatchError, ConfigError), match=message):
        encoder_of(tmp_path, CASES["siglip2"].grid)


@pytest.mark.parametrize(
    ("name", "grid", "message"),
    [
        ("siglip2", grid_preset("qwen2-vl"), r"patches of 16 px, but the cells of the grid have 28 px"),
        ("qwen3", grid_preset("qwen2-vl"), r"patches of 16 px, and merges them to tokens of 32 px"),
        ("qwen2", PatchGrid(3, 3, 14, Fit.SQUASH), "don't fill the input"),
        ("siglip2", grid_preset("internvl3"), "of grids of tiles only LLaVA-NeXT's"),
        ("siglip2", grid_preset("molmo2"), "of grids of tiles only LLaVA-NeXT's"),
        ("siglip2", grid_preset("llava-onevision-hf"), "of grids of tiles only LLaVA-NeXT's"),
    ],
)
def test_grids_of_other_patches_are_refused(name, grid, message, folders):
    with pytest.raises(ConfigError, match=message):
        check_features(ModelsConfig(vit=str(folders[name][1])), FeaturesConfig(), grid)


@pytest.mark.parametrize("name", ["siglip2", "qwen3"])
def test_a_dry_run_foresees_its_memory(name, folders):
    """From the file's header: what the encoder holds, and what large images take."""
    model, folder = folders[name]
    assert weights_of("vit", str(folder)) == 4 * sum(weight.numel() for weight in model.parameters())
    grid = {"preset": "siglip2-naflex" if name == "siglip2" else "qwen3-vl", "merge": 1}
    config = BuildConfig.parse(
        {
            "source": {"kind": "folder", "uri": "in"},
            "output": {"uri": "out"},
            "models": {"vit": str(folder)},
            "labels": None,
            "tokens": None,
            "features": {},
            "grid": grid,
            "runner": {"device": "cpu", "batch_size": 1},
        }
    )
    small, large = (estimate_memory(config, [size], 10).models for size in ((200, 200), (1600, 1600)))
    patches = [grid_preset(grid["preset"]).input_size(size) for size in ((200, 200), (1600, 1600))]
    assert small == 4 * (6 * 32 + 2 * 48) * patches[0][0] * patches[0][1] // 256
    assert large == 4 * (6 * 32 + 2 * 48) * patches[1][0] * patches[1][1] // 256


@pytest.mark.parametrize("preset", ["qwen2-vl", "siglip2-naflex", "pixtral"])
def test_the_untrained_encoder_takes_grids_that_depend_on_the_image(preset):
    """So that a build can be tried: `untrained-tiny` sees a cell as one patch."""
    grid = grid_preset(preset)
    encoder = build_feature_encoder(ModelsConfig(vit=UNTRAINED), FeaturesConfig(), grid, "cpu")
    image = images()[0]
    assert encoder.encode([image])[0].shape == (grid.place(image.shape[:2]).tokens, encoder.spec.channels)
