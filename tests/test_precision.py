"""What `precision` means on a device, and what it changes in a model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from patchmint.annotate.models import AnnotationModels
from patchmint.compute import devices
from patchmint.compute.devices import (
    computing_fully,
    computing_in,
    reduced_copy,
    resolve_precision,
    store_products,
    to_device,
)
from patchmint.config import AnnotatorConfig, BuildConfig
from patchmint.errors import ConfigError
from patchmint.features import arch as vit_arch
from patchmint.features.model import untrained_vit
from patchmint.tokenizers.vqgan import arch as vqgan_arch
from patchmint.tokenizers.vqgan.model import encoder_for, untrained_vqgan

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("setting", "device", "native", "expected"),
    [
        ("auto", "cpu", True, torch.bfloat16),
        ("auto", "cpu", False, torch.float32),
        ("auto", "cuda:1", False, torch.float16),
        ("float32", "cpu", True, torch.float32),
        ("bfloat16", "cpu", False, torch.bfloat16),
        ("float16", "cuda", False, torch.float16),
    ],
)
def test_what_a_setting_means(monkeypatch, setting, device, native, expected):
    monkeypatch.setattr(devices, "_has_bfloat16", lambda _: native)
    assert resolve_precision(setting, device, cpu=torch.bfloat16, gpu=torch.float16) == expected


def test_float16_is_not_for_cpus():
    with pytest.raises(ConfigError, match="use bfloat16, float32 or auto"):
        resolve_precision("float16", "cpu", cpu=torch.float32, gpu=torch.float32)


def test_only_products_are_reduced():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(1, 1, 1))
    store_products(model, torch.bfloat16)
    assert [layer.weight.dtype for layer in model] == [torch.bfloat16, torch.float32, torch.float32]
    x = torch.randn(2, 4)
    with computing_in(torch.bfloat16, CPU):
        assert model[0](x).dtype == torch.bfloat16
        assert (x + x).dtype == torch.float32
        with computing_fully(CPU):
            assert (x @ x.T).dtype == torch.float32
    with computing_in(torch.float32, CPU):
        assert (x @ x.T).dtype == torch.float32


def test_weights_that_are_cast_once_give_what_autocast_gives():
    """The model stays as it is, for what overflows; on a CPU there is no copy."""
    vqgan = untrained_vqgan(vqgan_arch.TINY, seed=0)
    vit = untrained_vit(vit_arch.VitArch("clip", 16, 2, 2, 32, 28, 14, "quick_gelu"), seed=0)
    encoder, features = encoder_for(vqgan, torch.bfloat16, GPU), reduced_copy(vit, torch.bfloat16, GPU)
    assert {each.dtype for each in encoder.parameters()} == {torch.float32, torch.bfloat16}
    assert {each.dtype for each in (*vqgan.parameters(), *vit.parameters())} == {torch.float32}
    assert encoder_for(vqgan, torch.bfloat16, CPU) is encoder_for(vqgan, torch.float32, GPU) is vqgan.encoder
    generator = torch.Generator().manual_seed(0)
    pixels, views = torch.randn(2, 3, 64, 64, generator=generator), torch.randn(2, 3, 28, 28, generator=generator)
    with torch.inference_mode(), computing_in(torch.bfloat16, CPU):
        # mostly equal to the bit; products depend a little on where their factors lie in memory
        torch.testing.assert_close(vqgan.latents(pixels, encoder), vqgan.latents(pixels), rtol=0, atol=0.05)
        for ours, theirs in zip(features.states(views, 2), vit.states(views, 2), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05)


def test_what_models_prepare_for_a_gpu_is_pinned(monkeypatch):
    """So that the models' thread hasn't to copy it."""
    pinned = []

    def empty(*shape, pin_memory=False, **settings):
        made = real(*shape, **settings)
        if pin_memory:
            pinned.append(made)
        return made

    real = torch.empty
    monkeypatch.setattr(torch, "empty", empty)
    models = AnnotationModels.load(AnnotatorConfig.parse({"models": "untrained-tiny", "features": {}}), "cpu")
    image = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    on_cpu = models.prepare(image)
    assert pinned == []
    detector, masker = models.segmenter.detector, models.segmenter.masker
    for model, name in ((detector, "device"), (models.tokenizers["vqgan"], "_device"), (models.encoder, "_device")):
        monkeypatch.setattr(model, name, GPU)
    monkeypatch.setattr(masker, "_model", SimpleNamespace(device=GPU))
    on_gpu = models.prepare(image)
    for ours, theirs in zip(arrays(on_gpu), arrays(on_cpu), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert any(np.shares_memory(ours, each.numpy()) for each in pinned)
        assert to_device(theirs, CPU).data_ptr() == theirs.ctypes.data  # the array itself, and no further copy
    assert len(pinned) == len(arrays(on_cpu)) == 4


def arrays(inputs):
    return [*inputs.segmenter, inputs.tokenizers["vqgan"], *inputs.encoder]


def test_it_decides_the_bytes_of_a_build(tmp_path):
    def digest(**settings):
        return BuildConfig.load(
            None, {"source.kind": "folder", "source.uri": str(tmp_path), "output.uri": str(tmp_path / "o"), **settings}
        ).digest({})

    assert digest() == digest(precision="auto") != digest(precision="float32")
