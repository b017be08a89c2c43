"""What the contestants of `reference.py` work on: photographs with captions, and where models lie.

Images lie in COCO's layout (`annotations/captions_train2017.json`, `train2017/*.jpg`), which both contestants read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SPLIT = "train2017"
CAPTIONS = (
    "a woman in an orange suit smiling in front of a flag",
    "a small white cup of coffee on a dark wooden table",
    "a close view of a brown cat looking at the camera",
    "an old temple with a red roof beside a wide street",
    "a bright flower with many leaves growing in a green garden",
    "two people standing near a tall tower under a cloudy sky",
    "a motorcycle parked in a garage next to a metal shelf",
    "some birds sitting on a long wire over the busy road",
    "a plate of food and a silver spoon on the cloth",
    "the young man is holding a big umbrella in the rain",
)
"""Made up, of the length of COCO's."""

_VOCABULARY_SIZE = 30522
_SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}


@dataclass(frozen=True)
class Contest:
    """What both contestants work on.

    Attributes:
        data: folder of the images, in COCO's layout.
        detector, vocabulary, masker, tokenizer: files of weights, and the vocabulary.
        box_threshold, text_threshold: of the detector.
    """

    data: str
    detector: str
    vocabulary: str
    masker: str
    tokenizer: str
    box_threshold: float = 0.35
    text_threshold: float = 0.25

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Contest:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))

    @property
    def models(self) -> dict[str, str]:
        """As a build's config names them."""
        roles = ("detector", "vocabulary", "masker", "tokenizer")
        return {role: getattr(self, role) for role in roles}


def write_photographs(folder: Path, images: int, texts: int) -> list[Path]:
    """Photographs of scikit-image and scikit-learn at their own sizes, as JPEGs; beyond those, mirrored ones."""
    photographs = _photographs()
    (folder / SPLIT).mkdir(parents=True)
    (folder / "annotations").mkdir()
    paths, listed, captions = [], [], []
    for number in range(images):
        photograph = Image.fromarray(photographs[number % len(photographs)])
        if number // len(photographs) % 2:
            photograph = photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        paths.append(folder / SPLIT / f"{number:012d}.jpg")
        photograph.save(paths[-1], quality=90)
        listed.append({"id": number, "file_name": paths[-1].name})
        for text in range(texts):
            caption = CAPTIONS[(number + text) % len(CAPTIONS)]
            captions.append({"id": len(captions), "image_id": number, "caption": caption})
    document = {"images": listed, "annotations": captions}
    (folder / "annotations" / f"captions_{SPLIT}.json").write_text(json.dumps(document))
    return paths


def _photographs() -> list[np.ndarray]:
    from skimage import data
    from sklearn.datasets import load_sample_image

    return [
        data.rocket(),
        load_sample_image("china.jpg"),
        data.astronaut(),
        data.coffee(),
        load_sample_image("flower.jpg"),
        data.chelsea(),
    ]


def write_vocabulary(path: Path) -> None:
    """As many pieces as bert-base-uncased has: the special ones in their places, and the captions' words."""
    pieces = [f"[unused{number}]" for number in range(_VOCABULARY_SIZE)]
    for place, piece in _SPECIAL.items():
        pieces[place] = piece
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    pieces[3000 : 3000 + len(words)] = words
    path.write_text("".join(f"{piece}\n" for piece in pieces))
