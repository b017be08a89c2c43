"""Each family of models against its publisher's own rule, at official size with seeded random weights.

    python benchmarks/families.py --json
    python benchmarks/families.py --only ibq-262144 sam2.1 --photographs 10
    python benchmarks/families.py --only emu3 emu3-hf --photographs 2 --size 512

A family's weights are written in its publisher's container and layout, and loaded as a user's file is. The publisher's
class computes the reference where PyPI has one (taming-transformers, transformers); otherwise its rule is written out
here. Codebook rows have unlike lengths, so that a search by another rule gives other codes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import sklearn
import torch
from labeler_families import FAMILIES as LABELERS
from PIL import Image
from safetensors.torch import save_file
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.vqvae.quantize import VectorQuantizer
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE, ChameleonVQVAEConfig
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE
from transformers.models.janus.modeling_janus import JanusVQVAE, JanusVQVAEConfig

from patchmint.config import ModelsConfig, TokensConfig
from patchmint.config.annotator import Rule
from patchmint.interfaces import Tokenizer
from patchmint.tokenizers.build import build_tokenizer
from patchmint.types import RgbImage

State = dict[str, Tensor]
_FOLDERS = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
_PICTURES = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "china.jpg", "flower.jpg")
_AT_ONCE = 2  # as many as the tokenizer takes on a CPU, so that convolutions round alike

_ALONE = 10  # photographs that are encoded one by one as well
_SIDES = (64, 160)  # of Emu3's photographs, in pixels
_PUBLISHED = 512  # side of the smallest square that Emu3 takes; the largest has twice as many


@dataclass(frozen=True)
class Size:
    """Numbers of a model."""

    ch: int = 128
    mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    attention: bool = True
    z: int = 256
    dim: int = 256
    codes: int = 16384

    @property
    def taming(self) -> dict[str, Any]:
        """The `ddconfig`."""
        at = [256 >> (len(self.mult) - 1)] if self.attention else []
        numbers = {"ch": self.ch, "ch_mult": list(self.mult), "num_res_blocks": self.blocks, "z_channels": self.z}
        common = {"double_z": False, "resolution": 256, "in_channels": 3, "out_ch": 3, "dropout": 0.0}
        return {**numbers, **common, "attn_resolutions": at}

    def transformers(self) -> dict[str, Any]:
        """The same in transformers' words."""
        return {
            "base_channels": self.ch,
            "channel_multiplier": list(self.mult),
            "num_res_blocks": self.blocks,
            "latent_channels": self.z,
            "embed_dim": self.dim,
            "num_embeddings": self.codes,
        }


class Taming(nn.Module):
    """`VQModel` of taming-transformers, from the modules that PyPI's package has; IBQ's has the same parts."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(**size.taming), Decoder(**size.taming)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(size.z, size.dim, 1), nn.Conv2d(size.dim, size.z, 1)
        self.quantize: nn.Module = VectorQuantizer(size.codes, size.dim, beta=0.25)


class Gumbel(Taming):
    """`GumbelVQ`."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.quantize = nn.Module()
        self.quantize.proj, self.quantize.embed = nn.Conv2d(size.z, size.codes, 1), nn.Embedding(size.codes, size.dim)


def chameleon(size: Size) -> nn.Module:
    """The class in transformers, which has the keys of Meta's, without its decoder."""
    return ChameleonVQVAE(ChameleonVQVAEConfig(**size.transformers(), attn_resolutions=[]))


def janus(size: Size) -> nn.Module:
    """The class in transformers: the layers of LlamaGen and Janus under other names."""
    return JanusVQVAE(JanusVQVAEConfig(**size.transformers(), num_patches=8))


def nearest(model: Any, latents: Tensor) -> Tensor:
    """The modules of taming-transformers and transformers, each its own way."""
    answer = model.quantize(latents)[2]
    return answer if isinstance(answer, Tensor) else answer[2]


def logit(model: Any, latents: Tensor) -> Tensor:
    """`GumbelQuantize.forward` with a noise of zero."""
    return functional.softmax(model.quantize.proj(latents), dim=1).argmax(dim=1)


def cosine(model: Any, latents: Tensor) -> Tensor:
    """LlamaGen's and Janus's `VectorQuantizer.forward` with `l2_norm`."""
    vectors = functional.normalize(latents.permute(0, 2, 3, 1).flatten(0, 2), dim=-1)
    entries = functional.normalize(model.quantize.embedding.weight, dim=-1)
    distances = (vectors**2).sum(1, keepdim=True) + (entries**2).sum(1) - 2 * vectors @ entries.T
    return distances.argmin(dim=1)


def dot(model: Any, latents: Tensor) -> Tensor:
    """IBQ's `IndexPropagationQuantize.forward`."""
    logits = torch.einsum("bdhw,nd->bnhw", latents, model.quantize.embedding.weight)
    return functional.softmax(logits, dim=1).max(dim=1, keepdim=True)[1]


