"""Judges all demo models together, as the pipeline runs them: `python -m tools.demo_training.evaluate`.

Prints the tables of docs/quality.md, or JSON. Scenes are of seeds that nothing was trained or tuned on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count as from_0
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from patchmint.config import LabelsConfig, ModelsConfig, PresenceConfig, TokensConfig
from patchmint.demo import FRESH_SEED
from patchmint.demo.scenes import MAX_OBJECTS, Harder, Scene, make_scene
from patchmint.demo.score import psnr
from patchmint.demo.texts import DEMO_PRESENCE
from patchmint.features.model import load_vit, untrained_vit
from patchmint.geometry import grid_preset
from patchmint.geometry.processing import fit_image
from patchmint.interfaces import Tokenizer
from patchmint.labelers.grounded_sam import GroundedSam, build_grounded_sam, build_masker
from patchmint.labelers.sam.masks import MaskCoverage
from patchmint.tokenizers.build import build_tokenizer
from patchmint.types import Size
from patchmint.weights.loading import load_state
from patchmint.weights.store import bundled_folder
from tools.demo_training.measure import judge_labels, judged, mask_ious
from tools.demo_training.models import FILES, VIT, VOCABULARY_FILE
from tools.demo_training.train_vit import KINDS, Seen, hidden_states, look

_WIDE: Size = (160, 400)
_MANY_TEXTS = 4
_LONGEST_OF = 12
_EDGE_TEXTS = 8
_EDGE_SIZES: tuple[Size, ...] = (
    *((97, 411), (411, 97), (160, 544), (160, 824), (824, 160), (160, 1280), (1280, 160), (160, 1600), (1600, 160)),
    *((32, 32), (48, 48), (64, 64), (96, 96), (1600, 1600), (2400, 3200)),
)

Table = Mapping[str, Mapping[str, float]]
"""Figures by name, by setting."""


@dataclass(frozen=True)
class LabelSetting:
    """One way of asking for labels.

    Attributes:
        name: of the row.
        scenes: a key of `_scenes`.
        grid: a preset's name.
        phrases: whether the texts' phrases are spelled out for the segmenter.
        coverage: how masks are turned into shares of patches.
    """

    name: str
    scenes: str = "plain"
    grid: str = "llava-1.5-finetune"
    phrases: bool = False
    coverage: MaskCoverage = "exact"


LABEL_SETTINGS = (
    LabelSetting("default: caption mode, pad, exact"),
    LabelSetting("phrases spelled out", phrases=True),
    LabelSetting("fast coverage", coverage="fast"),
    LabelSetting("crop (llava-1.5-pretrain)", grid="llava-1.5-pretrain"),
    LabelSetting("squash (seed-224)", grid="seed-224"),
    LabelSetting("anyres (llava-1.6-original)", grid="llava-1.6-original"),
    LabelSetting("native (qwen3-vl)", grid="qwen3-vl"),
    LabelSetting("native (siglip2-naflex)", grid="siglip2-naflex"),
    LabelSetting("tiles (internvl3)", grid="internvl3"),
    LabelSetting("images of 5:2", scenes="wide"),
    LabelSetting("4 texts an image", scenes="many texts"),
    LabelSetting("longest texts", scenes="longest texts"),
)


def models_in(folder: Path) -> ModelsConfig:
    """The models whose files lie in a folder, as a config names them."""
    paths = {role: str(folder / name) for role, name in FILES.items()}
    return ModelsConfig(vocabulary=str(folder / VOCABULARY_FILE), **paths)


def load_segmenter(
    folder: Path, coverage: MaskCoverage = "exact", presence: PresenceConfig | None = None
) -> GroundedSam:
    """Grounding DINO and SAM from a folder of demo weights, with the pipeline's default thresholds."""
    return build_grounded_sam(models_in(folder), LabelsConfig(coverage=coverage, presence=presence), "cpu")


def judge_segmenter(folder: Path, count: int, seed: int = FRESH_SEED) -> Table:
    """Figures of patch labels by setting; settings that aren't the ordinary scenes take half as many of them."""
    scenes = _scenes(count, seed)
    segmenters = {mode: load_segmenter(folder, mode) for mode in ("exact", "fast")}
    return {
        setting.name: judge_labels(
            segmenters[setting.coverage], scenes[setting.scenes], grid_preset(setting.grid), phrases=setting.phrases
        )
        for setting in LABEL_SETTINGS
    }


