"""Tokenizers in their publishers' files at tiny sizes: the publisher's codes, and no guess at a rule."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builds import benchmark_modules

from patchmint.config import ModelsConfig, TokensConfig
from patchmint.errors import ConfigError, WeightsMismatchError, WeightsUnsafeError
from patchmint.interfaces import Tokens
from patchmint.tokenizers.build import check_tokens, tokenizer_arch
from patchmint.tokenizers.emu3.arch import by_transformers_names, infer_emu3
from patchmint.tokenizers.vqgan.arch import infer_arch
from patchmint.weights.loading import load_named

(families,) = benchmark_modules("families")
FAMILIES, TINY = families.FAMILIES, families.TINY
codes_of, tokenizer_of = families.codes_of, families.tokenizer_of
PX = 64
IMAGES = families.photographs(4, PX)


def tiny(name):
    size = FAMILIES[name].size
    few = {"blocks": 1} if size.blocks == 2 else {"blocks": 2}
    return replace(size, **TINY, **few, dim=min(size.dim, 32))


@pytest.fixture(scope="module")
def made():
    """The reference of each family, made once."""
    known = {}

    def make(name):
        if name not in known:
            known[name] = families.reference(FAMILIES[name], tiny(name), IMAGES)
        return known[name]

    return make


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("ibq-1024", "ibq-262144")])
def test_codes_are_the_publishers(name, made, tmp_path):
    family, (model, expected, latents) = FAMILIES[name], made(name)
    path = family.save(dict(model.state_dict()), tmp_path)
    if family.shapes_tell:
        with pytest.raises(WeightsMismatchError, match=r"tokens: \{rule: nearest\}"):
            tokenizer_of(path, PX, None)
    tokenizer = tokenizer_of(path, PX, family.rule if family.shapes_tell else None)
    assert (tokenizer.spec.rule, tokenizer.spec.codebook_sizes) == (family.rule, (TINY["codes"],))
    assert len(np.unique(expected)) > 12
    np.testing.assert_array_equal(codes_of(tokenizer, IMAGES), expected)
    np.testing.assert_array_equal(np.concatenate([codes_of(tokenizer, [image]) for image in IMAGES]), expected)
    others = {other.rule: other.choose for other in FAMILIES.values() if "logit" not in (other.rule, family.rule)}
    for rule in others.keys() - {family.rule}:
        assert (others[rule](model, latents).flatten().numpy() == expected.flatten()).mean() < 0.9, rule


def test_janus_draws_what_the_publisher_draws(made, tmp_path):
    """By its own names and by transformers', whose decoder counts its levels from the other end."""
    model, expected, _ = made("janus-pro")
    tokens = [Tokens(codes[..., None].astype(np.int32)) for codes in expected]
    half = PX // (1 << (len(tiny("janus-pro").mult) - 1))
    model.quantize.quant_state_dims = [half] * 2
    with torch.no_grad():
        drawn = model.decode(torch.from_numpy(expected).flatten(1))
    drawn = drawn.clamp(-1, 1).add(1).mul(127.5).round().permute(0, 2, 3, 1).numpy()
    for name in ("janus-pro", "janus-pro-hf", "llamagen-ds16"):
        (tmp_path / name).mkdir()
        tokenizer = tokenizer_of(FAMILIES[name].save(dict(model.state_dict()), tmp_path / name), PX, None)
        assert np.abs(np.stack(tokenizer.decode(tokens)) - drawn).max() <= 1


def test_a_model_without_a_decoder_says_so(made, tmp_path):
    model, expected, _ = made("chameleon-hf")
    tokenizer = tokenizer_of(FAMILIES["chameleon-hf"].save(dict(model.state_dict()), tmp_path), PX, None)
    assert not tokenizer.spec.can_decode
    with pytest.raises(NotImplementedError, match="no decoder"):
        tokenizer.decode([Tokens(expected[0][..., None].astype(np.int32))])


