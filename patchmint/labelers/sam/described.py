"""Relatives of SAM as maskers, in transformers' own classes: SAM 2, EdgeTAM and SAM-HQ.

SAM 2 (arXiv 2408.00714) differs from SAM in that a picture is squashed into the square input, masks cover all of it,
and of a box's masks the model itself chooses (`dynamic_multimask_via_stability`). EdgeTAM (arXiv 2501.07256) is a SAM 2
with another backbone. SAM-HQ (arXiv 2306.01567) adds to SAM's mask that of a token which sees finer features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import EdgeTamConfig, EdgeTamModel, Sam2Config, Sam2Model, SamHQConfig, SamHQModel

from patchmint.compute.devices import computing_fully, store_products
from patchmint.labelers.sam.arch import DESCRIBED, DescribedArch
from patchmint.labelers.sam.masker import SamMasker
from patchmint.weights.described import load_described
from patchmint.weights.loading import StateFile

_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
# ImageNet's, in levels (`Sam2ImageProcessor`).

_OF_VIDEO = (
    "mask_downsample",
    "memory_",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "object_pointer_proj",
    "spatial_perceiver",
    "occlusion_spatial_embedding_parameter",
    "temporal_positional_encoding_projection_layer",
)
# Published files hold these besides, for films.

_PLACES = (
    "prompt_encoder.shared_embedding.positional_embedding",
    "shared_image_embedding.positional_embedding",
)
# One tensor, which files hold once or twice.


class Sam2Masker(SamMasker):
    """Gives the mask of each box with SAM 2. Settings are as of `SamMasker`; `compiled` changes nothing."""

    _squashes = True

    def _parts(self, precision: torch.dtype) -> tuple[Any, Any]:
        return _Encoder(self._model, precision), _Decoder(self._model)

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(each, device=self._model.device)[:, None, None] for each in (_MEAN, _STD))
        return mean, std


class _Encoder:
    """Pictures -> feature maps."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        store_products(model.vision_encoder, dtype)
        self._model = model
        self.image_size: int = model.prompt_encoder.input_image_size
        finest = model.backbone_feature_sizes[0]
        self.numbers: int = finest[0] * finest[1] * model.hidden_dim

    def compile(self) -> None:
        """Nothing: the class runs as it is."""

    def __call__(self, squares: Tensor) -> list[Tensor]:
        """Three maps (B, C, h, w) of pictures (B, 3, image_size, image_size), from fine to coarse: float32."""
        return [each.float() for each in self._model.get_image_embeddings(squares)]


class _Decoder:
    """Boxes -> logits."""

    def __init__(self, model: Any) -> None:
        self._model = model
        with torch.no_grad():
            self._places = model.get_image_wide_positional_embeddings()
        finest = model.backbone_feature_sizes[0]
        self.numbers: int = finest[0] * finest[1] * model.mask_decoder.conv_s0.out_channels

    def __call__(self, maps: list[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        """Decode boxes (N, 4), XYXY in input pixels, of pictures (N,): logits (N, n, n); positive = mask."""
        *fine, coarse = (each[images] for each in maps)
        with computing_fully(boxes.device):
            sparse, dense = self._model.prompt_encoder(
                input_points=None, input_labels=None, input_boxes=boxes[:, None], input_masks=None
            )
            logits = self._model.mask_decoder(
                image_embeddings=coarse,
                image_positional_embeddings=self._places.expand(len(boxes), -1, -1, -1),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
                high_resolution_features=fine,
            )[0]
        return torch.as_tensor(logits[:, 0, 0])


class SamHqMasker(Sam2Masker):
    """Gives the mask of each box with SAM-HQ. Settings are as of `Sam2Masker`."""

    _squashes = False

    def _parts(self, precision: torch.dtype) -> tuple[Any, Any]:
        return _HqEncoder(self._model, precision), _HqDecoder(self._model)


class _HqEncoder:
    """Pictures -> embeddings, and what the first block makes of them that sees whole pictures."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        store_products(model.vision_encoder, dtype)
        self._model = model
        self.image_size: int = model.config.vision_config.image_size
        vision = model.config.vision_config
        self.numbers: int = (vision.image_size // vision.patch_size) ** 2 * vision.hidden_size

    def compile(self) -> None:
        """Nothing: the class runs as it is."""

    def __call__(self, squares: Tensor) -> list[Tensor]:
        """(B, C, h, w) and (B, h, w, D) of pictures (B, 3, image_size, image_size): float32."""
        found, between = self._model.get_image_embeddings(squares)
        return [found.float(), between[0].float()]


class _HqDecoder:
    """Boxes -> logits."""

    def __init__(self, model: Any) -> None:
        self._model = model
        with torch.no_grad():
            self._places = model.get_image_wide_positional_embeddings()
        self.numbers: int = self._places.numel()

    def __call__(self, maps: list[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        """Decode boxes (N, 4), XYXY in input pixels, of pictures (N,), in their order: logits (N, n, n)."""
        return torch.cat(
            [
                self._of_picture([each[image : image + 1] for each in maps], boxes[images == image])
                for image in torch.unique(images).tolist()
            ]
        )

    def _of_picture(self, maps: list[Tensor], boxes: Tensor) -> Tensor:
        embedding, between = maps
        with computing_fully(boxes.device):
            sparse, dense = self._model.prompt_encoder(
                input_points=None, input_labels=None, input_boxes=boxes[None], input_masks=None
            )
            logits = self._model.mask_decoder(
                image_embeddings=embedding,
                image_positional_embeddings=self._places,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
                hq_token_only=False,
                intermediate_embeddings=[between],
            )[0]
        return torch.as_tensor(logits[0, :, 0])


_CLASSES = {
    "sam2": (Sam2Config, Sam2Model, Sam2Masker),
    "edgetam": (EdgeTamConfig, EdgeTamModel, Sam2Masker),
    "sam_hq": (SamHQConfig, SamHQModel, SamHqMasker),
}


def load_described_masker(state: StateFile, arch: DescribedArch) -> tuple[type[SamMasker], Any]:
    """Build the model of a checkpoint in transformers' layout and load it, every tensor accounted for.

    Returns:
        The class of the masker, and the model that it takes.

    Raises:
        WeightsMismatchError: tensors are missing, left over or misshapen, or config.json describes another model.
    """
    config, model, masker = _CLASSES[arch.kind]
    places = [state.tensors[name] for name in _PLACES if name in state.tensors]
    tensors = dict.fromkeys(_PLACES, places[0]) | state.tensors if places else state.tensors
    made = load_described(
        lambda: model(config(**{name: _plain(part) for name, part in arch.config.items()})),
        replace(state, tensors=tensors),
        what=DESCRIBED[arch.kind],
        ignored=_OF_VIDEO,
    )
    return masker, made


def _plain(part: Any) -> dict[str, Any]:
    """A part of a film model's config as one of a picture model's."""
    return {name: value for name, value in part.items() if name != "model_type"}
