"""Grounding DINO as upstream builds and runs it, without any of our code: reference for the parity tests.

Run as a script (under transformers 4.57, the last line that upstream's own text wrapper works with) it makes a Swin-T
model of official size from a seed, saves it in the official container, runs upstream's `predict` on two photographs and
writes what came out: `python upstream_grounding_dino.py FOLDER`.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data

CAPTIONS = {
    "astronaut": "a woman in an orange suit. a flag? a rocket behind her",
    "coffee": "a cup of coffee on a wooden table",
}
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}


def photographs() -> dict[str, np.ndarray]:
    return {"astronaut": data.astronaut(), "coffee": data.coffee()}


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


def shake(model: torch.nn.Module) -> None:
    """Upstream starts many weights at zero or one, which would hide mistakes: give each a little noise."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.ndim == 1 or (parameter == 0).all():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


def build(folder: Path) -> torch.nn.Module:
    """Build upstream's model from upstream's own config, with a text encoder of official size and random weights."""
    import groundingdino
    from groundingdino.models import build_model
    from groundingdino.util.slconfig import SLConfig
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    text = folder / "bert"
    text.mkdir(exist_ok=True)
    (text / "vocab.txt").write_text("\n".join(official_vocabulary()) + "\n", encoding="utf-8")
    BertModel(BertConfig()).save_pretrained(text)
    (text / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    config = SLConfig.fromfile(str(Path(groundingdino.__file__).parent / "config" / "GroundingDINO_SwinT_OGC.py"))
    config.text_encoder_type = str(text)
    config.use_checkpoint = config.use_transformer_ckpt = False
    config.device = "cpu"
    model = build_model(config)
    shake(model)
    return model.eval()


def save(model: torch.nn.Module, path: Path) -> None:
    """Save in the official container: under "model", keys with `module.`, and the two entries nobody loads."""
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    state["module.label_enc.weight"] = torch.zeros(2001, 256)
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model": state}, path)


def main(folder: Path) -> None:
    from groundingdino.util.inference import load_image, predict

    model = build(folder)
    save(model, folder / "groundingdino.pth")
    outputs = {}
    model.register_forward_hook(lambda _module, _inputs, out: outputs.update(out))
    # what upstream takes its queries from: the best token's logit at each position
    model.transformer.enc_out_class_embed.register_forward_hook(
        lambda _module, _inputs, out: outputs.update(rank=out.max(-1)[0])
    )
    arrays = {}
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
