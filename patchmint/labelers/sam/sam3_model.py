"""SAM 3's parts: transformers' `Sam3Model`, called so that a picture's phrases share what doesn't depend on them.

These are its features; the first self-attention of the DETR encoder, which reads the text only behind that; and what
the mask decoder makes of the fine features, since the convolution of a sum is the sum of convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import Sam3Config, Sam3Model
from transformers.models.sam3.modeling_sam3 import box_cxcywh_to_xyxy, inverse_sigmoid

from patchmint.compute.devices import computing_any_shape_in, computing_fully, store_products, works_in_parts
from patchmint.labelers.sam.arch import Sam3Arch, own_of_sam3
from patchmint.weights.described import load_described
from patchmint.weights.loading import StateFile
from patchmint.weights.words import clip_words

_ROWS = 1024
# Positions that pass the DETR encoder's MLPs together, where these then stay in a cache: a fifth less time.


@dataclass(frozen=True)
class Texts:
    """Phrases as the model reads them.

    Attributes:
        features: float32 (N, T, C); T = tokens of the longest.
        read: bool (N, T), which tokens are a phrase's own.
    """

    features: Tensor
    read: Tensor

    def only(self, rows: Sequence[int]) -> Texts:
        """Those of these numbers."""
        return Texts(self.features[rows], self.read[rows])


@dataclass(frozen=True)
class Picture:
    """What the phrases of a picture share.

    Attributes:
        coarse: float32 (1, positions, C), with all that comes before a text is read.
        places: (1, positions, C), where its positions are.
        fine: maps (1, C, h, w), each twice as fine as the one before it; the first as `coarse`, times 2.
    """

    coarse: Tensor
    places: Tensor
    fine: Sequence[Tensor]


@dataclass(frozen=True)
class Matched:
    """What Q queries find of N phrases in a picture.

    Attributes:
        texts: the phrases.
        encoded: float32 (N, positions, C), the picture as the text lets it be seen.
        queries: float32 (N, Q, C).
        scores: float32 (N, Q), 0..1.
        boxes: float32 (N, Q, 4), XYXY as shares of the picture.
    """

    texts: Texts
    encoded: Tensor
    queries: Tensor
    scores: Tensor
    boxes: Tensor


class Parts:
    """The steps from pictures and phrases to masks."""

    def __init__(self, model: Any, precision: torch.dtype) -> None:
        """Take over a `Sam3Model` on its device; changed in place.

        Args:
            model: the model.
            precision: number format of the large products that encode pictures; all that is found in these is float32.
        """
        self._model, self._precision, self._device = model, precision, model.device
        self._masks = model.mask_decoder
        self._pixels = self._masks.pixel_decoder
        for part in (model.vision_encoder, model.detr_encoder, self._pixels, self._masks.prompt_cross_attn):
            store_products(part, precision)
        self._doubling = [_doubling(layer.weight) for layer in self._pixels.conv_layers]

    def texts(self, ids: Tensor, read: Tensor) -> Texts:
        """Read phrases: ids of tokens, int64 (N, T), and which are a phrase's own, bool (N, T)."""
        with computing_fully(self._device):
            return Texts(self._model.get_text_features(ids, read).pooler_output, read)

    def pictures(self, pixels: Tensor) -> list[Picture]:
        """See pictures, float32 (B, 3, side, side), -1..1."""
        with computing_any_shape_in(self._precision, self._device):
            seen = self._model.get_vision_features(pixels)
            *fine, coarse = seen.fpn_hidden_states[:-1]  # nothing looks at the last
            # anew, because the model's are rounded to the format of its features
            place = self._model.vision_encoder.neck.position_encoding
            places = place(coarse[:1].shape, self._device, torch.float32).flatten(2).mT
            hidden = _attended(self._model.detr_encoder.layers[0], coarse.flatten(2).mT.float(), places)
            convolved = [layer(each) for layer, each in zip(self._pixels.conv_layers, reversed(fine), strict=False)]
        rows = (slice(row, row + 1) for row in range(len(pixels)))
        return [Picture(hidden[row], places, [each[row] for each in convolved]) for row in rows]

    def match(self, picture: Picture, texts: Texts) -> Matched:
        """Look for phrases."""
        model, mask = self._model, texts.read[:, None, None]
        hidden = picture.coarse
        with computing_any_shape_in(self._precision, self._device):
            for number, layer in enumerate(model.detr_encoder.layers):
                hidden = _attended(layer, hidden, picture.places) if number else hidden
                asked = layer.layer_norm2(hidden).expand(len(texts.read), -1, -1)
                hidden = hidden + layer.cross_attn(asked, texts.features, texts.features, mask)[0]
                parts = hidden.split(_ROWS if works_in_parts(self._device) else hidden.shape[1], dim=1)
                hidden = torch.cat([part + layer.mlp(layer.layer_norm3(part)) for part in parts], dim=1)
        height, width = (side // 2 for side in picture.fine[0].shape[2:])
        with computing_any_shape_in(torch.float32, self._device):
            found = model.detr_decoder(
                vision_features=hidden,
                text_features=texts.features,
                vision_pos_encoding=picture.places.expand(len(hidden), -1, -1),
                text_mask=texts.read,
                spatial_shapes=torch.tensor([[height, width]], device=self._device),
            )
            queries = found.intermediate_hidden_states[-1]
            boxes = inverse_sigmoid(found.reference_boxes[-1]) + model.detr_decoder.box_head(queries)
            logits = model.dot_product_scoring(queries[None], texts.features, texts.read)[0, ..., 0]
        scores = logits.sigmoid() * found.presence_logits[-1].sigmoid()
        return Matched(texts, hidden, queries, scores, box_cxcywh_to_xyxy(boxes.sigmoid()))

    def features_of(self, picture: Picture, matched: Matched, row: int) -> Tensor:
        """The picture's fine features as one of the phrases lets them be seen: float32 (C, h, w)."""
        masks, one = self._masks, [row]
        texts, hidden = matched.texts.only(one), matched.encoded[one]
        with computing_any_shape_in(self._precision, self._device):
            asked = masks.prompt_cross_attn_norm(hidden)
            read = masks.prompt_cross_attn(asked, texts.features, texts.features, texts.read[:, None, None])[0]
            shape = [side // 2 for side in picture.fine[0].shape[2:]]
            seen = (hidden + read).mT.unflatten(2, shape)
            for doubling, norm, fine in zip(self._doubling, self._pixels.norms, picture.fine, strict=False):
                seen = functional.conv_transpose2d(seen, doubling, stride=2, padding=1) + fine
                seen = norm(seen).relu_()
        return torch.as_tensor(seen[0].float())

    def logits(self, features: Tensor, queries: Tensor) -> Tensor:
        """Logits (N, h, w) of the masks of queries (N, C). These are projected, of which there are few, not pixels."""
        with computing_fully(self._device):
            wanted, head = self._masks.mask_embedder(queries), self._masks.instance_projection
            of_pixels = (wanted @ head.weight[:, :, 0, 0]) @ features.flatten(1)
            return torch.as_tensor((of_pixels + (wanted @ head.bias)[:, None]).unflatten(1, features.shape[1:]))


def _attended(layer: Any, hidden: Tensor, places: Tensor) -> Tensor:
    """The self-attention of a layer of the DETR encoder."""
    normed = layer.layer_norm1(hidden)
    placed = normed + places
    return torch.as_tensor(hidden + layer.self_attn(placed, placed, normed)[0])


def _doubling(weight: Tensor) -> Tensor:
    """Weights (in, out, 4, 4) with which `conv_transpose2d` doubles a map and convolves it with (out, in, 3, 3) in one.

    Of three pixels of the doubled map that lie side by side, two are the same.
    """
    sums = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.float32)
    return torch.einsum("oiyx,ay,bx->ioab", weight.float(), sums, sums).to(weight.dtype).contiguous()


def load_sam3(state: StateFile, arch: Sam3Arch) -> tuple[Any, Tokenizer]:
    """Build the SAM 3 of a checkpoint in transformers' layout, every tensor accounted for, and its text tokenizer.

    Raises:
        WeightsMismatchError: tensors are missing, left over or misshapen, or config.json or tokenizer.json describes
            another model.
    """
    state = replace(state, tensors=own_of_sam3(state.tensors))
    model = load_described(lambda: Sam3Model(Sam3Config(**arch.config)), state, what="SAM 3")
    text = model.config.text_config
    words = clip_words(
        state.path.with_name("tokenizer.json"), tokens=text.max_position_embeddings, known=text.vocab_size
    )
    return model, words
