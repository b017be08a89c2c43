"""What `precision` means on a device, and what it changes in a model."""

import pytest
import torch
from torch import nn

from patchmint.compute import devices
from patchmint.compute.devices import computing_fully, computing_in, resolve_precision, store_products
from patchmint.config import BuildConfig
from patchmint.errors import ConfigError

CPU = torch.device("cpu")


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


def test_it_decides_the_bytes_of_a_build(tmp_path):
    def digest(**settings):
        return BuildConfig.load(
            None, {"source.kind": "folder", "source.uri": str(tmp_path), "output.uri": str(tmp_path / "o"), **settings}
        ).digest({})

    assert digest() == digest(precision="auto") != digest(precision="float32")