def lightning(state: State, folder: Path) -> Path:
    """As taming-transformers, openimages f8 and Meta's Chameleon are published."""
    losses = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4)}
    torch.save({"state_dict": state | losses, "epoch": 3, "global_step": 7}, folder / "last.ckpt")
    return folder / "last.ckpt"


def averaged(state: State, folder: Path) -> Path:
    """As IBQ is: what counts are the averages; the weights beside them are others."""
    averages = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in state.items()}
    other = {name: tensor + 1 for name, tensor in state.items()}
    return lightning(other | averages | {"model_ema.decay": torch.tensor(0.999)}, folder)


def in_llamagens_words(state: State) -> State:
    """Names of Janus in transformers -> LlamaGen's and DeepSeek's."""
    numbers = {"block_1": "0", "attn_1": "1", "block_2": "2"}
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^(encoder\.down|decoder\.up)\.(\d+)\.block", r"\1.\2.res", name)
        name = re.sub(r"^(encoder|decoder)\.(?:down|up)\.", r"\1.conv_blocks.", name)
        name = re.sub(r"\.mid\.(\w+)\.", lambda part: f".mid.{numbers[part[1]]}.", name)
        renamed[name] = tensor
    return renamed | {"quantize.codebook_used": torch.zeros(65536)}


def llamagen(state: State, folder: Path) -> Path:
    """As LlamaGen's training saves it."""
    settings = argparse.Namespace(vq_model="VQ-16", codebook_l2_norm=True)
    torch.save({"model": in_llamagens_words(state), "steps": 7, "args": settings}, folder / "vq_ds16_c2i.pt")
    return folder / "vq_ds16_c2i.pt"


