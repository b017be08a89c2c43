"""What a file of Emu3's tokenizer holds, in BAAI's layout or in transformers'. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from patchmint.config.annotator import Rule
from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.geometry.native import NativeGrid, Resize
from patchmint.weights.architecture import Shaped
from patchmint.weights.folder import INPUT, described, renamed, unwrapped

Tensor = TypeVar("Tensor")

_SIGN = "encoder.time_conv.0.conv.conv.weight"
_TIME = re.compile(r"encoder\.time_conv\.\d+\.conv\.conv\.weight")
_NAMES = (
    (r"^(en|de)coder\.(down|up)\.", r"\1coder.\2_block.\2."),
    (r"^(en|de)coder\.mid\.", r"\1coder.middle_block."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.attn_1\.norm\.", ".attn_norm."),
    (r"\.([qkv])\.(weight|bias)$", r".\1_proj.\2"),
    (r"\.proj_out\.(weight|bias)$", r".out_proj.\1"),
)
# BAAI's names and what transformers calls the same; its 1 x 1 convolutions are matrices there.


@dataclass(frozen=True)
class Emu3Arch:
    """The shape of the model, and what becomes of an image.

    Attributes:
        config: of transformers' `Emu3VQVAEConfig`.
        grid: the codes' grid on an image; transformers' `smart_resize`.
        mean: what is taken from pixels of 0..1, by channel.
        std: what these are divided by then.
        rule: how codes are chosen.
    """

    config: Mapping[str, Any]
    grid: NativeGrid
    mean: tuple[float, ...]
    std: tuple[float, ...]

    rule: ClassVar[Rule] = "nearest"

    @property
    def ch(self) -> int:
        """Channels of the first level."""
        return int(self.config["base_channels"])

    @property
    def factor(self) -> int:
        """Input pixels along one side of a code's cell."""
        return self.grid.patch_px


def is_emu3(tensors: Mapping[str, Shaped]) -> bool:
    """Whether a file holds Emu3's tokenizer, alone or as a part of Emu3: only it has convolutions in time."""
    return any(name.endswith(_SIGN) for name in tensors)


def by_transformers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tokenizer's tensors by the names of transformers' `Emu3VQVAE`."""
    return renamed(unwrapped(tensors, [_SIGN]), _NAMES)


def infer_emu3(tensors: Mapping[str, Shaped], metadata: Mapping[str, str]) -> Emu3Arch:
    """Tell the architecture from shapes, and the input from the preprocessor_config.json beside the file.

    Without that file it is as published: 512 x 512 to 1024 x 1024 pixels, normalised to -1..1.

    Raises:
        WeightsMismatchError: there are other tensors than such a model has, or numbers that can't be.
    """
    named, told = by_transformers_names(tensors), described(metadata, INPUT)
    part_of = re.compile(r"encoder\.down_block\.down\.(\d+)\.(\w+)\.(\d+)\.").match
    parts = [match for match in map(part_of, named) if match]
    levels = 1 + max((int(part[1]) for part in parts), default=0)
    try:
        ch, latent = (int(named[f"encoder.conv_{end}.weight"].shape[0]) for end in ("in", "out"))
        wide = [int(named[f"encoder.down_block.down.{level}.block.0.conv1.weight"].shape[0]) for level in range(levels)]
        codes, length = named["quantize.embedding.weight"].shape
        config = {
            "codebook_size": int(codes),
            "embed_dim": int(length),
            "latent_channels": latent,
            "base_channels": ch,
            "channel_multiplier": [channels // ch for channels in wide],
            "num_res_blocks": 1 + max(int(part[3]) for part in parts if part[2] == "block"),
            "attn_resolutions": sorted({int(part[1]) for part in parts if part[2] == "attn"}),
            "hidden_size": wide[-1],
            "temporal_downsample_factor": 1 << sum(_TIME.fullmatch(name) is not None for name in named),
        }
        factor = 1 << (levels - 1)
        least, most = (int(told.get(f"{end}_pixels", side**2)) for end, side in (("min", 512), ("max", 1024)))
        mean, std = (tuple(map(float, told.get(f"image_{name}") or (0.5,) * 3)) for name in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or not all(std):
            raise ValueError(f"image_mean {mean} or image_std {std}")
        grid = NativeGrid(factor, 1, factor, Resize.SMART, least, most)
    except (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError, ConfigError) as error:
        message = f"the file isn't a whole tokenizer of Emu3, or the {INPUT} beside it is wrong: {error}"
        raise WeightsMismatchError(message) from error
    return Emu3Arch(config, grid, mean, std)
