"""What a column costs: bytes that `extend` writes, and samples a second that are read with it, in one run.

    python benchmarks/columns.py             # some minutes on 2 cores, 8 GB of disk
    python benchmarks/columns.py --json

- `bytes_ratio`: all that `patchmint extend` writes for features of ordinary size (12 x 12 x 1024, as LLaVA's pooled),
  tars, sidecars, plan and records, over the bytes of the new members. `codes_bytes_ratio` is the same of 16 x 16 codes,
  640 bytes a member: a tar has a header of 512 bytes for each member, and fills members up to whole blocks.
- `loading_ratio`: samples a CPU second of `StageLoader` (stage 1, in this process) with a data set and its column, over
  those of the same content in whole shards (`patchmint compact`), with pixels; `members_loading_ratio` is the same
  without. Medians over several rounds, the contestants taking turns.

Models cost nothing here: the bytes are those of any others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import loader
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from builds import build_here, warmed

from patchmint.interfaces import FeatureSpec
from patchmint.jobs.extend import settings_of
from patchmint.shards.manifest import read_manifest
from patchmint.storage import open_storage
from patchmint.training.dataset import StageDataset
from patchmint.training.loader import StageLoader

FORM = FeatureSpec(
    encoder="made up",
    connector="none",
    layers=((-2,),),
    select_feature="patch",
    pool="after",
    grid=(12, 12),
    leading=0,
    trailing=0,
    channels=1024,
)
"""Of 288 kB."""

FEATURES = {"features": {"pool": 12}, "models.vit": "untrained-tiny"}
CODES = {"tokens": {}, "models.tokenizer": "stand-in"}
BYTES = {"features": 12 * 12 * 1024 * 2, "tokens": 16 * 16 * 2}
"""Of a sample's numbers; its member has a header of 128 bytes more."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000, help="of the extension; a tenth of it is loaded")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with warmed(), patch("patchmint.features.plan.build_feature_encoder", lambda *_: Encoder()):
        with tempfile.TemporaryDirectory() as folder:
            found: dict[str, Any] = {"bytes_ratio": bytes_ratio(Path(folder), arguments.samples, FEATURES)}
        with tempfile.TemporaryDirectory() as folder:
            found["codes_bytes_ratio"] = bytes_ratio(Path(folder), arguments.samples // 10, CODES)
        with tempfile.TemporaryDirectory() as folder:
            rows = loading(Path(folder), arguments.samples // 10, arguments.rounds)
    found |= {
        "loading": rows,
        "loading_ratio": rows["pixels"]["ratio"],
        "members_loading_ratio": rows["members"]["ratio"],
    }
    print(json.dumps(found, indent=1))


class Encoder:
    """Features of any image."""

    spec = FORM

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._features = rng.standard_normal((FORM.tokens, FORM.channels)).astype(np.float16)

    def encode(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The same each time."""
        return [self._features for _ in images]


def bytes_ratio(folder: Path, samples: int, made: dict[str, Any]) -> float:
    """Bytes that `extend` writes, over those of the new members; of small images, which it only reads."""
    with patch.object(loader, "SIZE", (64, 48)):
        data = loader.make_dataset(folder / "data", samples, loader.SHARD)
    before = total(data)
    extend(data, "column", made)
    section = next(iter(made))
    return (total(data) - before) / (samples * (BYTES[section] + 128))


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def extend(data: Path, name: str, made: dict[str, Any]) -> None:
    column = data / "columns" / name
    told = settings(data, column, set(made) & {"features", "tokens"})
    build_here(told, column, made | {"runner.device": "cpu", "runner.batch_size": 32})


def settings(data: Path, out: Path, made: set[str], columns: Sequence[str] = ()) -> dict[str, Any]:
    manifest = read_manifest(open_storage(data))
    config = {"output": {}, "limits": {}, "models": {}} | manifest.config
    return settings_of(manifest.model_copy(update={"config": config}), str(data), str(out), made, columns)


def loading(folder: Path, samples: int, rounds: int) -> dict[str, dict[str, float]]:
    """By row, samples a second: with a column, and of whole shards."""
    data, whole = loader.make_dataset(folder / "data", samples, samples // 4), folder / "whole"
    extend(data, "features", FEATURES)
    build_here(settings(data, whole, set(), ["features"]), whole, {"runner.device": "cpu"})
    rows = {}
    for name, images in (("members", False), ("pixels", True)):
        rates: dict[str, list[float]] = {"joined": [], "whole": []}
        for turn in range(rounds):
            for contestant, place in (("joined", data), ("whole", whole)):
                include = ["labels", "codes", "features", *(["pixels"] if images else [])]
                batches = StageLoader(StageDataset(place, include=include), loader.BATCH)
                start = time.process_time()
                seen = sum(len(batch) for batch in islice(batches, max(1, len(batches) // (8 if images else 1))))
                rates[contestant].append(seen / (time.process_time() - start))
            print(f"round {turn + 1}: {name} {' '.join(f'{of[-1]:.0f}' for of in rates.values())}/s", file=sys.stderr)
        pairs = zip(rates["joined"], rates["whole"], strict=True)
        rows[name] = {contestant: statistics.median(values) for contestant, values in rates.items()}
        rows[name]["ratio"] = statistics.median(joined / whole for joined, whole in pairs)
    return rows


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
