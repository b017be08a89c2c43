"""Vision encoders in folders against transformers' own class and processor, at official size with random weights.

    python benchmarks/encoders.py --json
    python benchmarks/encoders.py --only siglip2 dinov3

Two photographs of unlike sizes go through transformers' processor and class, and as a folder of Hugging Face's layout
through patchmint: alone and in one batch. Differences are those of the stored float16, whose step at a value of 8 to 16
is 0.008. DINOv3's processor resizes floats, patchmint bytes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from skimage import data
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from patchmint.config import ModelsConfig
from patchmint.config.annotator import FeaturesConfig
from patchmint.features.plan import build_feature_encoder
from patchmint.geometry import Grid, grid_preset
from patchmint.geometry.presets import merged

_QWEN3 = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2048}


@dataclass(frozen=True)
class Encoder:
    """A published encoder: its class, the settings that aren't defaults, its processor, and its grid of patches."""

    model: Any
    settings: dict[str, Any]
    processor: Callable[[], Any]
    grid: Grid
    merged: Grid | None = None


def _qwen(patch: int, least: int, most: int, **settings: Any) -> Any:
    size = {"shortest_edge": least, "longest_edge": most}
    return transformers.Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, size=size, **settings)


ENCODERS = {
    "siglip2": Encoder(
        transformers.Siglip2VisionModel, {}, transformers.Siglip2ImageProcessorPil, grid_preset("siglip2-naflex")
    ),
    "dinov3": Encoder(
        transformers.DINOv3ViTModel,
        {"num_register_tokens": 4},
        transformers.DINOv3ViTImageProcessor,
        grid_preset("dinov3-224"),
    ),
    "qwen2-vl": Encoder(
        Qwen2VisionTransformerPretrainedModel,
        {"hidden_size": 1536},
        lambda: _qwen(14, 3136, 12845056),
        merged(grid_preset("qwen2-vl"), 1),
        grid_preset("qwen2-vl"),
    ),
    "qwen3-vl": Encoder(
        Qwen3VLVisionModel,
        _QWEN3 | {"deepstack_visual_indexes": [5, 11, 17]},
        lambda: _qwen(16, 65536, 16777216, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        merged(grid_preset("qwen3-vl"), 1),
        grid_preset("qwen3-vl"),
    ),
}


@torch.no_grad()
def theirs(model: Any, processor: Any, image: np.ndarray, layer: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A hidden state (patches, channels), row by row, and the merged tokens."""
    given = processor(images=[Image.fromarray(image)], return_tensors="pt")
    if "image_grid_thw" not in given:
        state = model(**given, output_hidden_states=True).hidden_states[layer][0]
        return (
            state[given["pixel_attention_mask"][0].bool()] if "spatial_shapes" in given else state[5:]
        ).numpy(), None
    answer = model(given["pixel_values"], grid_thw=given["image_grid_thw"], output_hidden_states=True)
    rows, cols = given["image_grid_thw"][0, 1:].tolist()
    blocks = answer.hidden_states[layer].unflatten(0, (rows // 2, cols // 2, 2, 2))
    return blocks.transpose(1, 2).reshape(rows * cols, -1).numpy(), answer.pooler_output.numpy()


def measure(encoder: Encoder) -> dict[str, Any]:
    """Largest differences, and seconds of patchmint's part."""
    torch.manual_seed(0)
    model, processor = encoder.model(encoder.model.config_class(**encoder.settings)).eval(), encoder.processor()
    photo = Image.fromarray(data.astronaut())
    images = [np.asarray(photo.resize(size)) for size in ((640, 480), (200, 500))]
    found: dict[str, Any] = {"weights": sum(weight.numel() for weight in model.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        for name, grid in (("patches", encoder.grid), ("merged", encoder.merged)):
            if grid is None:
                continue
            ours = build_feature_encoder(ModelsConfig(vit=folder), FeaturesConfig(), grid, "cpu")
            began = time.perf_counter()
            together = ours.encode(images)
            seconds = time.perf_counter() - began
            expected = [theirs(model, processor, image, ours.spec.layers[0][0])[name == "merged"] for image in images]
            alone = [ours.encode([image])[0] for image in images]
            found[name] = {
                "tokens": [len(features) for features in together],
                "channels": ours.spec.channels,
                "largest": max(float(np.abs(one).max()) for one in expected if one is not None),
                "to_transformers": _apart(together, expected),
                "batch_to_alone": _apart(together, alone),
                "seconds": round(seconds, 2),
            }
    return found


def _apart(ours: list[Any], others: list[Any]) -> float:
    pairs = zip(ours, others, strict=True)
    return max(float(np.abs(one.astype(np.float32) - other.astype(np.float32)).max()) for one, other in pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {name: measure(ENCODERS[name]) for name in arguments.only}
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for name, measured in found.items():
        print(f"{name}: {measured['weights'] / 1e6:.0f} million weights")
        for kind in measured.keys() - {"weights"}:
            print(f"  {kind}: {measured[kind]}")


if __name__ == "__main__":
    main()
