"""Dense Connector and DeCo: counts of tokens and channels, values against torch's own layers, settings refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from patchmint.config.annotator import FeaturesConfig
from patchmint.errors import ConfigError
from patchmint.features.arch import OFFICIAL, VitArch, untrained_arch
from patchmint.features.encoder import connect, features_of, mean_states, pool_grid
from patchmint.features.plan import plan_features
from patchmint.geometry import PatchGrid, grid_preset

CLIP, SIGLIP = OFFICIAL["clip-vit-l-14-336"], OFFICIAL["siglip-so400m-384"]
SMALL = VitArch("clip", 8, 6, 2, 16, 70, 14, "quick_gelu")  # 5 x 5 patches
SMALL_LAYERS = {"sti": ((1,), (4,)), "sci": ((1,), (4,)), "dci": ((0, 1, 2), (3, 4, 5))}


def plan(arch, **settings):
    return plan_features(FeaturesConfig(**settings), arch, "the-encoder")


def states_of(arch, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, arch.leading + arch.side**2, arch.hidden)
    return [torch.randn(shape, generator=generator) for _ in range(arch.layers + 1)]


@pytest.mark.parametrize(
    ("arch", "settings", "tokens", "channels"),
    [
        (CLIP, {}, 576, 1024),
        (CLIP, {"connector": "sti"}, 720, 1024),
        (CLIP, {"connector": "sci"}, 576, 3072),
        (CLIP, {"connector": "dci"}, 576, 3072),
        (CLIP, {"pool": 12}, 144, 1024),
        (CLIP, {"pool": (12, 12), "connector": "dci"}, 144, 3072),
        (CLIP, {"pool": 12, "connector": "sci", "pool_when": "after"}, 144, 3072),
        (CLIP, {"pool": 12, "connector": "sti"}, 144 + 18 + 18, 1024),
        (CLIP, {"pool": 12, "connector": "sti", "pool_when": "after"}, 144 + 72 + 72, 1024),
        (CLIP, {"pool": (2, 4), "connector": "sti"}, 10, 1024),
        (CLIP, {"pool": (1, 1), "connector": "sti", "pool_when": "after"}, 145, 1024),
        (CLIP, {"select_feature": "cls_patch"}, 577, 1024),
        (CLIP, {"select_feature": "cls_patch", "connector": "sti"}, 721, 1024),
        (CLIP, {"select_feature": "cls_patch", "connector": "dci", "pool": 12}, 145, 3072),
        (SIGLIP, {}, 729, 1152),
        (SIGLIP, {"connector": "sti"}, 911, 1152),
        (SIGLIP, {"connector": "sci"}, 729, 3456),
        (SIGLIP, {"connector": "dci"}, 729, 3456),
        (SIGLIP, {"connector": "dci", "pool": 9}, 81, 3456),
        (SIGLIP, {"pool": (13, 14)}, 182, 1152),
    ],
)
def test_counts(arch, settings, tokens, channels):
    spec = plan(arch, **settings)
    assert (spec.tokens, spec.channels) == (tokens, channels)
    # The shapes of what is made, on an encoder as wide as one number: the counts don't depend on the width.
    narrow = replace(arch, hidden=1, heads=1)
    made = features_of(iter(states_of(narrow, batch=1)), plan(narrow, **settings), narrow)
    assert made.shape == (1, tokens, channels // arch.hidden)


def test_the_papers_layers():
    assert plan(CLIP).layers == ((23,),)
    assert plan(SIGLIP).layers == ((26,),)
    for connector in ("sti", "sci"):
        assert plan(CLIP, connector=connector).layers == ((23,), (7,), (15,))
        assert plan(SIGLIP, connector=connector).layers == ((26,), (7,), (15,))
    assert plan(CLIP, connector="dci").layers == ((23,), tuple(range(12)), tuple(range(12, 24)))
    assert plan(SIGLIP, connector="dci").layers == ((26,), tuple(range(13)), tuple(range(13, 26)))


def test_layers_by_setting_count_from_the_end_where_negative():
    assert plan(CLIP, select_layer=-1).layers == ((24,),)
    assert plan(CLIP, select_layer=24).layers == ((24,),)
    assert plan(CLIP, select_layer=0).layers == ((0,),)
    assert plan(CLIP, connector="dci", layers=((0, -25 + 3), (-1,))).layers == ((23,), (0, 3), (24,))
    assert plan(CLIP, connector="sci", layers=((3,),)).channels == 2048


def test_what_the_spec_says():
    spec = plan(CLIP, connector="sti", pool=12, pool_when="after", select_feature="cls_patch")
    assert spec.encoder == "the-encoder"
    assert (spec.connector, spec.select_feature, spec.pool) == ("sti", "cls_patch", "after")
    assert (spec.grid, spec.leading, spec.trailing) == ((12, 12), 1, 144)
    assert plan(CLIP, pool_when="after").pool == ""


@pytest.mark.parametrize(
    ("arch", "settings", "message"),
    [
        (CLIP, {"select_layer": 25}, r"select_layer: .* 0 .* to 24, .* not 25"),
        (CLIP, {"select_layer": -26}, r"-1 to -25 .* not -26"),
        (SIGLIP, {"connector": "sci", "layers": ((7,), (28,))}, r"features.layers: .* to 27, .* not 28"),
        (CLIP, {"connector": "dci", "layers": ((0, 25),)}, "not 25"),
        (CLIP, {"layers": ((7,), (15,))}, "set features.connector to sti, sci or dci"),
        (CLIP, {"connector": "sti", "layers": ()}, "layers is empty"),
        (CLIP, {"connector": "sti", "layers": ((7, 8),)}, r"one hidden state a part.* not \[7, 8\]"),
        (CLIP, {"connector": "sci", "layers": ((),)}, "one hidden state a part"),
        (CLIP, {"connector": "dci", "layers": ((),)}, "at least one and each once"),
        (CLIP, {"connector": "dci", "layers": ((1, 24, -1),)}, "each once"),
        (CLIP, {"pool": (25, 24)}, "1 x 1 to 24 x 24, the encoder's patches, not 25 x 24"),
        (SIGLIP, {"pool": (27, 0)}, "1 x 1 to 27 x 27.* not 27 x 0"),
        (CLIP, {"pool": -3}, "not -3 x -3"),
        (CLIP, {"pool": 2, "connector": "sti"}, r"averages 8 tokens into one, .* 2 x 2 leaves 4.*pool_when: after"),
        (SIGLIP, {"select_feature": "cls_patch"}, "needs a CLS token, which the-encoder"),
        (replace(SMALL, layers=7), {"connector": "dci"}, r"a clip encoder with 7 blocks; give features.layers"),
    ],
)
def test_wrong_settings_say_what_is_allowed(arch, settings, message):
    with pytest.raises(ConfigError, match=message):
        plan(arch, **settings)


def test_the_untrained_encoder_has_layers_for_every_connector():
    arch = untrained_arch(grid_preset("seed-224"))
    for connector in ("sti", "sci", "dci"):
        assert max(max(part) for part in plan(arch, connector=connector).layers) <= arch.layers


def test_a_grid_that_is_not_square_is_refused():
    with pytest.raises(ConfigError, match=r"square .* not 4 x 6"):
        untrained_arch(PatchGrid(4, 6, 14, "squash"))


@pytest.mark.parametrize("select_feature", ["patch", "cls_patch"])
@pytest.mark.parametrize("pool_when", [None, "before", "after"])
@pytest.mark.parametrize("connector", ["none", "sti", "sci", "dci"])
def test_values_are_those_of_torchs_own_layers(connector, pool_when, select_feature):
    states = states_of(SMALL)
    settings = {"pool": (3, 4), "pool_when": pool_when} if pool_when else {}
    layers = SMALL_LAYERS.get(connector)
    spec = plan(SMALL, connector=connector, select_feature=select_feature, layers=layers, **settings)

    means = [states[5], *(torch.stack([states[i] for i in part]).mean(dim=0) for part in layers or ())]
    planes = [mean[:, 1:].transpose(1, 2).reshape(2, 8, 5, 5) for mean in means]
    pooling, averaging = nn.AdaptiveAvgPool2d((3, 4)), nn.AvgPool1d(8, 8)
    pooled = [pooling(plane) if pool_when else plane for plane in planes]
    tokens = [plane.flatten(2).transpose(1, 2) for plane in pooled]
    cls = [mean[:, :1] for mean in means] if select_feature == "cls_patch" else [mean[:, :0] for mean in means]
    if connector == "sti":
        extras = pooled[1:] if pool_when == "before" else planes[1:]
        averages = [averaging(plane.flatten(2)).transpose(1, 2) for plane in extras]
        expected = torch.cat([cls[0], tokens[0], *averages], dim=1)
    else:
        expected = torch.cat([torch.cat(pair, dim=1) for pair in zip(cls, tokens, strict=True)], dim=2)

    made = features_of(iter(states), spec, SMALL)
    assert made.shape == (2, spec.tokens, spec.channels)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


def test_the_selected_state_comes_first():
    parts = [torch.full((1, 8, 2), float(value)) for value in (1, 2, 3)]
    assert connect(parts, "dci")[0, 0].tolist() == [1, 1, 2, 2, 3, 3]
    assert connect(parts, "sti")[0, :, 0].tolist() == [1] * 8 + [2, 3]
    assert connect(parts, "none") is parts[0]


def test_sti_leaves_out_a_rest_of_fewer_than_eight():
    tokens = torch.arange(729.0).reshape(1, 729, 1)
    appended = connect([tokens, tokens], "sti")[0, 729:, 0]
    assert appended.tolist() == [8 * i + 3.5 for i in range(91)]


def test_pooling_leaves_other_tokens_alone():
    tokens = torch.cat(
        [torch.full((1, 1, 1), 9.0), torch.arange(16.0).reshape(1, 16, 1), torch.full((1, 2, 1), 7.0)], 1
    )
    assert pool_grid(tokens, (4, 4), (2, 2), leading=1)[0, :, 0].tolist() == [9, 2.5, 4.5, 10.5, 12.5, 7, 7]


def test_a_state_may_take_part_in_several_parts_and_stays_as_it_was():
    states = states_of(SMALL)
    copies = [state.clone() for state in states]
    first, second, third = mean_states(iter(states), ((5,), (4, 5), (0, 5)))
    for state, copy in zip(states, copies, strict=True):
        assert torch.equal(state, copy)
    assert torch.equal(first, states[5])
    torch.testing.assert_close(second, (states[4] + states[5]) / 2)
    torch.testing.assert_close(third, (states[0] + states[5]) / 2)
