"""Do patchmint's grids lie where the consumers' own code puts them? A mark in an image, found again in its token.

    python benchmarks/consumers.py            # some minutes on 2 cores
    python benchmarks/consumers.py --json
    python benchmarks/consumers.py --only internvl3 --only qwen3-vl --sizes 50

For each consumer and each size an image with three marks, one a colour, each in the middle of a random cell, goes
through the processor of transformers. From the pixels that come out, and by the consumer's own rule of what becomes
which token (its order of patches, its pooling indices, its `pack_image_features`), follows how much of a mark each
token sees. The brightest must be the token that patchmint gives the cell, in the view of the cell and in every other.
Every tenth image is turned and carries an EXIF orientation instead. Where a processor refuses a size, the grid must.

`end_to_end` are models of tiny random weights, which are given the processor's pixels: as many tokens must come out as
patchmint's order has. Settings are the published ones; docs/grids.md says which of them could be checked.
"""

from __future__ import annotations

import argparse
import inspect
import io
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image
from transformers.image_utils import load_image

from patchmint.errors import InputError
from patchmint.geometry import GRID_PRESETS, Grid, Placement, grid_of_processor
from patchmint.images.decode import decode_image

Floats = npt.NDArray[np.float64]
Size = tuple[int, int]
Outputs = Mapping[str, Any]

MARKS = 3
"""One a colour."""


@dataclass(frozen=True)
class Consumer:
    """A processor with published settings, and how its pixels become tokens.

    Attributes:
        kind: the processor's class.
        settings: of its `preprocessor_config.json`, where they aren't the class's own.
        seen: from what the processor gives and the image's (height, width) to how much each token sees of each mark:
            (tokens, marks).
        model: what its `config.json` has, as far as grids need it.
        call: settings that its text processor passes.
    """

    kind: str
    settings: dict[str, Any]
    seen: Callable[[Outputs, Size], Floats]
    model: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)

    def processor(self) -> Any:
        """The processor of transformers, without the steps that only change colours."""
        plain = {"do_rescale": False, "do_normalize": False, "image_mean": [0.0] * 3}
        return getattr(transformers, self.kind)(**self.settings | plain)

    def file(self) -> dict[str, Any]:
        """What `grid_of_processor` takes: the processor's own file, and the model's."""
        made = getattr(transformers, self.kind)(**self.settings)
        return json.loads(made.to_json_string()) | {"model": self.model}


def blocks(patch_px: int, merge: int = 1) -> Callable[[Outputs, Size], Floats]:
    """Inputs in their order, cells row by row; patches that are missing to the last cell count as black."""

    def seen(outputs: Outputs, _: Size) -> Floats:
        pixels = np.asarray(outputs["pixel_values"], dtype=np.float64)
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
        return np.concatenate([_cells(_patches(view, patch_px), merge).reshape(-1, MARKS) for view in pixels])

    return seen


def _patches(view: Floats, patch_px: int) -> Floats:
    """(3, height, width) -> sums over whole patches (rows, cols, 3)."""
    rows, cols = view.shape[1] // patch_px, view.shape[2] // patch_px
    whole = view[:, : rows * patch_px, : cols * patch_px].reshape(3, rows, patch_px, cols, patch_px)
    return whole.sum((2, 4)).transpose(1, 2, 0)


