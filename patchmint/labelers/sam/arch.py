"""What a SAM is built from, and the published ones. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field

from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.labelers.sam.hugging_face import by_upstreams_names
from patchmint.weights.architecture import ARCH_METADATA_KEY, Architecture, Shaped
from patchmint.weights.folder import buildable, described, unwrapped
from patchmint.weights.recognise import looks_like

Tensor = TypeVar("Tensor")

_PATCH_EMBEDDING = "image_encoder.patch_embed.proj.weight"
_BLOCK_WEIGHT = "image_encoder.blocks.{}.norm1.weight"

# Metadata comes from outside: bounds keep a bad file from asking for terabytes of weights.
_LARGEST, _DEEPEST = 8192, 256
_Width = Annotated[int, Field(ge=1, le=_LARGEST)]
_Depth = Annotated[int, Field(ge=1, le=_DEEPEST)]


@dataclass(frozen=True, kw_only=True)
class SamArch(Architecture):
    """What fixes the shapes of SAM's weights. Defaults are upstream's (`segment_anything.build_sam._build_sam`).

    Attributes:
        embed_dim: width of the image encoder (a ViT).
        depth: blocks of the image encoder.
        num_heads: attention heads of the image encoder.
        global_attn_indexes: blocks that attend over the whole image; the others attend in windows.
        image_size: side of the square input, in pixels.
        patch_size: side of a patch, in pixels.
        window_size: side of an attention window, in patches.
        out_chans: width of the image embedding and of the mask decoder; a multiple of 16.
        decoder_mlp_dim: hidden width of the decoder's MLPs.

    Raises:
        ConfigError: the sizes don't fit together.
    """

    WHAT = "SAM model"
    __pydantic_config__ = ConfigDict(extra="forbid")

    embed_dim: _Width
    depth: _Depth
    num_heads: _Width
    global_attn_indexes: tuple[int, ...]
    image_size: _Width = 1024
    patch_size: _Width = 16
    window_size: _Width = 14
    out_chans: _Width = 256
    decoder_mlp_dim: _Width = 2048

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads or self.image_size % self.patch_size or self.out_chans % 16:
            raise ConfigError(
                "SAM sizes don't fit together: embed_dim must be a multiple of num_heads, image_size of patch_size, "
                f"out_chans of 16; got {self}"
            )
        if not all(0 <= index < self.depth for index in self.global_attn_indexes):
            raise ConfigError(f"global_attn_indexes must lie in 0..{self.depth - 1}; got {self.global_attn_indexes}")

    def to_json(self) -> str:
        """See `Architecture`; of this one the fields are sorted."""
        return json.dumps(asdict(self), sort_keys=True)


OFFICIAL: Mapping[str, SamArch] = MappingProxyType(
    {
        "sam-vit-b": SamArch(embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11)),
        "sam-vit-l": SamArch(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)),
        "sam-vit-h": SamArch(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31)),
    }
)
"""The official models by name (`segment_anything.build_sam`)."""

TINY = SamArch(
    embed_dim=32,
    depth=2,
    num_heads=2,
    global_attn_indexes=(1,),
    image_size=128,
    window_size=5,
    out_chans=32,
    decoder_mlp_dim=64,
)
"""The same classes at a size that runs in milliseconds. Windows of 5 don't divide 8 patches, as 14 don't divide 64."""


DESCRIBED = {"sam2": "SAM 2", "edgetam": "EdgeTAM", "sam_hq": "SAM-HQ"}
"""Maskers that run in transformers' classes, by `model_type`: their names."""


@dataclass(frozen=True)
class DescribedArch:
    """What such a masker is built from, as transformers describes it.

    Attributes:
        kind: which of `DESCRIBED`.
        config: `vision_config`, `prompt_encoder_config` and `mask_decoder_config`.
    """

    kind: str
    config: Mapping[str, Mapping[str, Any]]

    @property
    def squashes(self) -> bool:
        """Whether a picture is squashed into the input, in the place of padding it."""
        return self.kind != "sam_hq"

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return _side(self.config["prompt_encoder_config"].get("image_size", 1024))

    @property
    def patch_size(self) -> int:
        """Pixels on a side of a position of its finest feature map."""
        vision = self.config["vision_config"]
        if self.squashes:
            return _side(vision.get("backbone_config", {}).get("patch_stride", 4))
        return _side(vision.get("patch_size", 16))

    @property
    def embed_dim(self) -> int:
        """The most numbers of such a position."""
        vision = self.config["vision_config"]
        return int(vision.get("fpn_hidden_size", 256) if self.squashes else vision.get("hidden_size", 768))

    @property
    def out_chans(self) -> int:
        """Width of the mask decoder."""
        return int(self.config["mask_decoder_config"].get("hidden_size", 256))


