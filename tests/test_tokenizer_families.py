"""Tokenizers in their publishers' files at tiny sizes: the publisher's codes, and no guess at a rule."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builds import benchmark_modules

from patchmint.errors import WeightsMismatchError, WeightsUnsafeError
from patchmint.interfaces import Tokens
from patchmint.tokenizers.build import tokenizer_arch
from patchmint.tokenizers.vqgan.arch import infer_arch

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
