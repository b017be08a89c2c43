"""VQGAN at official sizes: a Lightning checkpoint of seeded random weights through our loader, against upstream.

Real photographs from scikit-image's and scikit-learn's wheels. The weights are random, but the codebook is laid where
the photographs' latents are, so that many codes are used and a wrong search shows.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import sklearn
import torch
from PIL import Image
from reference_cache import Arrays, cached
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.vqvae.quantize import VectorQuantizer
from torch import Tensor, nn

from patchmint.interfaces import Tokens
from patchmint.tokenizers.vqgan.arch import OFFICIAL
from patchmint.tokenizers.vqgan.model import infer_arch, load_vqgan
from patchmint.tokenizers.vqgan.tokenizer import VqganTokenizer
from patchmint.types import RgbImage
from patchmint.weights.loading import load_state

pytestmark = pytest.mark.official

SIZE = 256
_SKIMAGE, _SKLEARN = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
PHOTOS: list[RgbImage] = [
    np.asarray(Image.open(path).convert("RGB"))
    for path in (
        _SKIMAGE / "astronaut.png",
        _SKLEARN / "china.jpg",
    )
]
# The ddconfigs as upstream publishes them (configs/imagenet_vqgan.yaml; model.yaml beside the Gumbel checkpoint).
COMMON: dict[str, Any] = {
    "double_z": False,
    "z_channels": 256,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "num_res_blocks": 2,
    "dropout": 0.0,
}
F16 = COMMON | {"ch_mult": [1, 1, 2, 2, 4], "attn_resolutions": [16]}
F8 = COMMON | {"ch_mult": [1, 1, 2, 4], "attn_resolutions": [32]}


class Upstream:
    """What upstream's VQModel and GumbelVQ have in common."""

    def __init__(self, ddconfig: dict[str, Any]) -> None:
        self.parts = {
            "encoder": Encoder(**ddconfig).eval(),
            "decoder": Decoder(**ddconfig).eval(),
            "quant_conv": nn.Conv2d(256, 256, 1),
            "post_quant_conv": nn.Conv2d(256, 256, 1),
        }

    def latents(self, x: Tensor) -> Tensor:
        return self.parts["quant_conv"](self.parts["encoder"](x))

    def decode(self, quant: Tensor) -> Tensor:
        return self.parts["decoder"](self.parts["post_quant_conv"](quant))

    def save(self, path: Path, quantize: dict[str, nn.Module]) -> None:
        """As Lightning writes it, with losses."""
        tensors = {
            f"{part}.{key}": value
            for part, module in (self.parts | quantize).items()
            for key, value in module.state_dict().items()
        }
        losses = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4)}
        torch.save({"state_dict": tensors | losses, "epoch": 3, "global_step": 7}, path)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(11)
        yield


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "last.ckpt"
    yield path
    path.unlink()  # pytest keeps the folders of three runs, and this is hundreds of megabytes


def pixels_of(images: list[RgbImage]) -> Tensor:
    squashed = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in images]
    return torch.from_numpy((np.stack(squashed) / 127.5 - 1.0).astype(np.float32)).permute(0, 3, 1, 2).contiguous()


def grids(tokens: list[Tokens]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.stack([item.codes[..., 0] for item in tokens])


def assert_best(scores: Tensor, codes: Any) -> None:
    """Each code scores best to rounding: `scores` float64 (N, K), higher is better."""
    chosen = scores.gather(1, torch.from_numpy(codes.reshape(-1, 1)).long())[:, 0]
    assert (scores.amax(dim=1) - chosen).max() < 1e-3 * scores.std(dim=1).mean()


def test_f16_16384(checkpoint: Path) -> None:
    upstream = Upstream(F16)
    jitter, chosen = torch.randn(16384, 256), torch.randint(2 * 256, (16384,))

    def make() -> Arrays:
        latents = upstream.latents(pixels_of(PHOTOS))
        seen = latents.permute(0, 2, 3, 1).reshape(-1, 256)
        quantizer = VectorQuantizer(16384, 256, beta=0.25)
        quantizer.embedding.weight.data = seen[chosen] + 0.5 * seen.std(dim=0) * jitter
        expected = quantizer(latents)[2][2].reshape(2, 16, 16)
        # A quarter of a photo: the decoder is convolutional, and a whole one takes four times as long.
        drawn = upstream.decode(quantizer.get_codebook_entry(expected[0, :8, :8].flatten(), (1, 8, 8, 256)))
        arrays = {"seen": seen, "expected": expected, "drawn": drawn}
        return {name: tensor.numpy() for name, tensor in arrays.items()}

    reference = cached("vqgan-f16", __file__, make)
    seen, expected = torch.from_numpy(reference["seen"]), reference["expected"]
    assert len(np.unique(expected)) > 400

    quantizer = VectorQuantizer(16384, 256, beta=0.25)
    quantizer.embedding.weight.data = seen[chosen] + 0.5 * seen.std(dim=0) * jitter
    upstream.save(checkpoint, {"quantize": quantizer})
    state = load_state(checkpoint)
    assert infer_arch(state.tensors, state.metadata) == OFFICIAL["vqgan-imagenet-f16-16384"]
    model = load_vqgan(state)
    tokenizer = VqganTokenizer(model, name="f16", size=SIZE, fit="squash", batch_size=2)
    codes = grids(tokenizer.tokenize(PHOTOS))
    np.testing.assert_array_equal(codes, expected)
    assert_best(-torch.cdist(seen.double(), quantizer.embedding.weight.double()).square(), codes)
    drawn = torch.from_numpy(reference["drawn"])
    torch.testing.assert_close(model.decode(torch.from_numpy(expected[:1, :8, :8])), drawn, rtol=0, atol=1e-4)


def test_gumbel_f8_8192(checkpoint: Path) -> None:
    upstream = Upstream(F8)
    proj, embed = nn.Conv2d(256, 8192, 1), nn.Embedding(8192, 256)
    upstream.save(checkpoint, {"quantize.proj": proj, "quantize.embed": embed})

    def make() -> Arrays:
        return {"logits": proj(upstream.latents(pixels_of(PHOTOS[:1]))).numpy()}

    logits = torch.from_numpy(cached("vqgan-f8", __file__, make)["logits"])
    expected = logits.argmax(dim=1)
    assert len(expected.unique()) > 100

    state = load_state(checkpoint)
    assert infer_arch(state.tensors, state.metadata) == OFFICIAL["vqgan-gumbel-f8-8192"]
    tokenizer = VqganTokenizer(load_vqgan(state), name="f8", size=SIZE, fit="squash")
    codes = grids(tokenizer.tokenize(PHOTOS[:1]))
    np.testing.assert_array_equal(codes, expected)
    assert_best(logits.permute(0, 2, 3, 1).reshape(-1, 8192).double(), codes)
