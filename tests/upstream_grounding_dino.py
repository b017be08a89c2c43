"""Grounding DINO as upstream builds and runs it, without any of our code: reference for the parity tests.

Run as a script (under transformers 4.57, the last line that upstream's own text wrapper works with) it makes a Swin-T
model of official size with seeded weights, runs upstream's `predict` on two photographs and writes what came out, and
what the model's tensors are called: `python upstream_grounding_dino.py FOLDER`.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from seeded_weights import Uninitialised, fill
from skimage import data

CAPTIONS = {
    "astronaut": "a woman in an orange suit. a flag? a rocket behind her",
    "coffee": "a cup of coffee on a wooden table",
}
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}


def photographs() -> dict[str, np.ndarray]:
    """Wide strips of unlike height: scaled up to a width of 1333, they have the fewest pixels of all shapes."""
    return {"astronaut": data.astronaut()[60:172], "coffee": data.coffee()[100:280]}


def official_vocabulary() -> list[str]:
    """As many pieces as bert-base-uncased has, the special ones in their true places, and real words to find."""
    words = sorted({w.strip("?.") for caption in CAPTIONS.values() for w in caption.split()} - {""})
    letters = [chr(code) for code in range(97, 123)]
    pieces = [f"[unused{n}]" for n in range(30522)]
    for place, piece in SPECIAL.items():
        pieces[place] = piece
    for place, piece in enumerate([*letters, *(f"##{c}" for c in letters)], start=2000):
        pieces[place] = piece
    # "wooden" stays out, so that a word of several pieces occurs
    for place, piece in enumerate((w for w in words if w not in {*letters, "wooden"}), start=3000):
        pieces[place] = piece
    return pieces


def build(folder: Path) -> torch.nn.Module:
    """Build upstream's model from upstream's own config, with a text encoder of official size."""
    import groundingdino
    from groundingdino.models import build_model
    from groundingdino.util.slconfig import SLConfig
    from transformers import BertConfig, BertModel

    text = folder / "bert"
    text.mkdir()
    (text / "vocab.txt").write_text("\n".join(official_vocabulary()) + "\n", encoding="utf-8")
    BertModel(BertConfig()).save_pretrained(text)
    (text / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    config = SLConfig.fromfile(str(Path(groundingdino.__file__).parent / "config" / "GroundingDINO_SwinT_OGC.py"))
    config.text_encoder_type = str(text)
    config.use_checkpoint = config.use_transformer_ckpt = False
    config.device = "cpu"
    model = build_model(config)
    return model.eval()


def main(folder: Path) -> None:
    from groundingdino.util.inference import load_image, predict

    with Uninitialised():
        model = build(folder)
    weights = model.state_dict()
    fill(weights)
    arrays = {f"shape/{name}": np.array(tensor.shape) for name, tensor in weights.items() if tensor.is_floating_point()}
    arrays |= {f"whole/{name}": tensor.numpy() for name, tensor in weights.items() if not tensor.is_floating_point()}
    outputs = {}
    model.register_forward_hook(lambda _module, _inputs, out: outputs.update(out))
    # what upstream takes its queries from: the best token's logit at each position
    model.transformer.enc_out_class_embed.register_forward_hook(
        lambda _module, _inputs, out: outputs.update(rank=out.max(-1)[0])
    )
    for name, photo in photographs().items():
        path = folder / f"{name}.png"
        Image.fromarray(photo).save(path)
        _, pixels = load_image(str(path))
        boxes, logits, phrases = predict(model, pixels, CAPTIONS[name], 0.5, 0.4, device="cpu")
        arrays |= {f"{name}/boxes": boxes.numpy(), f"{name}/logits": logits.numpy(), f"{name}/phrases": phrases}
        arrays |= {f"{name}/rank": outputs["rank"][0].numpy()}
        arrays |= {f"{name}/raw_logits": outputs["pred_logits"][0].numpy()}
        arrays |= {f"{name}/raw_boxes": outputs["pred_boxes"][0].numpy(), f"{name}/pixels": pixels.numpy()}
    np.savez(folder / "reference.npz", **{key.replace("/", "__"): value for key, value in arrays.items()})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
