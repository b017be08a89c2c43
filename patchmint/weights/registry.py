"""Every checkpoint that has a name: address, size, checksum, licence, and where the figures were read.

Official ones are pulled. A figure that nobody has published is None, never a guess: `pull` then records what it saw, so
that `check` can tell later changes. The demo's lie in the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

CheckpointKind = Literal["grounding-dino", "sam", "vqgan", "vit", "vocabulary"]

GIVES: Mapping[CheckpointKind, str] = MappingProxyType(
    {
        "grounding-dino": "boxes, scores, spans",
        "sam": "masks",
        "vqgan": "codes",
        "vit": "features",
        "vocabulary": "words of a detector",
    }
)
"""What each kind of model gives."""

FOLDERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("detector", "boxes, scores, spans", ("grounding-dino", "mm-grounding-dino", "owlv2")),
    ("masker", "masks", ("sam", "sam2", "edgetam", "sam_hq")),
    ("segmenter", "masks, boxes, scores", ("sam3",)),
    ("tokenizer", "codes", ("chameleon", "janus")),
    ("vit", "features", ("clip", "siglip", "siglip2", "dinov3_vit", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")),
)
"""Roles, what is given, and families that are read from a folder of Hugging Face's layout: their `model_type`."""

_DINO_RELEASES = "https://github.com/IDEA-Research/GroundingDINO/releases/download"
_SAM_FOLDER = "https://dl.fbaipublicfiles.com/segment_anything"
_SAM_SOURCE = "facebookresearch/segment-anything: README (address, licence); figures: the project's background notes"
_VQGAN_LICENCE = "MIT (the repository's; none is stated for the weights)"
_DEMO_SOURCE = "trained by tools.demo_training.train (docs/model-card.md)"

_DEMO_FIGURES = {
    "demo-detector.safetensors": (11_904_766, "6102d7b120fa788999a43958b1b883e3517f3f6f958ed5740e515eec28278db6"),
    "demo-vocab.txt": (410, "e24256f918b481c1140388c487ccb3bd5016bd84c72e84a7e16d5aaa87a745c1"),
    "demo-masker.safetensors": (1_578_472, "5a412c768b2013bb4935e36220188945bee3e5fcf888914d386d0630c803aa6c"),
    "demo-tokenizer.safetensors": (2_505_422, "ee5195183f9f500e268bec3945e02d98a6e687209fd108cfe73fd218b514095a"),
    "demo-vit.safetensors": (2_296_080, "ab172ebda11e3c5070cc021ff5c3c1073f1443aecc9eb11292dff2349cbd85d3"),
}
"""Size and sha256 of the files in `weights/bundled`: all that changes here when they are trained again."""


@dataclass(frozen=True)
class Checkpoint:
    """A published or bundled file of weights, or of a vocabulary.

    Attributes:
        name: as in configs and on the command line.
        kind: the model family that reads it.
        filename: its name in the weights folder, or in the package's.
        url: where it is published; empty for a bundled one.
        size: bytes; None where not published.
        sha256: hexadecimal, lower case; None where not published.
        licence: as stated by its publisher.
        source: where size and sha256 were read, or where a bundled file comes from.
        bundled: whether it lies in the package, so that it is never pulled.
    """

    name: str
    kind: CheckpointKind
    filename: str
    url: str
    size: int | None
    sha256: str | None
    licence: str
    source: str
    bundled: bool = False


def _heibox(folder: str) -> str:
    """The address of `ckpts/last.ckpt` in a Heidelberg share, as in CompVis/taming-transformers' README."""
    return f"https://heibox.uni-heidelberg.de/d/{folder}/files/?p=%2Fckpts%2Flast.ckpt&dl=1"


def _dino(name: str, release: str, filename: str, size: int, sha256: str) -> Checkpoint:
    url, source = f"{_DINO_RELEASES}/{release}/{filename}", f"IDEA-Research/GroundingDINO, release {release}"
    return Checkpoint(name, "grounding-dino", filename, url, size, sha256, "Apache-2.0", source)


def _sam(name: str, filename: str, size: int, sha256: str) -> Checkpoint:
    return Checkpoint(name, "sam", filename, f"{_SAM_FOLDER}/{filename}", size, sha256, "Apache-2.0", _SAM_SOURCE)


def _llamagen(name: str, folder: str, filename: str) -> Checkpoint:
    url = f"https://huggingface.co/{folder}/resolve/main/{filename}"
    source = "address: FoundationVision/LlamaGen, README; no exact size or checksum found"
    return Checkpoint(name, "vqgan", f"llamagen_{filename}", url, None, None, "MIT (the repository's)", source)


def _ibq(codes: int) -> Checkpoint:
    filename = f"imagenet256_{codes}.ckpt"
    url = f"https://huggingface.co/TencentARC/IBQ-Tokenizer-{codes}/resolve/main/{filename}"
    source = "address: TencentARC/SEED-Voken, docs/IBQ.md; no exact size or checksum found"
    return Checkpoint(
        f"ibq-{codes}", "vqgan", f"ibq_{filename}", url, None, None, "Apache-2.0 (the repository's)", source
    )


def _demo(name: str, kind: CheckpointKind, filename: str) -> Checkpoint:
    """A file that lies in the package."""
    size, sha256 = _DEMO_FIGURES[filename]
    return Checkpoint(name, kind, filename, "", size, sha256, "Apache-2.0", _DEMO_SOURCE, bundled=True)