def test_transformers_janus_by_itself_may_be_two_rules(made, tmp_path):
    """Without config.json and a decoder's order Janus's names are taming's."""
    model, _, _ = made("janus-pro-hf")
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("decoder.")}
    path = FAMILIES["janus-pro-hf"].save(state, tmp_path)
    assert tokenizer_arch(str(path)).rule == "cosine"
    (tmp_path / "config.json").write_text(json.dumps(["janus"]))
    with pytest.raises(WeightsMismatchError, match="don't say how it chooses codes"):
        tokenizer_arch(str(path))


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        ("llamagen-ds16", "nearest", "holds a VQGAN of the rule cosine"),
        ("chameleon", "logit", "tokens.rule is logit"),
    ],
)
def test_a_rule_that_the_file_contradicts_is_refused(name, rule, message, made, tmp_path):
    path = FAMILIES[name].save(dict(made(name)[0].state_dict()), tmp_path)
    with pytest.raises(WeightsMismatchError, match=message):
        tokenizer_arch(str(path), rule)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.shapes_tell])
def test_official_shapes_tell_the_rule_unless_the_settings_do(name):
    family = FAMILIES[name]
    with torch.device("meta"):
        state = dict(family.make(family.size).state_dict())
    assert infer_arch(state, {}).rule == family.rule
    assert infer_arch(state, {}, rule="cosine") == replace(infer_arch(state, {}), rule="cosine")
    with pytest.raises(WeightsMismatchError, match="don't say how it chooses codes"):
        infer_arch(state | {"quantize.embedding.weight": torch.empty(77, 256, device="meta")}, {})


@pytest.mark.parametrize("baais", [True, False])
def test_emu3_has_a_grid_for_each_image(baais, tmp_path):
    """BAAI's own class, which PyPI hasn't got, was compared by hand: the same codes of such files."""
    numbers = {"base_channels": 32, "channel_multiplier": [1, 2], "hidden_size": 64, "attn_resolutions": [1]}
    images = [image[: 40 + 8 * number, : 60 - 4 * number] for number, image in enumerate(IMAGES)]
    expected = families.emu3(tmp_path, images, numbers | {"codebook_size": 96}, (512, 2048), baais=baais)
    tokenizer = tokenizer_of(tmp_path, PX, None)
    assert (tokenizer.spec.rule, tokenizer.spec.codebook_sizes) == ("nearest", (96,))
    assert tokenizer.spec.preprocessing == "smart-2-512-2048-bicubic"
    assert len({grid.shape for grid in expected}) == len(images)
    for image, grid, tokens in zip(images, expected, tokenizer.tokenize(images), strict=True):
        assert len(np.unique(grid)) > 12
        assert grid.shape == tokenizer.spec.grid_on(image.shape[:2])
        np.testing.assert_array_equal(tokens.codes[..., 0], grid)
    state = load_named(str(tmp_path))
    part = {f"model.vqmodel.{name}": tensor for name, tensor in state.tensors.items()}
    whole = part | {"model.text_model.norm.weight": torch.zeros(4)}
    assert infer_emu3(whole, state.metadata) == infer_emu3(state.tensors, state.metadata)
    assert by_transformers_names(whole).keys() == by_transformers_names(state.tensors).keys()
    drawn, *_ = tokenizer.decode([tokens])
    assert drawn.shape == (2 * grid.shape[0], 2 * grid.shape[1], 3)
    with pytest.raises(ConfigError, match=r"tokens.remap is for VQGAN"):
        check_tokens(ModelsConfig(tokenizer=str(tmp_path)), TokensConfig(remap="used.npy"))
    with pytest.raises(ConfigError, match=r"tokens.rule is dot"):
        tokenizer_arch(str(tmp_path), "dot")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": "many"}))
    with pytest.raises(WeightsMismatchError, match=r"preprocessor_config\.json beside it is wrong"):
        tokenizer_arch(str(tmp_path))


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_settings_in_a_checkpoint_stay_inert(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = FAMILIES["llamagen-ds16"].save(dict(made("llamagen-ds16")[0].state_dict()), tmp_path)
    loaded = torch.load(path, weights_only=False)
    torch.save(loaded | {"args": Hostile()}, path, pickle_module=pickle)
    with pytest.raises(WeightsUnsafeError):
        tokenizer_of(path, PX, None)
    assert not Path("ran").exists()
