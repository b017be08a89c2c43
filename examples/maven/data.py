"""Data for the four stages: drawn scenes, documents of several, and shards with labels, codes and features of both."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from patchmint.demo.dataset import make_once
from patchmint.demo.documents import obtain_documents
from patchmint.demo.scenes import Scene, make_scene
from patchmint.geometry.grid import Fit, PatchGrid
from patchmint.geometry.rle import encode_masks
from patchmint.judging.judge import touched_patches
from patchmint.types import PHRASE_SEPARATOR

SIDE = 224
GRID = {"rows": 24, "cols": 24, "patch_px": 14, "fit": "squash"}
POOL = 12
CODES_PX = 96
SHARD = 100


@dataclass(frozen=True)
class Size:
    """How many scenes and documents there are to learn from (`more` without labels), and to be judged by."""

    labelled: int = 1200
    more: int = 1800
    held_out: int = 250
    documents: int = 100
    held_out_documents: int = 150


def things_of(scene: Scene) -> list[str]:
    """Colour and shape of everything in a scene, each once, in the order of the alphabet."""
    return sorted({f"{thing.colour} {thing.shape}" for thing in scene.objects})


class Pictures:
    """Scenes of one size, each with two texts: all that it shows, and one thing of it; and their finished data set."""

    def __init__(self, folder: Path, seed: int, scenes: int, *, labels: bool = True) -> None:
        self.dataset = folder / "dataset"
        self._seed, self._count = seed, scenes
        make_once(folder / "scenes", self._draw)
        source = {"kind": "coco", "uri": str(folder / "scenes"), "texts": "caption"}
        _build(folder, source, labels=labels)

    def scene(self, number: int) -> Scene:
        """The scene of a sample, by its id."""
        return make_scene(self._seed, number, size=(SIDE, SIDE), texts=0)

    def _draw(self, folder: Path) -> None:
        (folder / "annotations").mkdir(parents=True)
        (folder / "train2017").mkdir()
        images, captions = [], []
        for number in range(self._count):
            scene = self.scene(number)
            name, things = f"{number:06d}.jpg", things_of(scene)
            (folder / "train2017" / name).write_bytes(scene.jpeg)
            images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
            for text in (PHRASE_SEPARATOR.join(things), things[number % len(things)]):
                captions.append({"id": len(captions), "image_id": number, "caption": text})
        told = {"images": images, "annotations": captions}
        (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(told))

    @cached_property
    def truth(self) -> list[Truth]:
        """What each scene shows where, by number."""
        return [Truth(self.scene(number)) for number in range(self._count)]


class Truth:
    """A scene's things and their patches on the features' grid: bool (POOL * POOL,) by name."""

    def __init__(self, scene: Scene) -> None:
        placement = PatchGrid(GRID["rows"], GRID["cols"], GRID["patch_px"], Fit(GRID["fit"])).place(scene.size)
        self.patches: dict[str, Tensor] = {}
        for number, thing in enumerate(scene.objects):
            touched = torch.from_numpy(touched_patches(encode_masks((scene.ids == number)[None])[0], placement))
            pooled = touched.reshape(POOL, touched.shape[-2] // POOL, POOL, -1).any(3).any(1).flatten()
            name = f"{thing.colour} {thing.shape}"
            self.patches[name] = self.patches.get(name, torch.zeros_like(pooled)) | pooled

    def apart(self, thing: str) -> tuple[Tensor, Tensor]:
        """Patches of a thing, and of the others alone."""
        named = self.patches[thing]
        return named, torch.stack([*self.patches.values()]).any(0) & ~named


def documents(folder: Path, seed: int, many: int) -> Path:
    """The demo's documents, with codes and features; returns the finished data set."""
    obtain_documents(folder / "documents", seed=seed, count=many, progress=lambda _: None)
    source: dict[str, object] = {
        "kind": "conversations",
        "uri": str(folder / "documents"),
        "annotations": "conversations.json",
    }
    source |= {"documents": True, "texts": "all"}
    _build(folder, source, labels=False)
    return folder / "dataset"


def _build(folder: Path, source: dict[str, object], *, labels: bool) -> None:
    """An ordinary build, which resumes where an earlier call stopped; nothing where that is finished."""
    config = {
        "source": source,
        "output": {"uri": str(folder / "dataset"), "samples_per_shard": SHARD},
        "models": "demo",
        "grid": GRID,
        "tokens": {"size": CODES_PX},
        "features": {"connector": "dci", "pool": POOL},
        "labels": {} if labels else None,
        "runner": {"workers": 2, "num_cpus": 1},
    }
    path, text = folder / "config.yaml", json.dumps(config)  # JSON is YAML
    if path.exists() and path.read_text() == text and (folder / "dataset" / "dataset.json").exists():
        return
    path.write_text(text)
    command = [sys.executable, "-W", "ignore", "-m", "patchmint", "build", str(path)]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603 (our own command)
