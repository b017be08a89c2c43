"""Today's other way, for `reference.py`: transformers' own classes in batches, taming's encoder, no tars written.

Grounding DINO and SAM at official sizes with random weights of their own (the classes name weights differently, so
labels can't be compared), in bfloat16 if the CPU has instructions for it. Boxes are the ten best queries of each text.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpu_transformers as theirs
import numpy as np
import torch
from PIL import Image
from reference_data import SPLIT, Contest
from reference_loop import _load_vqgan, label, tokenizer_input
from torch.nn import functional

from patchmint.compute.devices import computing_in
from patchmint.labelers.grounding_dino import arch as dino_arch
from patchmint.labelers.grounding_dino.arch import detector_size
from patchmint.labelers.sam import arch as sam_arch

_CPU = torch.device("cpu")
_BATCH = 4
_PAIRS = 10  # of image and text at once: twenty take more than 24 GiB
_BOXES = 10
_MEAN, _STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def run(contest: Contest, sam: str, threads: int) -> dict[str, Any]:
    """Annotate all images.

    Returns:
        As `reference_loop.run`.
    """
    torch.set_num_threads(threads)
    dino, vit = dino_arch.OFFICIAL["groundingdino-swint-ogc"], sam_arch.OFFICIAL[f"sam-{sam}"]
    detector = theirs.made(lambda: theirs.detector_of(dino), _CPU)
    masker = theirs.made(lambda: theirs.sam_of(vit), _CPU)
    encoder, quant_conv, quantizer = _load_vqgan(Path(contest.tokenizer))
    document = json.loads((Path(contest.data) / "annotations" / f"captions_{SPLIT}.json").read_text())
    texts = defaultdict(int)
    for annotation in document["annotations"]:
        texts[annotation["image_id"]] += 1
    many = max(1, min(_BATCH, _PAIRS // max(texts.values())))
    stages: dict[str, float] = defaultdict(float)
    boxes = 0

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        stages[name] += time.perf_counter() - begun

    start = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(document["images"]), many):
            listed = document["images"][first : first + many]
            with stage("read"):
                paths = [Path(contest.data) / SPLIT / each["file_name"] for each in listed]
                images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
                sizes = [detector_size(image.shape[:2], dino.short_side, dino.long_side) for image in images]
                detected = _padded([_scaled(image, size) for image, size in zip(images, sizes, strict=True)])
                longest = [vit.image_size / max(image.shape[:2]) for image in images]
                squares = [
                    _scaled(image, (round(scale * image.shape[0]), round(scale * image.shape[1])))
                    for image, scale in zip(images, longest, strict=True)
                ]
                encoded = _padded(squares, vit.image_size)[0]
            owners = [row for row, each in enumerate(listed) for _ in range(texts[each["id"]])]
            with stage("detect"), computing_in(theirs.reduced(_CPU), _CPU):
                answer = detector(
                    detected[0][owners], pixel_mask=detected[1][owners], **theirs.words(len(owners), _CPU)
                )
            best = answer.logits.amax(-1).topk(_BOXES, dim=1)[1]
            found = answer.pred_boxes.float().gather(1, best[..., None].expand(-1, -1, 4))
            boxes += found.shape[0] * found.shape[1]
            with stage("encode"), computing_in(theirs.reduced(_CPU), _CPU):
                embeddings = masker.get_image_embeddings(encoded)
            for row, image in enumerate(images):
                height, width = image.shape[:2]
                centre, half = (part.flatten(0, 1) for part in found[np.array(owners) == row].split(2, -1))
                corners = torch.cat([centre - half / 2, centre + half / 2], -1) * torch.tensor([width, height] * 2)
                with stage("masks"), computing_in(theirs.reduced(_CPU), _CPU):
                    masks = masker(
                        image_embeddings=embeddings[row : row + 1],
                        input_boxes=corners[None] * longest[row],
                        multimask_output=False,
                    ).pred_masks[0, :, 0]
                    square = functional.interpolate(masks[None].float(), (vit.image_size,) * 2, mode="bilinear")
                    used = square[..., : squares[row].shape[1], : squares[row].shape[2]]
                    made = functional.interpolate(used, (height, width), mode="bilinear")[0] > 0
                with stage("label"):
                    for text in made.split(_BOXES):
                        label(text.any(0).numpy())
            with stage("tokens"):
                quantizer(quant_conv(encoder(torch.cat([tokenizer_input(image) for image in images]))))
    return {"seconds": time.perf_counter() - start, "stages": dict(stages), "boxes": boxes}


def _scaled(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    resized = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR), np.float32) / 255
    return torch.from_numpy((resized - np.float32(_MEAN)) / np.float32(_STD)).permute(2, 0, 1)


def _padded(images: list[torch.Tensor], side: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (B, 3, H, W) padded at the right and below, and a mask that is 1 where there is one."""
    height = side or max(image.shape[1] for image in images)
    width = side or max(image.shape[2] for image in images)
    pixels, mask = (
        torch.zeros(len(images), 3, height, width),
        torch.zeros(len(images), height, width, dtype=torch.int64),
    )
    for row, image in enumerate(images):
        pixels[row, :, : image.shape[1], : image.shape[2]] = image
        mask[row, : image.shape[1], : image.shape[2]] = 1
    return pixels, mask
