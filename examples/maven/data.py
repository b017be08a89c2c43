"""Data for the four stages: drawn scenes, documents of several, and shards with labels, codes and features of both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
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


def things_of(scene: Scene) -> dict[str, tuple[int, ...]]:
    """Colour and shape of everything in a scene, in the order of the alphabet; the objects that have them."""
    names = [f"{thing.colour} {thing.shape}" for thing in scene.objects]
    return {name: tuple(n for n, one in enumerate(names) if one == name) for name in sorted(set(names))}


class Pictures:
    """Scenes of one size, each with two texts: all that it shows, and one thing of it; and their finished data set."""

    def __init__(self, folder: Path, seed: int, count: int, *, labels: bool = True) -> None:
        self._seed, self._count = seed, count
        make_once(folder / "scenes", self._draw)
        source = {"kind": "coco", "uri": str(folder / "scenes"), "texts": "caption"}
        self.dataset = build(folder, source, labels=labels)

    def scenes(self) -> Iterator[Scene]:
        """The scenes; a scene's number is its sample's key."""
        return (make_scene(self._seed, number, size=(SIDE, SIDE), texts=0) for number in range(self._count))

    def truth(self) -> list[dict[str, Tensor]]:
        """Of each scene the patches of its things on the features' grid: bool (POOL * POOL,) by name."""
        placement = PatchGrid(POOL, POOL, GRID["rows"] * GRID["patch_px"] // POOL, Fit(GRID["fit"])).place((SIDE, SIDE))

        def patches(scene: Scene, objects: tuple[int, ...]) -> Tensor:
            mask = encode_masks(scene.mask(objects)[None])[0]
            return torch.from_numpy(touched_patches(mask, placement)).flatten()

        return [{name: patches(scene, which) for name, which in things_of(scene).items()} for scene in self.scenes()]

    def _draw(self, folder: Path) -> None:
        (folder / "annotations").mkdir(parents=True)
        (folder / "train2017").mkdir()
        images, captions = [], []
        for number, scene in enumerate(self.scenes()):
            name, things = f"{number:06d}.jpg", list(things_of(scene))
            (folder / "train2017" / name).write_bytes(scene.jpeg)
            images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
            for text in (PHRASE_SEPARATOR.join(things), things[number % len(things)]):
                captions.append({"id": len(captions), "image_id": number, "caption": text})
        told = {"images": images, "annotations": captions}
        (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(told))


def documents(folder: Path, seed: int, count: int) -> Path:
    """The demo's documents, with codes and features; returns the finished data set."""
    obtain_documents(folder / "documents", seed=seed, count=count, progress=lambda _: None)
    source = {"kind": "conversations", "uri": str(folder / "documents"), "annotations": "conversations.json"}
    return build(folder, {**source, "documents": True, "texts": "all"}, labels=False)


def build(folder: Path, source: dict[str, object], *, labels: bool) -> Path:
    """An ordinary build: it resumes where it was stopped, and a finished one stays. Returns the data set."""
    config = {
        "source": source,
        "output": {"uri": str(folder / "dataset"), "samples_per_shard": 100},
        "models": "demo",
        "grid": GRID,
        "tokens": {"size": CODES_PX},
        "features": {"connector": "dci", "pool": POOL},
        "labels": {} if labels else None,
        "runner": {"workers": 2, "num_cpus": 1},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-W", "ignore", "-m", "patchmint", "build", str(path)]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603 (our own command)
    return folder / "dataset"