_ALL = (
    _dino(
        "groundingdino-swint-ogc",
        "v0.1.0-alpha",
        "groundingdino_swint_ogc.pth",
        693_997_677,
        "3b3ca2563c77c69f651d7bd133e97139c186df06231157a64c507099c52bc799",
    ),
    _dino(
        "groundingdino-swinb-cogcoor",
        "v0.1.0-alpha2",
        "groundingdino_swinb_cogcoor.pth",
        938_057_991,
        "46270f7a822e6906b655b729c90613e48929d0f2bb8b9b76fd10a856f3ac6ab7",
    ),
    _sam(
        "sam-vit-b",
        "sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    _sam(
        "sam-vit-l",
        "sam_vit_l_0b3195.pth",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    _sam(
        "sam-vit-h",
        "sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    Checkpoint(
        name="vqgan-imagenet-f16-1024",
        kind="vqgan",
        filename="vqgan_imagenet_f16_1024.ckpt",
        url=_heibox("8088892a516d4e3baf92"),
        size=None,
        sha256=None,
        licence=_VQGAN_LICENCE,
        source="address: CompVis/taming-transformers, README; no exact size or checksum found (about 958 MB)",
    ),
    Checkpoint(
        name="vqgan-imagenet-f16-16384",
        kind="vqgan",
        filename="vqgan_imagenet_f16_16384.ckpt",
        url=_heibox("a7530b09fed84f80a887"),
        size=980_092_370,
        sha256="845a68805098cb666420d5db93df53f3a3b6dd443e6dd85c05759c5b998cd663",
        licence=_VQGAN_LICENCE,
        source="address: CompVis/taming-transformers, README; figures: five public projects that pin this address or "
        "its mirrors agree, among them the users of Somnai/pytti-vqgan-checkpoints (Hugging Face)",
    ),
    Checkpoint(
        name="vqgan-gumbel-f8-8192",
        kind="vqgan",
        filename="vqgan_gumbel_f8_8192.ckpt",
        url=_heibox("2e5662443a6b4307b470"),
        size=376_581_823,
        sha256="5cd6c74810ab97e00e942c25403f73afc081e8b19987b31ec0d9ff5b68e7ab14",
        licence=_VQGAN_LICENCE,
        source="address: CompVis/taming-transformers, README; figures: public projects that pin the mirrors "
        "pxlpshr/pytti-models and Somnai/pytti-vqgan-checkpoints (Hugging Face; there called openimages) agree, and so "
        "does a third project's record of its last.ckpt",
    ),
    _llamagen("llamagen-vq-ds16-c2i", "FoundationVision/LlamaGen", "vq_ds16_c2i.pt"),
    _llamagen("llamagen-vq-ds16-t2i", "peizesun/llamagen_t2i", "vq_ds16_t2i.pt"),
    _llamagen("llamagen-vq-ds8-c2i", "FoundationVision/LlamaGen", "vq_ds8_c2i.pt"),
    *map(_ibq, (1024, 8192, 16384, 262144)),
    Checkpoint(
        name="clip-vit-l-14-336",
        kind="vit",
        filename="clip_vit_large_patch14_336.bin",
        url="https://huggingface.co/openai/clip-vit-large-patch14-336/resolve/main/pytorch_model.bin",
        size=1_711_974_081,
        sha256="c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
        licence="MIT (that of openai/CLIP; none is stated for these weights)",
        source="six and more public projects that pin or hashed this file agree on the checksum, two on the size",
    ),
    Checkpoint(
        name="siglip-so400m-384",
        kind="vit",
        filename="siglip_so400m_patch14_384.safetensors",
        url="https://huggingface.co/google/siglip-so400m-patch14-384/resolve/main/model.safetensors",
        size=3_511_950_624,
        sha256="ea2abad2b7f8a9c1aa5e49a244d5d57ffa71c56f720c94bc5d240ef4d6e1d94a",
        licence="Apache-2.0",
        source="five and more public projects that pin or hashed this file agree on the checksum, three on the size",
    ),
    Checkpoint(
        name="bert-base-uncased-vocab",
        kind="vocabulary",
        filename="bert-base-uncased-vocab.txt",
        url="https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt",
        size=231_508,
        sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        licence="Apache-2.0",
        source="many public projects agree; reproduced by hashing two repositories' copies with their own three "
        "renamed tokens set back to [unused0] ... [unused2]",
    ),
    _demo("demo-detector", "grounding-dino", "demo-detector.safetensors"),
    _demo("demo-vocabulary", "vocabulary", "demo-vocab.txt"),
    _demo("demo-masker", "sam", "demo-masker.safetensors"),
    _demo("demo-tokenizer", "vqgan", "demo-tokenizer.safetensors"),
    _demo("demo-vit", "vit", "demo-vit.safetensors"),
)

CHECKPOINTS: Mapping[str, Checkpoint] = MappingProxyType({checkpoint.name: checkpoint for checkpoint in _ALL})
"""Every checkpoint by name, in the order of listings."""


def total_size(names: Iterable[str]) -> str:
    """The size of several checkpoints together, for people: "4.2 GB", or "over 1.1 GB" where one isn't published."""
    sizes = [CHECKPOINTS[name].size for name in names]
    return f"{'over ' if None in sizes else ''}{sum(size or 0 for size in sizes) / 1e9:.1f} GB"
