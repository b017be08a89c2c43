"""Detectors and maskers in Hugging Face's layout against transformers' classes on the same weights, for `families.py`.

The classes see one image at a time: they are wrong for images that are padded to each other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gpu_transformers import detector_of, sam_of
from torch import Tensor
from transformers import (
    CLIPTokenizer,
    EdgeTamConfig,
    EdgeTamModel,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
    SamImageProcessor,
)

from patchmint.config import LabelsConfig, ModelsConfig
from patchmint.geometry.rle import Masks, decode_mask
from patchmint.interfaces import Detections
from patchmint.labelers.build import build_segmenter, check_segmenter
from patchmint.labelers.grounded_sam import build_grounded_sam, build_masker
from patchmint.labelers.grounding_dino import arch as dino
from patchmint.labelers.grounding_dino.detector import GroundingDino
from patchmint.labelers.grounding_dino.encoders import encode_images, encode_prompts
from patchmint.labelers.grounding_dino.model import load_grounding_dino
from patchmint.labelers.grounding_dino.prompts import Prompt, Vocabulary, caption_prompts
from patchmint.labelers.grounding_dino.transformer import propose, refine
from patchmint.labelers.sam import arch as sam
from patchmint.labelers.sam.masks import scale_boxes
from patchmint.types import RgbImage, Size, Text
from patchmint.weights.loading import load_named

CAPTIONS = ("a woman in an orange suit. a flag? a rocket behind her", "a cup of coffee on a wooden table")
_CPU = torch.device("cpu")
_SWIN_T = dino.OFFICIAL["groundingdino-swint-ogc"]
_TINY = replace(dino.TINY, decoder_layers=3, swin_depths=(1, 2, 1, 1), text_vocabulary=1024)

_SWIN_L = replace(_SWIN_T, swin_dim=192, swin_depths=(2, 2, 18, 2), swin_heads=(6, 12, 24, 48), swin_window=12)

DETECTORS = {
    "grounding-dino-hf": (_SWIN_T, _TINY),
    "mm-grounding-dino-hf": tuple(replace(arch, family="mm-grounding-dino") for arch in (_SWIN_T, _TINY)),
    "llmdet-large-hf": tuple(
        replace(arch, family="mm-grounding-dino", levels=5, backbone_stages=(0, 1, 2, 3))
        for arch in (_SWIN_L, replace(_TINY, queries=1000))
    ),
}
"""By name: the architecture of official size, and a tiny one. MM-Grounding-DINO and LLMDet are alike in every size; the
large ones see a level more. Their finest map has positions at the border of the picture, where no box is proposed;
so many queries get there, too."""


def _owlv2(side: int, hidden: int, text: int, layers: int, words: int) -> tuple[Any, Any]:
    """An OWLv2 with patches of 16, and heads of 64 numbers or two heads."""
    parts = (
        {"hidden_size": width, "num_attention_heads": max(2, width // 64), "intermediate_size": 4 * width}
        for width in (hidden, text)
    )
    vision, reader = ({**part, "num_hidden_layers": layers} for part in parts)
    config = Owlv2Config(
        vision_config=vision | {"image_size": side},
        text_config=reader | {"vocab_size": words, "bos_token_id": 512, "eos_token_id": 513},
        projection_dim=text,
    )
    model = Owlv2ForObjectDetection(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model, Owlv2ImageProcessor(size={"height": side, "width": side})


PHRASE_DETECTORS = {"owlv2": (partial(_owlv2, 960, 768, 512, 12, 49408), partial(_owlv2, 64, 32, 24, 2, 514))}
"""By name, as `MASKERS`: base with patches of 16, the smallest published one."""


def _sam(arch: sam.SamArch, *, hq: bool = False) -> tuple[Any, Any]:
    pad = {"height": arch.image_size, "width": arch.image_size}
    return sam_of(arch, hq=hq), SamImageProcessor(size={"longest_edge": arch.image_size}, pad_size=pad)


def _sam2(side: int, width: int, depths: Sequence[int], windows: Sequence[int], everywhere: Sequence[int]) -> Any:
    """SAM 2.1's tiny, the smallest published one, or a smaller one."""
    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": width,
        "image_size": [side, side],
        "blocks_per_stage": list(depths),
        "embed_dim_per_stage": [width << stage for stage in range(4)],
        "window_size_per_stage": list(windows),
        "global_attention_blocks": list(everywhere),
    }
    vision = {
        "backbone_config": hiera,
        "backbone_channel_list": [width << stage for stage in (3, 2, 1, 0)],
        "backbone_feature_sizes": [[side // 4] * 2, [side // 8] * 2, [side // 16] * 2],
    }
    config = Sam2Config(vision_config=vision, prompt_encoder_config={"image_size": side})
    return Sam2Model(config), Sam2ImageProcessor(size={"height": side, "width": side})


def _edgetam(side: int) -> tuple[Any, Any]:
    """An EdgeTAM for squares of a side; its backbone comes in one size."""
    backbone = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    vision = {
        "backbone_config": {
            "model_type": "timm_wrapper",
            "architecture": "repvit_m1.dist_in1k",
            "num_classes": 1000,
            "model_args": backbone,
        },
        "backbone_feature_sizes": [[side // stride] * 2 for stride in (4, 8, 16)],
    }
    config = EdgeTamConfig(vision_config=vision, prompt_encoder_config={"image_size": side})
    return EdgeTamModel(config), Sam2ImageProcessor(size={"height": side, "width": side})


MASKERS = {
    "sam-hf": (partial(_sam, sam.OFFICIAL["sam-vit-b"]), partial(_sam, sam.TINY)),
    "sam-hq": tuple(partial(_sam, arch, hq=True) for arch in (sam.OFFICIAL["sam-vit-b"], sam.TINY)),
    "sam2.1": (
        partial(_sam2, 1024, 96, (1, 2, 7, 2), (8, 4, 14, 7), (5, 7, 9)),
        partial(_sam2, 128, 16, (1, 1, 2, 1), (8, 4, 5, 2), (3,)),
    ),
    "edgetam": (partial(_edgetam, 1024), partial(_edgetam, 128)),
}
"""By name: what makes a model of official size and its processor, and what makes tiny ones."""


def _sam3(side: int, width: int, hidden: int, layers: int, queries: int, pretrained: int, window: int) -> Any:
    """A SAM 3 with heads of 64 or 8 numbers; what isn't given is official."""
    heads, last = {"num_attention_heads": max(2, hidden // 64)}, {"global_attn_indexes": [layers - 1]}
    part = {"hidden_size": width, "num_layers": min(layers, 6), "num_attention_heads": max(2, width // 32)}
    part |= {"intermediate_size": 8 * width}
    backbone = {"model_type": "sam3_vit_model", "hidden_size": hidden, "num_hidden_layers": layers, **heads}
    backbone |= {"image_size": side, "pretrain_image_size": pretrained, "window_size": window}
    backbone |= {"intermediate_size": 4736 if hidden == 1024 else 2 * hidden, **({} if layers == 32 else last)}
    text = {"model_type": "clip_text_model", "hidden_size": hidden, "projection_dim": width, **heads}
    text |= {"num_hidden_layers": min(layers, 24), "intermediate_size": 4 * hidden, "max_position_embeddings": 32}
    positions = side // 14
    vision = {"fpn_hidden_size": width, "backbone_feature_sizes": [[positions * n] * 2 for n in (4, 2, 1)]}
    config = Sam3Config(
        vision_config=vision | {"backbone_config": backbone},
        text_config=text | {"vocab_size": 49408 if layers == 32 else 514, "bos_token_id": 512, "eos_token_id": 513},
        geometry_encoder_config=part | {"num_layers": min(layers, 3)},
        detr_encoder_config=part,
        detr_decoder_config=part | {"num_queries": queries},
        mask_decoder_config={"hidden_size": width, "num_attention_heads": part["num_attention_heads"]},
    )
    model = Sam3Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # as it comes, nothing of the picture would reach a score
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model, Sam3ImageProcessor(size={"height": side, "width": side})


SEGMENTERS = {
    "sam3": (
        partial(_sam3, 1008, 256, 1024, 32, 200, 336, 24),
        partial(_sam3, 126, 16, 32, 2, 20, 56, 3),
    ),
}
"""By name, as `MASKERS`."""


@torch.no_grad()
def shaken(model: Any) -> Any:
    """The model with noise on what is initialised to a constant, which would hide mistakes; whole numbers stay."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.ndim <= 1 or (parameter == parameter.flatten()[0]).all():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if "running_" in name:
            buffer += 0.1 * torch.rand(buffer.shape, generator=generator)
    return model.eval()


def saved(model: Any, folder: Path, arch: dino.GroundingDinoArch | None = None) -> Path:
    """A folder as `save_pretrained` of the model and its processor leaves it."""
    model.save_pretrained(folder)
    if arch is not None:
        size = {"shortest_edge": arch.short_side, "longest_edge": arch.long_side}
        (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    return folder


@dataclass(frozen=True)
class Answers:
    """Of one image and prompt: logits (Q, n), boxes (Q, 4), and how positions are ranked (S,)."""

    logits: Tensor
    boxes: Tensor
    rank: Tensor

    def differ(self, other: Answers) -> float:
        """The largest difference; of ranks, whose scale says nothing, once they are brought to one."""
        ranks = [(rank - rank.mean()) / rank.std() for rank in (self.rank, other.rank)]
        pairs = ((self.logits, other.logits), (self.boxes, other.boxes), ranks)
        return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


@contextmanager
def publishers_limits(model: Any) -> Iterator[None]:
    """Have transformers' class keep boxes as far from the picture's border as publishers do.

    Between layers these take the logit of shares within 0.001 and 0.999, transformers within 0.00001 and 0.99999. Boxes
    beyond then move otherwise, and with random weights most queries of LLMDet's large layout lie there: by that alone
    logits differed by 0.06, and by 0.000006 with one limit in both.
    """
    logit, limit = torch.special.logit, [0.0]
    within, last = 1e-3, 1e-3 if model.config.model_type == "grounding-dino" else 1e-5
    hooks = [
        model.model.decoder.register_forward_pre_hook(lambda *_: limit.__setitem__(0, within)),
        model.model.decoder.register_forward_hook(lambda *_: limit.__setitem__(0, last)),
    ]
    torch.special.logit = lambda share, **_: logit(share, eps=limit[0])
    try:
        yield
    finally:
        torch.special.logit = logit
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def their_detections(model: Any, detector: GroundingDino, pixels: list[Tensor], prompts: list[Prompt]) -> list[Answers]:
    """What transformers' class says, image by image, with its publisher's limits."""
    words = detector.vocabulary
    model.model.special_tokens.copy_(torch.tensor([words.cls, words.sep, words.stop, words.question]))
    found = []
    for each, prompt in zip(pixels, prompts, strict=True):
        with publishers_limits(model):
            said = model(pixel_values=each[None], input_ids=torch.from_numpy(prompt.ids)[None])
        rank = said.enc_outputs_class[0].amax(-1)
        found.append(Answers(said.logits[0, :, : len(prompt.ids)], said.pred_boxes[0], rank))
    return found


@torch.inference_mode()
def our_detections(
    detector: GroundingDino, pixels: list[Tensor], prompts: list[Prompt], others: list[Answers]
) -> list[Answers]:
    """What we say of a batch, with queries at the positions that others rank best: ties may fall either way."""
    model: Any = detector.model
    proposals = propose(model, encode_images(model, pixels), encode_prompts(model, prompts, _CPU))
    places = [torch.nonzero(~padding)[:, 0] for padding in proposals.image.padding]
    best = [own[other.rank.topk(detector.arch.queries)[1]] for own, other in zip(places, others, strict=True)]
    raw = refine(model, proposals, torch.stack(best))
    return [
        Answers(raw.logits[row, :, : len(prompt.ids)], raw.boxes[row], proposals.rank[row, places[row]])
        for row, prompt in enumerate(prompts)
    ]


def compare_detector(name: str, images: Sequence[RgbImage], folder: Path, *, tiny: bool = False) -> dict[str, Any]:
    """An entry of `families.py`: differences from transformers' class, and of a batch from each image alone."""
    arch = DETECTORS[name][tiny]
    torch.manual_seed(11)
    model = shaken(detector_of(arch))
    vocabulary = Vocabulary.of_characters(arch.text_vocabulary)
    detector = GroundingDino(*load_grounding_dino(load_named(str(saved(model, folder, arch)))), vocabulary)
    pixels = [detector.preprocess(image) for image in images]
    prompts = [caption_prompts(Text(caption), vocabulary)[0] for caption in CAPTIONS]
    expected = their_detections(model, detector, pixels, prompts)
    together = our_detections(detector, pixels, prompts, expected)
    alone = [
        our_detections(detector, *([each] for each in row))[0] for row in zip(pixels, prompts, expected, strict=True)
    ]
    return {
        "name": name,
        "kind": "detector",
        "max_difference": max(map(Answers.differ, alone, expected)),
        "batch_difference": max(map(Answers.differ, together, alone)),
        "spread_of_logits": float(torch.cat([each.logits.flatten() for each in expected]).std()),
    }


def compare_phrase_detector(
    name: str, images: Sequence[RgbImage], folder: Path, *, tiny: bool = False
) -> dict[str, Any]:
    """An entry of `families.py`: differences of logits and boxes from transformers' processor and class."""
    torch.manual_seed(11)
    model, processor = PHRASE_DETECTORS[name][tiny]()
    words = letters()
    for each in (shaken(model), processor, words):
        each.save_pretrained(folder)
    phrases = [["flag", "a rocket"], ["a cup", "table", "a phrase longer than what is read"]]
    expected = [their_boxes(model, processor, words, *pair) for pair in zip(images, phrases, strict=True)]
    built = build_grounded_sam(ModelsConfig(detector=str(folder), masker=None), LabelsConfig(), "cpu", "float32")
    texts = [[Text(phrase) for phrase in own] for own in phrases]
    detector: Any = built.detector
    together = [_by_phrase(found) for found in detector.detect(images, texts, 0.0)]
    alone = [_by_phrase(detector.detect([image], [own], 0.0)[0]) for image, own in zip(images, texts, strict=True)]
    return {
        "name": name,
        "kind": "detector",
        "boxes": sum(len(boxes) for _, boxes in expected),
        "max_difference": max(map(_differ, alone, expected)),
        "batch_difference": max(map(_differ, together, alone)),
        "spread_of_logits": float(np.concatenate([logits for logits, _ in expected]).std()),
    }


Found = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Logits (N,) and boxes (N, 4) in pixels; all of the first phrase, then all of the next."""


def _by_phrase(found: Detections) -> Found:
    order = np.argsort(found.text_index, kind="stable")
    scores = found.scores[order].astype(np.float64)
    return np.log(scores / (1 - scores)), found.boxes[order].astype(np.float64)


def _differ(found: Found, other: Found) -> float:
    """The largest difference, of boxes as shares of the longest edge there is."""
    scale = max(other[1].max(), 1)
    return float(max(np.abs(found[0] - other[0]).max(), np.abs(found[1] - other[1]).max() / scale))


@torch.inference_mode()
def their_boxes(model: Any, processor: Any, words: Any, image: RgbImage, phrases: list[str]) -> Found:
    """What transformers says of all patches, but for boxes that lie in the padding."""
    read = words(phrases, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    said = model(pixel_values=processor(images=image, return_tensors="pt").pixel_values, **read)
    (found,) = processor.post_process_object_detection(said, -1.0, target_sizes=[image.shape[:2]])
    boxes = found["boxes"].double().numpy().clip(0, (image.shape[1], image.shape[0]) * 2)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    logits = said.logits[0].double().numpy()[inside]
    return logits.T.flatten(), np.tile(boxes[inside], (len(phrases), 1))


def compare_masker(name: str, images: Sequence[RgbImage], folder: Path, *, tiny: bool = False) -> dict[str, Any]:
    """An entry of `families.py`: the least IoU of a mask with that of transformers' processor and class."""
    torch.manual_seed(11)
    model, processor = MASKERS[name][tiny]()
    processor.save_pretrained(saved(shaken(model), folder))
    masker = build_masker(ModelsConfig(masker=str(folder)), LabelsConfig(), "cpu", "float32")
    boxes = [some_boxes((image.shape[0], image.shape[1])) for image in images]
    expected = [their_masks(model, processor, *pair) for pair in zip(images, boxes, strict=True)]
    together = [_pixels(masks) for masks in masker.masks(images, boxes)]
    alone = [_pixels(masker.masks([image], [own])[0]) for image, own in zip(images, boxes, strict=True)]
    shares = np.concatenate([masks.mean(axis=(1, 2)) for masks in expected])
    return {
        "name": name,
        "kind": "masker",
        "mask_iou": min(map(_least_iou, alone, expected)),
        "batch_difference": 1 - min(map(_least_iou, together, alone)),
        "covered": [float(shares.min()), float(shares.max())],
    }


def letters() -> CLIPTokenizer:
    """A text tokenizer that spells."""
    signs = [chr(code) for code in range(256)]
    vocab = {token: number for number, token in enumerate([*signs, *(f"{sign}</w>" for sign in signs)])}
    return CLIPTokenizer(vocab=vocab | {"<|startoftext|>": 512, "<|endoftext|>": 513}, merges=[])


PHRASES = ("a red cup", "flag", "a rocket", "an orange suit", "table")


def compare_segmenter(name: str, images: Sequence[RgbImage], folder: Path, *, tiny: bool = False) -> dict[str, Any]:
    """An entry of `families.py`: against transformers' class, asked phrase by phrase of the first image, also in time.

    Args:
        name: of `SEGMENTERS`.
        images: two; the other one is only there to be seen along with the first.
        folder: empty; takes the weights.
        tiny: whether the model is.
    """
    answers, loop = their_loop(name, images[0], folder, tiny=tiny)
    return compare_answers(name, images, folder, answers, loop)


Answer = tuple[Tensor, Tensor, Tensor]
"""Scores, boxes and masks of all queries for a phrase."""


def their_loop(name: str, image: RgbImage, folder: Path, *, tiny: bool) -> tuple[list[Answer], float]:
    """What transformers' processors and class answer to each phrase, and how many seconds they take for all.

    They see the image anew each time, as their documentation begins. The weights are left in a folder.
    """
    torch.manual_seed(11)
    model, processor = SEGMENTERS[name][tiny]()
    words = letters()
    for each in (shaken(model), processor, words):
        each.save_pretrained(folder)
    start = time.perf_counter()
    answers = [their_answer(model, processor, words, image, phrase) for phrase in PHRASES]
    return answers, time.perf_counter() - start


def compare_answers(
    name: str, images: Sequence[RgbImage], folder: Path, answers: Sequence[Answer], loop: float
) -> dict[str, Any]:
    """The entry, of what `their_loop` gave."""
    scores = torch.cat([score for score, _, _ in answers]).sort().values
    middle = scores[len(scores) // 4 : len(scores) // 2]
    gap = int(middle.diff().argmax())  # where rounding lets nothing fall on the other side
    threshold = float(middle[gap : gap + 2].mean())
    settings = ModelsConfig(segmenter=str(folder)), LabelsConfig(box_threshold=threshold)
    check_segmenter(*settings)
    ours, texts, seconds = build_segmenter(*settings, "cpu", "float32"), [Text(phrase) for phrase in PHRASES], []
    for own in (texts[:1], texts):
        start = time.perf_counter()
        (alone,) = ours.segment(images[:1], [own])
        seconds.append(time.perf_counter() - start)
    together, _ = ours.segment(images, [texts, texts[-1:]])
    kept = [score.argsort(descending=True)[: (score > threshold).sum()] for score, _, _ in answers]
    assert alone.text_index.tolist() == [text for text, numbers in enumerate(kept) for _ in numbers]
    expected, boxes, masks = (
        torch.cat([each[numbers] for each, numbers in zip(parts, kept, strict=True)]).numpy()
        for parts in zip(*answers, strict=True)
    )
    sides = np.array([images[0].shape[1], images[0].shape[0]] * 2)
    shares = masks.mean(axis=(1, 2))
    differences = (alone.scores - expected, (alone.boxes - boxes.clip(0, sides)) / sides)
    return {
        "name": name,
        "kind": "segmenter",
        "instances": len(shares),
        "mask_iou": _least_iou(_pixels(alone.masks), masks.astype(bool)),
        "max_difference": max(float(np.abs(difference).max()) for difference in differences),
        "batch_difference": 1 - _least_iou(_pixels(together.masks), _pixels(alone.masks)),
        "covered": [float(shares.min()), float(shares.max())],
        "five_texts_over_one": seconds[1] / seconds[0],
        "their_loop_over_ours": loop / seconds[1],
    }


@torch.inference_mode()
def their_answer(model: Any, processor: Any, words: Any, image: RgbImage, phrase: str) -> Answer:
    """Of one phrase."""
    read = words(phrase, padding="max_length", max_length=32, return_tensors="pt")
    said = model(processor(images=image, return_tensors="pt").pixel_values, **read)
    found = processor.post_process_instance_segmentation(said, -1.0, target_sizes=[image.shape[:2]])[0]
    return found["scores"], found["boxes"], found["masks"]


@torch.inference_mode()
def their_masks(model: Any, processor: Any, image: RgbImage, boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Of one image, bool (N, height, width)."""
    size = (image.shape[0], image.shape[1])
    given = processor(images=image, return_tensors="pt")
    used = tuple(given.get("reshaped_input_sizes", torch.tensor([given["pixel_values"].shape[2:]]))[0].tolist())
    said = model(
        pixel_values=given["pixel_values"],
        input_boxes=torch.from_numpy(scale_boxes(boxes, size, used))[None],
        multimask_output=False,
    )
    sizes = [given[key] for key in ("original_sizes", "reshaped_input_sizes") if key in given]
    return np.asarray(processor.post_process_masks(said.pred_masks, *sizes)[0][:, 0].numpy())


def some_boxes(size: Size) -> npt.NDArray[np.float32]:
    """Five boxes in an image of a size, the first of which is all of it: float32 (5, 4), XYXY."""
    corners = np.random.default_rng(size[0]).random((5, 2, 2)) * size[::-1]
    corners[0] = [(0, 0), size[::-1]]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


def _pixels(masks: Masks) -> npt.NDArray[np.bool_]:
    return np.stack([decode_mask(rle).astype(bool) for rle in masks.rles()])


def _least_iou(masks: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_]) -> float:
    """The least of N masks with N others; 1 where both are empty."""
    both, either = (masks & others).sum(axis=(1, 2)), (masks | others).sum(axis=(1, 2))
    return float((np.maximum(both, either == 0) / np.maximum(either, 1)).min())


FAMILIES = {
    name: compare
    for compare, names in (
        (compare_detector, DETECTORS),
        (compare_phrase_detector, PHRASE_DETECTORS),
        (compare_masker, MASKERS),
        (compare_segmenter, SEGMENTERS),
    )
    for name in names
}
"""What makes the entry of each."""