@dataclass(frozen=True)
class Sam3Arch:
    """What a SAM 3 is built from, as transformers describes it.

    Attributes:
        config: of `Sam3Config`.
    """

    config: Mapping[str, Any]

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return _side(self._backbone.get("image_size", 1008))

    @property
    def working(self) -> int:
        """Numbers in the largest tensor that runs through it for one picture and phrase."""
        patches = (self.image_size // _side(self._backbone.get("patch_size", 14))) ** 2
        finest = 16 * int((self.config.get("vision_config") or {}).get("fpn_hidden_size", 256))
        return patches * max(int(self._backbone.get("intermediate_size", 4736)), finest)

    @property
    def _backbone(self) -> Mapping[str, Any]:
        return (self.config.get("vision_config") or {}).get("backbone_config") or {}


_OF_SAM3 = "dot_product_scoring.query_proj.weight"


def own_of_sam3(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a SAM 3 alone: published files hold a tracker for films besides."""
    return unwrapped(tensors, [_OF_SAM3])


def infer_sam3(tensors: Mapping[str, Shaped], metadata: Mapping[str, str]) -> Sam3Arch:
    """Tell whether a checkpoint holds SAM 3, in transformers' layout.

    Raises:
        WeightsMismatchError: it doesn't, or config.json isn't beside it.
    """
    config = described(metadata)
    if config.get("model_type") == "sam3_video":
        config = config.get("detector_config") or {}
    if _OF_SAM3 in own_of_sam3(tensors) and config.get("model_type") == "sam3":
        return buildable(Sam3Arch(config), "SAM 3", lambda arch: arch.image_size > 0 and arch.working > 0)
    raise WeightsMismatchError(
        "the checkpoint isn't SAM 3 in transformers' layout (its folder has config.json and tokenizer.json besides)."
        f"{looks_like(tensors)}"
    )


def infer_arch(tensors: Mapping[str, Shaped], metadata: Mapping[str, str]) -> SamArch | DescribedArch:
    """Tell which SAM, or relative of SAM, a checkpoint holds.

    Args:
        tensors: the checkpoint's tensors by name.
        metadata: its text entries; `ARCH_METADATA_KEY`, where present, decides.

    Raises:
        WeightsMismatchError: it isn't SAM, or a SAM of sizes that are neither official nor written in the metadata.
    """
    written = SamArch.from_metadata(metadata)
    if written is not None:
        return written
    config = described(metadata)
    if config.get("model_type") == "sam":
        return _of_config(config)
    kind = str(config.get("model_type")).removesuffix("_video")
    if kind in DESCRIBED:
        return _described_by(kind, config)
    tensors = by_upstreams_names(tensors)
    known = ", ".join(OFFICIAL)
    patches = tensors.get(_PATCH_EMBEDDING)
    if patches is None or not patches.ndim:
        raise WeightsMismatchError(
            f"the checkpoint isn't a SAM model (it has no {_PATCH_EMBEDDING}); give one of {known}, "
            f"or a safetensors file with {ARCH_METADATA_KEY!r} in its metadata.{looks_like(tensors)}"
        )
    for arch in OFFICIAL.values():
        last, beyond = _BLOCK_WEIGHT.format(arch.depth - 1), _BLOCK_WEIGHT.format(arch.depth)
        if patches.shape[0] == arch.embed_dim and last in tensors and beyond not in tensors:
            return arch
    raise WeightsMismatchError(
        f"the checkpoint is a SAM of width {patches.shape[0]}, which is none of the known ones ({known}); "
        f"for another size, save it as safetensors with {ARCH_METADATA_KEY!r} in its metadata"
    )


def _of_config(config: Mapping[str, Any]) -> SamArch:
    """The architecture in the words of transformers' `SamConfig`; what isn't said there is as in that class."""
    vision, decoder = config.get("vision_config") or {}, config.get("mask_decoder_config") or {}
    try:
        return SamArch(
            embed_dim=vision.get("hidden_size", 768),
            depth=vision.get("num_hidden_layers", 12),
            num_heads=vision.get("num_attention_heads", 12),
            global_attn_indexes=tuple(vision.get("global_attn_indexes", (2, 5, 8, 11))),
            image_size=vision.get("image_size", 1024),
            patch_size=vision.get("patch_size", 16),
            window_size=vision.get("window_size", 14),
            out_chans=vision.get("output_channels", 256),
            decoder_mlp_dim=decoder.get("mlp_dim", 2048),
        )
    except (ConfigError, TypeError, AttributeError) as error:
        raise WeightsMismatchError(f"the config.json beside the file describes no SAM: {error}") from error


def _described_by(kind: str, config: Mapping[str, Any]) -> DescribedArch:
    parts = {name: config.get(name) or {} for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}
    return buildable(DescribedArch(kind, parts), DESCRIBED[kind], _is_bounded)


def _is_bounded(arch: DescribedArch) -> bool:
    vision = arch.config["vision_config"]
    backbone = vision.get("backbone_config", {})
    depth = sum(backbone.get("blocks_per_stage", ())) + int(vision.get("num_hidden_layers", 0))
    return (
        max(map(abs, _numbers(arch.config)), default=0) <= _LARGEST
        and depth <= _DEEPEST
        and min(arch.image_size, arch.patch_size, arch.embed_dim, arch.out_chans) > 0
        and (arch.kind != "edgetam" or _is_repvit(backbone))
    )


def _is_repvit(backbone: Mapping[str, Any]) -> bool:
    """Whether timm makes a RepViT of it: by other names and arguments it would fetch and open files."""
    named = re.fullmatch(r"repvit_\w+(\.\w+)?", backbone["architecture"])
    return named is not None and set(backbone.get("model_args", ())) <= {"in_chans", "features_only", "out_indices"}


def _numbers(value: object) -> Iterator[float]:
    """All numbers in what JSON holds."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int | float):
        yield value


def _side(length: Any) -> int:
    """A number that may be written once for both axes."""
    return int(length[0] if isinstance(length, list) else length)
