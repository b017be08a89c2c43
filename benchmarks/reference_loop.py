"""What people run today to label patches with Grounding SAM and to make codes, one image at a time.

For `reference.py` and `gpu.py`.

Upstream's own code does the work: `groundingdino.util.inference.predict`, `segment_anything.SamPredictor`, taming's
`Encoder` and `VectorQuantizer`, webdataset's `TarWriter`, in float32. Only what can't be avoided is ours: the files are
opened with patchmint's loaders, and Grounding DINO's text encoder is patchmint's, since upstream's doesn't run under
transformers 5. Gradient checkpointing, which upstream's config leaves on and which only costs time, is off.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import groundingdino.datasets.transforms as T  # noqa: N812 (its name in upstream's scripts)
import numpy as np
import torch
import transformers
import webdataset
from groundingdino.util.inference import predict
from PIL import Image
from reference_data import SPLIT, Contest
from segment_anything import SamPredictor
from taming.modules.diffusionmodules import model as taming_model
from taming.modules.diffusionmodules.model import Encoder
from taming.modules.vqvae.quantize import VectorQuantizer
from torch import Tensor, nn
from torchvision.ops import box_convert

from patchmint.labelers.grounding_dino.arch import GroundingDinoArch
from patchmint.labelers.grounding_dino.model import load_grounding_dino
from patchmint.labelers.sam.arch import infer_arch as infer_sam
from patchmint.labelers.sam.model import build_sam
from patchmint.tokenizers.vqgan.model import infer_arch as infer_vqgan
from patchmint.weights.loading import load_state

GRID = 24
TOKENIZER_SIZE = 256
_GREY = (122, 116, 104)
_UPSTREAM = ("groundingdino", "segment_anything", "taming")


def run(
    contest: Contest,
    out: Path,
    shard: int,
    threads: int,
    *,
    device: str = "cpu",
    images: int | None = None,
    warm: int = 0,
) -> dict[str, Any]:
    """Annotate images into tars.

    Args:
        contest: what there is.
        out: folder of the tars, made here.
        shard: images of a tar.
        threads: of torch.
        device: where the models run.
        images: only so many, the first; None = all.
        warm: so many are annotated once before the clock starts: a GPU is slow at first.

    Returns:
        `seconds` from the first image to the last closed tar, `stages` in seconds, and `boxes` found.
    """
    torch.set_num_threads(threads)
    loop = Loop(contest, device)
    refuse_patches(loop.detector.model, loop.predictor.model, *loop.tokenizer)
    document = json.loads((Path(contest.data) / "annotations" / f"captions_{SPLIT}.json").read_text())
    captions = defaultdict(list)
    for annotation in document["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    out.mkdir()
    for image in document["images"][:warm]:
        loop.annotate(Path(contest.data) / SPLIT / image["file_name"], captions[image["id"]])
    loop.stages.clear()
    loop.boxes = 0
    writer = None
    start = time.perf_counter()
    for number, image in enumerate(document["images"][:images]):
        if number % shard == 0:
            if writer:
                writer.close()
            writer = webdataset.TarWriter(str(out / f"{number // shard:06d}.tar"))
        sample = loop.annotate(Path(contest.data) / SPLIT / image["file_name"], captions[image["id"]])
        with loop.stage("write"):
            writer.write(sample)
    writer.close()
    return {"seconds": time.perf_counter() - start, "stages": dict(loop.stages), "boxes": loop.boxes}


class Detector:
    """Upstream's Grounding DINO with all that its own `forward` needs."""

    def __init__(self, model: nn.Module, arch: GroundingDinoArch, vocabulary: Path, device: str = "cpu") -> None:
        pieces = {piece: number for number, piece in enumerate(vocabulary.read_text().split())}
        # transformers 5 ignores vocab_file without a word
        new = not transformers.__version__.startswith("4.")
        tokenizer = transformers.BertTokenizerFast(**({"vocab": pieces} if new else {"vocab_file": str(vocabulary)}))
        if tokenizer.tokenize("a") != ["a"]:
            raise RuntimeError("the tokenizer doesn't know the words of its own vocabulary")
        self.model: Any = model
        self._device = device
        self.model.tokenizer = tokenizer
        self.model.specical_tokens = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])
        # As upstream's load_image, which knows 800 and 1333 only.
        resize = T.RandomResize([arch.short_side], max_size=arch.long_side)
        self._transform = T.Compose([resize, T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])

    def load(self, path: Path) -> tuple[np.ndarray, Tensor]:
        """A picture as SAM takes it, and as the detector does (upstream's `load_image`)."""
        image = Image.open(path).convert("RGB")
        pixels, _ = self._transform(image, None)
        return np.asarray(image), pixels

    def find(self, pixels: Tensor, caption: str, box_threshold: float, text_threshold: float) -> tuple[Any, ...]:
        """Boxes (centre and size as shares of the image), scores and phrases: upstream's `predict`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return predict(self.model, pixels, caption, box_threshold, text_threshold, device=self._device)


class Loop:
    """The models, and what is done with each image."""

    def __init__(self, contest: Contest, device: str = "cpu") -> None:
        self.contest = contest
        self.device = device
        self.stages: dict[str, float] = defaultdict(float)
        self.boxes = 0
        model, arch = load_grounding_dino(load_state(Path(contest.detector)))
        self.detector = Detector(model.to(device), arch, Path(contest.vocabulary), device)
        self.predictor = SamPredictor(_load_sam(Path(contest.masker)).to(device))
        self.tokenizer = tuple(part.to(device) for part in _load_vqgan(Path(contest.tokenizer)))

    def annotate(self, path: Path, captions: list[str]) -> dict[str, Any]:
        """One image with its captions -> the members of its sample."""
        with self.stage("read"):
            data = path.read_bytes()
            image, pixels = self.detector.load(path)
        with self.stage("detect"):
            thresholds = self.contest.box_threshold, self.contest.text_threshold
            found = [self.detector.find(pixels, caption, *thresholds) for caption in captions]
        selector = np.zeros((len(captions), GRID, GRID), np.uint8)
        if any(len(boxes) for boxes, _, _ in found):
            with self.stage("encode"):
                self.predictor.set_image(image)
        for text, (boxes, _, _) in enumerate(found):
            if len(boxes):
                self.boxes += len(boxes)
                with self.stage("masks"):
                    mask = self.mask(boxes, image.shape[:2])
                with self.stage("label"):
                    selector[text] = label(mask)
        with self.stage("tokens"):
            codes = self.encode(image)
        phrases = [{"boxes": boxes.tolist(), "phrases": phrases} for boxes, _, phrases in found]
        return {
            "__key__": path.stem,
            "jpg": data,
            "json": {"texts": captions, "found": phrases},
            "selector.npy": selector,
            "vqgan.npy": codes,
        }

    def mask(self, boxes: Tensor, size: tuple[int, int]) -> np.ndarray:
        """Union of the masks of a text's boxes."""
        height, width = size
        corners = box_convert(boxes * torch.tensor([width, height, width, height]), "cxcywh", "xyxy").to(self.device)
        masks, _, _ = self.predictor.predict_torch(
            point_coords=None,
            point_labels=None,
            boxes=self.predictor.transform.apply_boxes_torch(corners, size),
            multimask_output=False,
        )
        return masks[:, 0].any(dim=0).cpu().numpy()

    @torch.no_grad()
    def encode(self, image: np.ndarray) -> np.ndarray:
        """Codes of a picture (upstream's `VQModel.encode`)."""
        encoder, quant_conv, quantizer = self.tokenizer
        latents = quant_conv(encoder(tokenizer_input(image).to(self.device)))
        indices = quantizer(latents)[2][2]
        return indices.reshape(latents.shape[2:]).cpu().numpy().astype(np.uint16)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds within it to a stage."""
        start = time.perf_counter()
        yield
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
        self.stages[name] += time.perf_counter() - start


def label(mask: np.ndarray) -> np.ndarray:
    """1 for each patch of a picture padded to a square that the mask touches."""
    height, width = mask.shape
    side = max(height, width)
    square = np.zeros((side, side), np.bool_)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = mask
    labels = np.zeros((GRID, GRID), np.uint8)
    for row in range(GRID):
        for col in range(GRID):
            cell = square[
                row * side // GRID : -(-(row + 1) * side // GRID), col * side // GRID : -(-(col + 1) * side // GRID)
            ]
            labels[row, col] = cell.any()
    return labels


def tokenizer_input(image: np.ndarray) -> Tensor:
    """A picture padded to a square and resized, (1, 3, 256, 256), -1..1."""
    picture = Image.fromarray(image)
    side = max(picture.size)
    square = Image.new("RGB", (side, side), _GREY)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    pixels = np.array(square.resize((TOKENIZER_SIZE, TOKENIZER_SIZE), Image.Resampling.BICUBIC))
    return torch.from_numpy((pixels / 127.5 - 1.0).astype(np.float32)).permute(2, 0, 1)[None].contiguous()


def _load_sam(path: Path) -> Any:
    state = load_state(path)
    model = build_sam(infer_sam(state.tensors, state.metadata))
    model.load_state_dict(state.tensors)
    return model


def _swish(x: Tensor) -> Tensor:
    """Upstream's `nonlinearity`, for which patchmint's tokenizer, if it is imported, puts torch's fused one."""
    return x * torch.sigmoid(x)