def deepseek(state: State, folder: Path) -> Path:
    """As Janus-Pro is: a part of a whole model's file."""
    part = {f"gen_vision_model.{name}": tensor for name, tensor in in_llamagens_words(state).items()}
    torch.save(part | {"gen_embed.weight": torch.zeros(4, 4)}, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def hugging_face(kind: str) -> Callable[[State, Path], Path]:
    """As transformers saves a whole model, with its config.json."""

    def save(state: State, folder: Path) -> Path:
        part = {f"model.vqmodel.{name}": tensor.contiguous() for name, tensor in state.items()}
        save_file(part | {"lm_head.weight": torch.zeros(4, 4)}, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        return folder / "model.safetensors"

    return save


@dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        make: the publisher's modules, with random weights.
        choose: the publisher's rule: latents (B, D, rows, cols) -> codes, batch-major and row-major.
        save: writes the publisher's file.
        size: official numbers.
        rule: of the family.
        shapes_tell: whether only the official shapes tell the rule, so that of a tiny file it must be named.
    """

    make: Callable[[Size], nn.Module]
    choose: Callable[[Any, Tensor], Tensor]
    save: Callable[[State, Path], Path]
    size: Size
    rule: Rule
    shapes_tell: bool = False


_IBQ = Size(blocks=4)
_EIGHT = Size(dim=8)
FAMILIES = {
    "taming-f16-16384": Family(Taming, nearest, lightning, Size(), "nearest", True),
    "openimages-f8": Family(Gumbel, logit, lightning, Size(mult=(1, 1, 2, 4), codes=8192), "logit"),
    "chameleon": Family(chameleon, nearest, lightning, Size(attention=False, codes=8192), "nearest", True),
    "chameleon-hf": Family(chameleon, nearest, hugging_face("chameleon"), Size(attention=False, codes=8192), "nearest"),
    "llamagen-ds16": Family(janus, cosine, llamagen, _EIGHT, "cosine"),
    "llamagen-ds8": Family(janus, cosine, llamagen, Size(mult=(1, 2, 2, 4), dim=8), "cosine"),
    "janus-pro": Family(janus, cosine, deepseek, _EIGHT, "cosine"),
    "janus-pro-hf": Family(janus, cosine, hugging_face("janus"), _EIGHT, "cosine"),
    "ibq-1024": Family(Taming, dot, averaged, Size(blocks=4, codes=1024), "dot", True),
    "ibq-16384": Family(Taming, dot, averaged, _IBQ, "dot", True),
    "ibq-262144": Family(Taming, dot, averaged, Size(blocks=4, codes=262144), "dot", True),
}
TINY = {"ch": 32, "z": 32, "codes": 96}


def whole_photographs() -> list[Image.Image]:
    """Photographs in scikit-image's and scikit-learn's wheels, as they are: of 300 x 451 to 512 x 512 or 427 x 640."""
    paths = [path for folder in _FOLDERS for name in _PICTURES if (path := folder / name).is_file()]
    return [Image.open(path).convert("RGB") for path in paths]


def photographs(count: int, px: int) -> list[RgbImage]:
    """Square cuts of them, seeded, uint8 (px, px, 3)."""
    pictures, draw = whole_photographs(), np.random.default_rng(5)
    cuts = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        side = int(draw.integers(px, min(picture.size) + 1))
        left, top = (int(draw.integers(0, length - side + 1)) for length in picture.size)
        cuts.append(np.asarray(picture.crop((left, top, left + side, top + side)).resize((px, px))))
    return cuts


@torch.no_grad()
def reference(family: Family, size: Size, images: list[RgbImage]) -> tuple[Any, np.ndarray[Any, Any], Tensor]:
    """The publisher's model, its codes (N, rows, cols), and the latents. Its codebook lies where the latents are."""
    torch.manual_seed(11)
    model: Any = family.make(size).eval()
    for name, parameter in model.named_parameters():  # zeros and ones would hide a mistake
        if parameter.ndim == 1:
            parameter.normal_(float("norm" in name and name.endswith("weight")), 0.1)
    pixels = torch.from_numpy((np.stack(images) / 127.5 - 1.0).astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    latents = torch.cat([model.quant_conv(model.encoder(part)) for part in pixels.split(_AT_ONCE)])
    seen = latents.permute(0, 2, 3, 1).reshape(-1, size.dim)
    if family.rule == "logit":  # around the mean, or one code would always win
        model.quantize.proj.bias.copy_(-model.quantize.proj.weight.flatten(1) @ seen.mean(0))
    else:
        entries = seen[torch.randint(len(seen), (size.codes,))] + 0.5 * seen.std(0) * torch.randn(size.codes, size.dim)
        if family.rule == "dot":
            entries -= seen.mean(0)  # or the longest one would always win
        model.quantize.embedding.weight.copy_(entries * torch.randn(size.codes, 1).mul(0.3).exp())
    codes = torch.cat([family.choose(model, part).flatten() for part in latents.split(_AT_ONCE)])
    return model, codes.reshape(len(images), *latents.shape[2:]).numpy(), latents


def tokenizer_of(path: Path, px: int, rule: Rule | None) -> Tokenizer:
    """What a user gets who names this file."""
    return build_tokenizer(ModelsConfig(tokenizer=str(path)), TokensConfig(size=px, fit="squash", rule=rule), "cpu")


def codes_of(tokenizer: Tokenizer, images: list[RgbImage]) -> np.ndarray[Any, Any]:
    """(N, rows, cols)."""
    return np.stack([tokens.codes[..., 0] for tokens in tokenizer.tokenize(images)])


def measure(name: str, count: int, px: int) -> dict[str, Any]:
    """One family's entry."""
    family, start = FAMILIES[name], time.perf_counter()
    images = photographs(count, px)
    model, expected, latents = reference(family, family.size, images)
    others = {}
    if family.rule != "logit":
        rules = {"nearest": nearest, "dot": dot, "cosine": cosine}
        few = latents[:_AT_ONCE]
        others = {
            rule: float((choose(model, few).flatten().numpy() == expected[:_AT_ONCE].flatten()).mean())
            for rule, choose in rules.items()
            if rule != family.rule
        }
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_of(family.save(dict(model.state_dict()), Path(folder)), px, None)
        del model
        together = codes_of(tokenizer, images)
        alone = np.concatenate([codes_of(tokenizer, [image]) for image in images[:_ALONE]])
    return {
        "name": name,
        "kind": "tokenizer",
        "rule": tokenizer.spec.rule,
        "photographs": count,
        "codes": int(expected.size),
        "distinct": len(np.unique(expected)),
        "codes_equal": float((together == expected).mean()),
        "batch_difference": float((together[:_ALONE] != alone).mean()),
        "equal_by_other_rules": others,
        "seconds": round(time.perf_counter() - start, 1),
    }


def in_baais_words(state: State) -> State:
    """Names of `Emu3VQVAE` in transformers -> those of BAAI's `Emu3VisionVQ`."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"\.(down|up)_block\.", ".", name).replace("middle_block", "mid")
        name = re.sub(r"\.attn_norms\.(\d+)\.", r".attn.\1.norm.", name).replace(".attn_norm.", ".attn_1.norm.")
        short = re.sub(r"\.([qkv])_proj\.", r".\1.", name).replace(".out_proj.", ".proj_out.")
        renamed[short] = tensor[..., None, None] if short != name and tensor.ndim == 2 else tensor
    return renamed


@torch.no_grad()
def emu3(
    folder: Path, images: list[RgbImage], numbers: dict[str, Any], pixels: tuple[int, int], *, baais: bool = True
) -> list[np.ndarray[Any, Any]]:
    """Write a folder of Emu3's tokenizer, and give the codes of transformers' class.

    Args:
        folder: empty.
        images: of any sizes.
        numbers: of `Emu3VQVAEConfig`; the others are official.
        pixels: the fewest, and the most, that an input has.
        baais: write it as BAAI does, and not as transformers.
    """
    torch.manual_seed(11)
    model: Any = Emu3VQVAE(Emu3VQVAEConfig(**numbers)).eval()
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            tensor.normal_(float("norm" in name and name.endswith("weight")), 0.1)
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    factor = model.vision_spatial_factor
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Emu3ImageProcessor(min_pixels=pixels[0], max_pixels=pixels[1], spatial_factor=factor, **half)
    inputs = [processor(image, return_tensors="pt") for image in images]
    seen = [model.encode(each["pixel_values"].float(), each["image_sizes"]).last_hidden_state for each in inputs]
    latents = [model.quant_conv(each.permute(0, 2, 1, 3, 4)).permute(0, 2, 3, 4, 1).flatten(0, 3) for each in seen]
    book = model.quantize.embedding.weight
    every = torch.cat(latents)
    near = every[torch.randint(len(every), (len(book),))] + 0.5 * every.std(0) * torch.randn(book.shape)
    book.copy_(near * torch.randn(len(book), 1).mul(0.3).exp())
    if baais:
        state = {name: tensor.contiguous() for name, tensor in in_baais_words(model.state_dict()).items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"model_type": "Emu3VisionVQ"}))
    else:
        model.save_pretrained(folder)
    processor.save_pretrained(folder)
    codes = [model.quantize(model.quant_conv(each.permute(0, 2, 1, 3, 4)).permute(0, 2, 1, 3, 4)) for each in seen]
    return [grid[0, 0].numpy() for grid in codes]


def measure_emu3(name: str, count: int, px: int) -> dict[str, Any]:
    """The entry of Emu3's tokenizer, on photographs of unlike sizes; inputs have 2 to 8 times px * px pixels.

    At the published size they have 1 to 4 times as many, and the photographs are whole.
    """
    start = time.perf_counter()
    if px == _PUBLISHED:
        images, least = [np.asarray(picture) for picture in whole_photographs()[:count]], px**2
    else:
        sides = np.random.default_rng(6).integers(*_SIDES, (count, 2), endpoint=True)
        cuts = photographs(count, max(_SIDES))
        images = [cut[:height, :width] for cut, (height, width) in zip(cuts, sides, strict=True)]
        least = 2 * px**2
    with tempfile.TemporaryDirectory() as folder:
        expected = emu3(Path(folder), images, {}, (least, 4 * least), baais=name == "emu3")
        tokenizer = tokenizer_of(Path(folder), px, None)
        found = [tokens.codes[..., 0] for tokens in tokenizer.tokenize(images)]
        alone = [tokenizer.tokenize([image])[0].codes[..., 0] for image in images[:_ALONE]]
    pairs = [
        [np.concatenate([grid.ravel() for grid in grids]) for grids in each]
        for each in ((found, expected), (found[:_ALONE], alone))
    ]
    return {
        "name": name,
        "kind": "tokenizer",
        "rule": tokenizer.spec.rule,
        "photographs": len(images),
        "grids": len({grid.shape for grid in expected}),
        "codes": int(pairs[0][1].size),
        "distinct": len(np.unique(pairs[0][1])),
        "codes_equal": float((pairs[0][0] == pairs[0][1]).mean()),
        "batch_difference": float((pairs[1][0] != pairs[1][1]).mean()),
        "seconds": round(time.perf_counter() - start, 1),
    }


def measure_labeler(name: str) -> dict[str, Any]:
    """The entry of a detector, masker or segmenter: on strips, the smallest images of the detector's input width."""
    start = time.perf_counter()
    images = (skimage.data.astronaut()[60:172], skimage.data.coffee()[100:280])
    with tempfile.TemporaryDirectory() as folder:
        return LABELERS[name](name, images, Path(folder)) | {"seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    tokenizers = dict.fromkeys(FAMILIES, measure) | dict.fromkeys(("emu3", "emu3-hf"), measure_emu3)
    names = [*tokenizers, *LABELERS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these families")
    parser.add_argument("--photographs", type=int, default=50)
    parser.add_argument(
        "--size",
        type=int,
        default=64,
        help="pixels of a photograph's side; of Emu3's input 1.4 to 2.8 times as many, or 512: as published",
    )
    options = parser.parse_args()
    found = []
    for name in options.only:
        with redirect_stdout(sys.stderr):  # taming prints what it builds
            if name in tokenizers:
                made = tokenizers[name](name, options.photographs, options.size)
            else:
                made = measure_labeler(name)
        found.append(made)
        print("  ".join(f"{key} {value}" for key, value in found[-1].items()), file=sys.stderr)
    if options.json:
        print(json.dumps({"families": found}, indent=1))


if __name__ == "__main__":
    main()