def judge_edges(folder: Path, count: int, seed: int = FRESH_SEED) -> Table:
    """Figures of patch labels beyond what the models were trained on; a fifth as many scenes a row."""
    segmenter, grid, fifth = load_segmenter(folder), grid_preset(LabelSetting.grid), max(1, count // 5)

    def judged(scenes: Iterable[Scene]) -> dict[str, float]:
        return judge_labels(segmenter, scenes, grid, phrases=False)

    table = {}
    for size in _EDGE_SIZES:
        scenes = (make_scene(seed + 4, number, size=size, texts=_EDGE_TEXTS) for number in range(fifth))
        table[f"{size[0]} x {size[1]}"] = judged(scenes)
    full = (scene for number in from_0() if len((scene := make_scene(seed + 5, number)).objects) == MAX_OBJECTS)
    return table | {f"{MAX_OBJECTS} things": judged(islice(full, fifth))}


def judge_presence(folder: Path, count: int, seed: int = FRESH_SEED) -> Table:
    """Figures of one look and of two, on usual scenes, and on harder ones, of which there are a third as many.

    `absent_rate` of the row "usual, two looks" is the share of absent things that get a label.
    """
    grid, table = grid_preset(LabelSetting.grid), {}
    names = ("patch_f1", "patch_iou", "absent_rate", "missed_rate", "ece")
    looks = {"one look": load_segmenter(folder), "two looks": load_segmenter(folder, presence=DEMO_PRESENCE)}
    for harder in (None, *get_args(Harder)):
        part = count if harder is None else max(1, count // 3)
        scenes = [make_scene(seed + 7, number, texts=_MANY_TEXTS, harder=harder) for number in range(part)]
        for looked, segmenter in looks.items():
            figures = judged(segmenter, scenes, grid, phrases=False).figures()
            table[f"{harder or 'usual'}, {looked}"] = {name: figures[name] for name in names}
    return table


def judge_masker(folder: Path, count: int, seed: int = FRESH_SEED) -> Table:
    """IoU of masks from true boxes with what is seen of the objects: mean, and the value that a tenth falls below."""
    masker = build_masker(models_in(folder), LabelsConfig(), "cpu")
    table = {}
    for name, scenes in _scenes(count, seed).items():
        if name in ("plain", "wide"):
            ious = [
                iou for scene in scenes for iou in mask_ious(scene, masker.masks([scene.image], [scene.boxes()])[0])
            ]
            table[_IMAGES[name]] = {"mask_iou": float(np.mean(ious)), "worst_tenth": float(np.quantile(ious, 0.1))}
    return table


def judge_tokenizer(folder: Path, count: int, seed: int = FRESH_SEED) -> Table:
    """PSNR of pictures drawn from their codes, and the share of codes that occur."""
    models, scenes = models_in(folder), _scenes(count, seed)
    fits: tuple[Literal["pad", "crop", "squash"], ...] = ("pad", "crop", "squash")
    return {
        f"{_IMAGES[name]}, {fit}": psnr_and_use(build_tokenizer(models, TokensConfig(fit=fit), "cpu"), scenes[name])
        for name in ("plain", "wide")
        for fit in fits
    }


def psnr_and_use(tokenizer: Tokenizer, scenes: list[Scene]) -> dict[str, float]:
    """Mean PSNR in dB of pictures drawn from their codes, and the share of the codebook that occurs in them."""
    ratios = []
    used: set[int] = set()
    cells = tokenizer.spec.cells
    assert cells is not None, "a VQGAN's codes have places"
    for scene in scenes:
        tokens = tokenizer.tokenize([scene.image])
        ratios.append(psnr(tokenizer.decode(tokens)[0], fit_image(scene.image, cells)[0]))
        used.update(np.unique(tokens[0].codes).tolist())
    return {"psnr": float(np.mean(ratios)), "codes_used": len(used) / tokenizer.spec.codebook_sizes[0]}


def judge_encoder(folder: Path, count: int, seed: int = FRESH_SEED) -> Table:
    """What a linear probe of each hidden state tells about patches of other scenes, as a share of right answers.

    `thing`: of all patches, whether anything is on them; the others: of those with a thing, which. For comparison the
    same of the pixels, and of an encoder with random weights.
    """
    scenes = [make_scene(seed + 6, number, texts=0) for number in range(count)]
    seen, half = look(scenes, VIT.side, 1), count // 2
    trained = load_vit(load_state(folder / FILES["vit"]))
    random = untrained_vit(VIT, seed=0)
    rows = {"pixels": seen.pixels} | {
        f"{name}, state {index}": state[:, 1:]
        for name, vit in (("random", random), ("trained", trained))
        for index, state in enumerate(hidden_states(vit, seen.pixels, seen.cells))
    }
    return {name: probed(tokens, seen, half) for name, tokens in rows.items()}


def probed(tokens: Tensor, seen: Seen, half: int) -> dict[str, float]:
    """Right answers of least squares that learned from the first `half` of (B, n, channels), about the rest."""
    flat = tokens.flatten(0, 1)
    start = half * tokens.shape[1]
    known = torch.cat([(flat - flat[:start].mean(0)) / (flat[:start].std(0) + 1e-6), torch.ones(len(flat), 1)], dim=1)
    thing = seen.thing.flatten()
    classes = {"thing": thing.long()}
    classes |= {kind: seen.classes[..., number].flatten() for number, kind in enumerate(KINDS)}
    figures = {}
    for kind, wanted in classes.items():
        chosen = torch.ones_like(thing) if kind == "thing" else thing
        learn, rest = (known[part][chosen[part]] for part in (slice(start), slice(start, None)))
        inverse = learn.T @ learn + 1e-3 * len(learn) * torch.eye(learn.shape[1])
        weights = torch.linalg.solve(inverse, learn.T @ functional.one_hot(wanted[:start][chosen[:start]]).float())
        right = (rest @ weights).argmax(1) == wanted[start:][chosen[start:]]
        figures[kind] = float(right.float().mean())
    return figures


_IMAGES = {"plain": "ordinary images", "wide": "images of 5:2"}


def _scenes(count: int, seed: int) -> dict[str, list[Scene]]:
    half = range(max(1, count // 2))
    return {
        "plain": [make_scene(seed, number, texts=2) for number in range(count)],
        "wide": [make_scene(seed + 2, number, size=_WIDE, texts=2) for number in half],
        "many texts": [make_scene(seed + 1, number, texts=_MANY_TEXTS) for number in half],
        "longest texts": [_with_longest(make_scene(seed + 3, number, texts=_LONGEST_OF)) for number in half],
    }


def _with_longest(scene: Scene) -> Scene:
    return replace(scene, texts=(max(scene.texts, key=lambda text: len(text.content)),))


def main() -> None:
    """Judge a folder of weights; what isn't there is left out."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_training.evaluate", description="Judge the demo models."
    )
    parser.add_argument(
        "weights", type=Path, nargs="?", default=bundled_folder(), help="folder of weights; without it the package's"
    )
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--presence", action="store_true", help="one look and two, also on harder scenes; nothing else")
    options = parser.parse_args()
    if options.presence:
        table = judge_presence(options.weights, options.scenes)
        print(json.dumps(table) if options.json else _markdown("presence", table))
        return
    tables = {}
    for title, roles, judge in (
        ("labels", ("detector", "masker"), judge_segmenter),
        ("edges (height x width)", ("detector", "masker"), judge_edges),
        ("masks of true boxes", ("masker",), judge_masker),
        ("codes", ("tokenizer",), judge_tokenizer),
        ("linear probes of patches", ("vit",), judge_encoder),
    ):
        if all((options.weights / FILES[role]).is_file() for role in roles):
            tables[title] = judge(options.weights, options.scenes)
    print(json.dumps(tables) if options.json else "\n".join(_markdown(*table) for table in tables.items()))


def _markdown(title: str, table: Table) -> str:
    columns = list(next(iter(table.values())))
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[key]:.3f}' for key in columns)} |" for name, row in table.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