def _load_vqgan(path: Path) -> tuple[nn.Module, nn.Module, nn.Module]:
    taming_model.nonlinearity = _swish
    state = load_state(path)
    arch = infer_vqgan(state.tensors, state.metadata)
    parts = {
        "encoder": Encoder(**arch.upstream_config()),
        "quant_conv": nn.Conv2d(arch.z_channels, arch.embed_dim, 1),
        "quantize": VectorQuantizer(arch.n_embed, arch.embed_dim, beta=0.25),
    }
    for name, part in parts.items():
        start = f"{name}."
        part.load_state_dict({k.removeprefix(start): t for k, t in state.tensors.items() if k.startswith(start)})
        part.eval().requires_grad_(requires_grad=False)
    return parts["encoder"], parts["quant_conv"], parts["quantize"]


def refuse_patches(*models: nn.Module) -> None:
    """Make sure that nothing of patchmint's speed got into the reference.

    Raises:
        RuntimeError: a module or a function of upstream's is patchmint's, or weights aren't float32.
    """
    ours = [
        f"{name}: {type(module).__module__}.{type(module).__name__}"
        for model in models
        for name, module in model.named_modules()
        if (_is_ours(type(module)) and type(module).__name__ != "TextEncoder") or "forward" in vars(module)
    ]
    for package, module in list(sys.modules.items()):
        if package.split(".")[0] in _UPSTREAM:
            for name, value in vars(module).items():
                methods = vars(value).values() if isinstance(value, type) else ()
                if name != "print" and any(map(_is_ours, (value, *methods))):
                    ours.append(f"{package}.{name}")
    ours += [f"{n}: {p.dtype}" for model in models for n, p in model.named_parameters() if p.dtype != torch.float32]
    if ours:
        raise RuntimeError(f"the reference is no longer upstream's own: {', '.join(ours[:5])}")


def _is_ours(value: object) -> bool:
    return str(getattr(value, "__module__", "")).startswith("patchmint")