def _cells(patches: Floats, merge: int) -> Floats:
    rows, cols = (-(-length // merge) for length in patches.shape[:2])
    padded = np.zeros((rows * merge, cols * merge, MARKS))
    padded[: patches.shape[0], : patches.shape[1]] = patches
    return padded.reshape(rows, merge, cols, merge, MARKS).sum((1, 3))


def flattened(merge: int) -> Callable[[Outputs, Size], Floats]:
    """Qwen's order: patches block by block, each (channel, frame, row, column)."""

    def seen(outputs: Outputs, _: Size) -> Floats:
        patches = np.asarray(outputs["pixel_values"], dtype=np.float64)
        return patches.reshape(-1, merge * merge, 3, patches.shape[1] // 3).sum((1, 3))

    return seen


def by_rows(merge: int) -> Callable[[Outputs, Size], Floats]:
    """PaddleOCR-VL's: patches row by row, and the model merges."""

    def seen(outputs: Outputs, _: Size) -> Floats:
        patches = np.asarray(outputs["pixel_values"], dtype=np.float64)
        _, rows, cols = np.asarray(outputs["image_grid_thw"])[0]
        return _cells(patches.sum((2, 3)).reshape(rows, cols, MARKS), merge).reshape(-1, MARKS)

    return seen


def naflex(outputs: Outputs, _: Size) -> Floats:
    """SigLIP 2's: rows of patches, each (row, column, channel), padded to a fixed number."""
    patches = np.asarray(outputs["pixel_values"], dtype=np.float64)[0]
    real = np.asarray(outputs["pixel_attention_mask"])[0] == 1
    return patches.reshape(len(patches), -1, 3).sum(1)[real]


def pooled(outputs: Outputs, _: Size) -> Floats:
    """Molmo 2's: the processor says which patches of which crops each token pools."""
    patches = np.asarray(outputs["pixel_values"], dtype=np.float64)
    patches = patches.reshape(patches.shape[0] * patches.shape[1], -1, 3).sum(1)
    index = np.asarray(outputs["image_token_pooling"])
    return np.where(index[..., None] >= 0, patches[np.maximum(index, 0)], 0).sum(1)


def packed(model: str, image_px: int, patch_px: int, **extra: Any) -> Callable[[Outputs, Size], Floats]:
    """LLaVA's: the model's own `pack_image_features`, given the marks for features and black newlines."""

    def seen(outputs: Outputs, size: Size) -> Floats:
        views = np.asarray(outputs["pixel_values"], dtype=np.float64)[0]
        features = torch.tensor(np.stack([_patches(view, patch_px).reshape(-1, MARKS) for view in views]))
        config = SimpleNamespace(
            vision_config=SimpleNamespace(image_size=image_px, patch_size=patch_px),
            image_grid_pinpoints=extra["pinpoints"],
        )
        pack = getattr(transformers, model).pack_image_features
        given = {name: value for name, value in extra.items() if name != "pinpoints"}
        found, _ = pack(
            SimpleNamespace(config=config), [features], [list(size)], image_newline=torch.zeros(MARKS), **given
        )
        return found[0].numpy()

    return seen


_NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_ONEVISION = [[384 * rows, 384 * cols] for rows in range(1, 7) for cols in range(1, 7)]


def _square(side: int) -> dict[str, Any]:
    return {"height": side, "width": side}


def _area(least: int, most: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": least, "longest_edge": most}}


def _crop(side: int, edge: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": edge}, "crop_size": _square(side)}


CONSUMERS: dict[str, Consumer] = {
    "llava-1.5-hf": Consumer("CLIPImageProcessor", _crop(336, 336), blocks(14), {"patch_size": 14}),
    "llava-1.5-finetune": Consumer(
        "LlavaImageProcessor", _crop(336, 336) | {"do_pad": True}, blocks(14), {"patch_size": 14}
    ),
    "dinov2-224": Consumer("BitImageProcessor", _crop(224, 256), blocks(14), {"patch_size": 14}),
    "dinov3-224": Consumer("DINOv3ViTImageProcessor", {"size": _square(224)}, blocks(16), {"patch_size": 16}),
    "siglip-so400m-384": Consumer("SiglipImageProcessor", {"size": _square(384)}, blocks(14), {"patch_size": 14}),
    "llava-next-hf": Consumer(
        "LlavaNextImageProcessor",
        _crop(336, 336) | {"image_grid_pinpoints": _NEXT},
        packed("LlavaNextModel", 336, 14, pinpoints=_NEXT, vision_feature_select_strategy="default"),
        {"patch_size": 14},
    ),
    "llava-onevision-hf": Consumer(
        "LlavaOnevisionImageProcessor",
        {"size": _square(384), "image_grid_pinpoints": _ONEVISION},
        packed("LlavaOnevisionModel", 384, 14, pinpoints=_ONEVISION, vision_aspect_ratio="anyres_max_9"),
        {"patch_size": 14, "vision_aspect_ratio": "anyres_max_9"},
    ),
    "internvl3": Consumer(
        "GotOcr2ImageProcessor",
        {"size": _square(448), "min_patches": 1, "max_patches": 12},
        blocks(14, 2),
        {"model_type": "internvl", "patch_size": 14, "downsample_ratio": 0.5},
        {"crop_to_patches": True},
    ),
    "ovis2-hf": Consumer(
        "Ovis2ImageProcessor",
        {"size": _square(448), "crop_to_patches": True},
        blocks(14, 2),
        {"patch_size": 14, "hidden_stride": 2},
    ),
    "command-a-vision": Consumer("Cohere2VisionImageProcessor", {}, blocks(16, 2), {"downsample_factor": 2}),
    "idefics3": Consumer("Idefics3ImageProcessor", {}, blocks(14, 2), {"patch_size": 14, "scale_factor": 2}),
    "smolvlm": Consumer(
        "SmolVLMImageProcessor",
        {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}},
        blocks(14, 3),
        {"patch_size": 14, "scale_factor": 3},
    ),
    "llama4": Consumer("Llama4ImageProcessor", {}, blocks(14, 2), {"patch_size": 14, "pixel_shuffle_ratio": 0.5}),
    "gemma3": Consumer(
        "Gemma3ImageProcessor", {"size": _square(896)}, blocks(56), {"patch_size": 14, "mm_tokens_per_image": 256}
    ),
    "gemma3-pan-and-scan": Consumer(
        "Gemma3ImageProcessor",
        {
            "size": _square(896),
            "do_pan_and_scan": True,
            "pan_and_scan_min_crop_size": 256,
            "pan_and_scan_max_num_crops": 4,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        },
        blocks(56),
        {"patch_size": 14, "mm_tokens_per_image": 256},
    ),
    "molmo2": Consumer("Molmo2ImageProcessor", {}, pooled),
    "qwen2-vl": Consumer("Qwen2VLImageProcessor", _area(3136, 12845056), flattened(2)),
    "qwen3-vl": Consumer("Qwen2VLImageProcessor", _area(65536, 16777216) | {"patch_size": 16}, flattened(2)),
    "glm-4.1v": Consumer("Glm4vImageProcessor", _area(12544, 9633792), flattened(2)),
    "glm-4.6v": Consumer("Glm46VImageProcessor", _area(12544, 9633792), flattened(2)),
    "ernie-4.5-vl": Consumer("Ernie4_5_VLMoeImageProcessor", {}, flattened(2)),
    "video-llama3": Consumer("VideoLlama3ImageProcessor", {}, flattened(1)),
    "paddleocr-vl": Consumer("PaddleOCRVLImageProcessor", _area(147384, 2822400), by_rows(2)),
    "pixtral": Consumer("PixtralImageProcessor", {}, blocks(16)),
    "mistral3": Consumer(
        "PixtralImageProcessor",
        {"size": {"longest_edge": 1540}, "patch_size": _square(14)},
        blocks(14, 2),
        {"spatial_merge_size": 2},
        {"patch_size": _square(28)},
    ),
    "siglip2-naflex": Consumer("Siglip2ImageProcessor", {}, naflex),
    "siglip2-so400m-512": Consumer("SiglipImageProcessor", {"size": _square(512)}, blocks(16), {"patch_size": 16}),
    "smolvlm2": Consumer(
        "Idefics3ImageProcessor",
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
        blocks(16, 4),
        {"patch_size": 16, "scale_factor": 4},
    ),
}
"""By preset."""

ODD_SIZES: list[Size] = [
    *[(1, 1), (1, 2), (2, 1), (1, 7), (7, 1), (1, 100), (100, 1), (1, 199), (199, 1), (1, 250), (250, 1), (3, 5)],
    *[(30, 4000), (4000, 30), (20, 3000), (3000, 25), (27, 28), (28, 27), (111, 113), (112, 112), (113, 111)],
    *[(224, 224), (336, 336), (335, 337), (384, 384), (448, 448), (449, 447), (896, 896), (768, 768), (1024, 1024)],
    *[(480, 640), (640, 480), (600, 800), (427, 640), (333, 500), (750, 1000), (1080, 1920), (1920, 1080)],
    *[(672, 1344), (1008, 336), (336, 1008), (1153, 1151), (1537, 2049), (2300, 1700), (257, 512), (512, 205)],
]


PHOTOGRAPHS: list[Size] = [(480, 640), (333, 222), (1200, 1801), (64, 1000)]
"""For the models end to end."""


def sizes_of(count: int) -> list[Size]:
    """(height, width): the odd ones, then others of all shapes, mostly odd numbers of pixels."""
    rng = np.random.default_rng(0)
    drawn = [(int(height), int(width)) for height, width in np.exp(rng.uniform(np.log(9), np.log(1400), (count, 2)))]
    return (ODD_SIZES + drawn)[:count]


@dataclass
class Tally:
    """What came out for one consumer."""

    sizes: int = 0
    checks: int = 0
    misses: int = 0
    refused: int = 0
    examples: list[str] = field(default_factory=list)

    def miss(self, words: str) -> None:
        """Count one, and keep the first few."""
        self.misses += 1
        if len(self.examples) < 5:
            self.examples.append(words)


def check(consumer: Consumer, grid: Grid, sizes: Sequence[Size]) -> Tally:
    """Plant marks in images of these sizes, and look for them in a consumer's tokens."""
    tally = Tally(sizes=len(sizes))
    processor = consumer.processor()
    for number, size in enumerate(sizes):
        rng = np.random.default_rng(number)
        try:
            placement = grid.place(size)
        except InputError:
            placement = None
        marks = [_mark(placement, rng) for _ in range(MARKS)] if placement is not None else []
        image = np.zeros((*size, 3), dtype=np.uint8)
        for colour, (_, (x0, y0, x1, y1)) in enumerate(marks):
            image[y0:y1, x0:x1, colour] = 255
        turned = int(rng.integers(2, 9)) if number % 10 == 9 else 1
        picture = _opened(image, turned)
        try:
            outputs = processor([picture], return_tensors="pt", **consumer.call)
        except (ValueError, RuntimeError, ZeroDivisionError):
            outputs = None
        if outputs is None or placement is None:
            tally.refused += 1
            if (outputs is None) != (placement is None):
                tally.miss(f"{size}: only {'the grid' if placement is None else 'the processor'} refuses it")
            continue
        _judge(placement, marks, consumer.seen(outputs, size), tally, size)
    return tally


Mark = tuple[int, tuple[int, int, int, int]]
"""A cell, counted in the placement's flattened shape, and XYXY of the pixels in its middle."""


def _mark(placement: Placement, rng: np.random.Generator) -> Mark:
    order = placement.token_order()
    inside = placement.inside.reshape(-1)
    shown = order[order >= 0]
    good = shown[inside[shown] > 0.7]
    cell = int(rng.choice(good if len(good) else shown[inside[shown] == inside[shown].max()]))
    row, col = divmod(cell, placement.shape[1])
    x0, y0, x1, y1 = placement.cell_box(row, col)
    pixels = []
    for start, end, length in ((x0, x1, placement.image_size[1]), (y0, y1, placement.image_size[0])):
        start, end = max(start, 0), min(end, length)
        quarter = (end - start) / 4
        low = min(max(round(start + quarter), 0), length - 1)
        # Where a cell is smaller than a pixel, the pixel around its middle.
        low = min(low, math.floor((start + end) / 2)) if round(end - quarter) <= low else low
        pixels.append((low, max(round(end - quarter), low + 1)))
    return cell, (pixels[0][0], pixels[1][0], pixels[0][1], pixels[1][1])


def _opened(image: npt.NDArray[np.uint8], orientation: int) -> Image.Image:
    """The picture as transformers opens it; turned, with an EXIF orientation that turns it back, unless that is 1."""
    picture = Image.fromarray(image)
    if orientation == 1:
        return picture
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    picture.transpose(Image.Transpose(back)).save(buffer, "PNG", exif=exif)
    decoded = decode_image(buffer.getvalue())
    if decoded.orientation != orientation or not np.array_equal(decoded.pixels, image):
        raise RuntimeError(f"orientation {orientation}: patchmint doesn't see the image as it was")
    return load_image(Image.open(io.BytesIO(buffer.getvalue())))


def _judge(placement: Placement, marks: Sequence[Mark], seen: Floats, tally: Tally, size: Size) -> None:
    order = placement.token_order()
    if len(seen) != len(order):
        tally.miss(f"{size}: {len(seen)} tokens, not {len(order)}")
        return
    cols = placement.shape[1]
    starts = np.cumsum([0, *(view.rows for view in placement.views)])
    view_of = np.where(order >= 0, np.searchsorted(starts, order // cols, side="right") - 1, -1)
    for colour, (cell, (x0, y0, x1, y1)) in enumerate(marks):
        light = seen[:, colour]
        for view in range(len(placement.views)):
            tokens = np.flatnonzero(view_of == view)
            here = view == view_of[order == cell][0]
            if not len(tokens) or (not here and light[tokens].max() < 0.1 * light.max()):
                continue
            tally.checks += 1
            brightest = int(order[tokens[light[tokens].argmax()]])
            bx0, by0, bx1, by1 = placement.cell_box(*divmod(brightest, cols))
            cx0, cy0, cx1, cy1 = placement.cell_box(*divmod(cell, cols))
            wide, high = (cx1 - cx0) / (x1 - x0), (cy1 - cy0) / (y1 - y0)
            if here and cx0 <= x0 and cy0 <= y0 and x1 <= cx1 and y1 <= cy1:
                found = brightest == cell
            else:
                # Where the image is enlarged, a pixel shines through its neighbours.
                smear = 2 if not here or min(wide, high) < 1 else 0
                found = bx0 < x1 + smear and x0 - smear < bx1 and by0 < y1 + smear and y0 - smear < by1
            if not found or light[tokens].max() <= 0:
                tally.miss(
                    f"{size}: mark {(x0, y0, x1, y1)} of cell {divmod(cell, cols)} in view {view} shines in "
                    f"{divmod(brightest, cols)}"
                )


_TEXT = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_QWEN = {"depth": 1, "hidden_size": 32, "num_heads": 2}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llava-next-hf": (
        "LlavaNext",
        {
            "vision_config": _VISION | {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
            "image_grid_pinpoints": _NEXT,
        },
    ),
    "llava-onevision-hf": (
        "LlavaOnevision",
        {
            "vision_config": _VISION
            | {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14, "vision_use_head": False},
            "image_grid_pinpoints": _ONEVISION,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
    ),
    "internvl3": (
        "InternVL",
        {
            "vision_config": _VISION
            | {"model_type": "internvl_vision", "image_size": [448, 448], "patch_size": [14, 14]}
        },
    ),
    "idefics3": (
        "Idefics3",
        {
            "vision_config": _VISION | {"model_type": "idefics3_vision", "image_size": 364, "patch_size": 14},
            "scale_factor": 2,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "vision_config": _VISION
            | {"model_type": "siglip_vision_model", "image_size": 896, "patch_size": 14, "vision_use_head": False},
            "text_config": _TEXT | {"model_type": "gemma3_text", "head_dim": 16},
        },
    ),
    "ovis2-hf": (
        "Ovis2",
        {
            "vision_config": _VISION
            | {"model_type": "ovis2_vision_model", "image_size": 448, "patch_size": 14, "hidden_stride": 2}
            | {"vocab_size": 32},
            "hidden_size": 32,
        },
    ),
    "qwen2-vl": ("Qwen2VL", {"vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}}),
    "qwen3-vl": (
        "Qwen3VL",
        {
            "vision_config": _QWEN | {"intermediate_size": 64, "out_hidden_size": 32, "deepstack_visual_indexes": [0]},
            "text_config": _TEXT | {"model_type": "qwen3_vl_text", "head_dim": 16},
        },
    ),
    "glm-4.1v": (
        "Glm4v",
        {
            "vision_config": _QWEN | {"intermediate_size": 64, "out_hidden_size": 32},
            "text_config": _TEXT | {"model_type": "glm4v_text"},
        },
    ),
    "mistral3": (
        "Mistral3",
        {"vision_config": _VISION | {"model_type": "pixtral", "image_size": 1540, "patch_size": 14, "head_dim": 16}},
    ),
}
"""Models of tiny random weights by preset: the name of their classes, and their settings."""


def end_to_end(name: str, sizes: Sequence[Size]) -> dict[str, int]:
    """How many image tokens a model makes of what its processor gives: `sizes`, `tokens`, and sizes that `differ`."""
    kind, settings = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**{"text_config": _TEXT} | settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    taken = inspect.signature(model.get_image_features).parameters
    processor, found = CONSUMERS[name].processor(), {"sizes": len(sizes), "tokens": 0, "differ": 0}
    for size in sizes:
        image = Image.fromarray(np.full((*size, 3), 99, dtype=np.uint8))  # Idefics3 drops inputs that are all zeros
        outputs = processor([image], return_tensors="pt", **CONSUMERS[name].call)
        given = {key: value for key, value in outputs.items() if key in taken}
        given["pixel_values"] = given["pixel_values"].float()
        with torch.inference_mode():
            features = model.get_image_features(**given).pooler_output
        tokens = sum(math.prod(part.shape[:-1]) for part in features)
        found["tokens"] += tokens
        found["differ"] += tokens != len(GRID_PRESETS[name].place(size).token_order())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=300)
    parser.add_argument("--only", action="append", choices=CONSUMERS, help="a preset; may be repeated")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    sizes, found, seconds = sizes_of(arguments.sizes), {}, {}
    for name in arguments.only or CONSUMERS:
        start = time.perf_counter()
        found[name] = check(CONSUMERS[name], GRID_PRESETS[name], sizes)
        if grid_of_processor(CONSUMERS[name].file()) != GRID_PRESETS[name]:
            found[name].miss("the processor's file gives another grid than the preset")
        seconds[name] = round(time.perf_counter() - start, 1)
        if not arguments.json:
            tally = found[name]
            print(
                f"{name:22} {tally.checks:6} checks {tally.misses:4} misses {tally.refused:3} refused "
                f"{seconds[name]:6.1f} s",
                *tally.examples,
                sep="\n    " if tally.examples else "",
            )
    report = {
        "processors": len({CONSUMERS[name].kind for name in found}),
        "presets": len(found),
        "sizes": len(sizes),
        "checks": sum(tally.checks for tally in found.values()),
        "misses": sum(tally.misses for tally in found.values()),
        "refused": sum(tally.refused for tally in found.values()),
        "end_to_end": {name: end_to_end(name, PHOTOGRAPHS) for name in found if name in MODELS},
        "by_preset": {name: vars(tally) | {"seconds": seconds[name]} for name, tally in found.items()},
    }
    print(json.dumps(report if arguments.json else {key: report[key] for key in list(report)[:7]}, indent=1))


if __name__ == "__main__":
    main()
