"""`patchmint judge --quick` on synthetic sidecars of many samples: seconds, and memory that doesn't grow with them.

    python benchmarks/judge.py --samples 1000000 --json

A tenth of the samples goes first, in a process of its own; the peaks of both are compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.datasets.dataset import Dataset, Shard
from patchmint.judging.judge import judge
from patchmint.judging.truth import DatasetTruth
from patchmint.shards.sidecar import PARQUET_OPTIONS, SCHEMA
from patchmint.storage import open_storage

SHARD = 2_000
WORDS = ("cat", "dog", "owl", "red bus", "traffic light", "man", "old tree", "cup")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.samples)))
        return
    command = [sys.executable, __file__, "--one", "--json", "--samples"]
    rows = []
    for samples in (options.samples // 10, options.samples):
        done = subprocess.run([*command, str(samples)], check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout))
        if not options.json:
            print(rows[-1])
    if options.json:
        print(json.dumps(rows))


def measured(samples: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        for name, seed in (("one", 1), ("other", 2)):
            write(Path(folder) / name, samples, seed)
        one, other = (dataset(Path(folder) / name, samples) for name in ("one", "other"))
        before = peak()
        started = time.perf_counter()
        verdict = judge(one, DatasetTruth(other), quick=True)
        return {
            "samples": verdict.judged,
            "seconds": round(time.perf_counter() - started, 1),
            "mb_before": before,
            "mb_peak": peak(),
            "presence_missed": verdict.figures["missed_rate"] or 0.0,
        }


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def dataset(folder: Path, samples: int) -> Dataset:
    shards = tuple(
        Shard(unit, "", f"{unit:06}.parquet", min(SHARD, samples - start), 0, 0)
        for unit, start in enumerate(range(0, samples, SHARD))
    )
    return Dataset(str(folder), open_storage(folder), None, shards)


def write(folder: Path, samples: int, seed: int) -> None:
    """Sidecars alone: the words of every text were mostly found; the same texts for every seed."""
    folder.mkdir()
    for unit, start in enumerate(range(0, samples, SHARD)):
        texts, found = np.random.default_rng(unit), np.random.default_rng((seed, unit))
        rows = []
        for ordinal in range(start, min(start + SHARD, samples)):
            words = [WORDS[n] for n in texts.permutation(len(WORDS))[:3]]
            kept = [each for each, is_found in zip(words, found.random(3) < 0.8, strict=True) if is_found]
            rows.append(
                dict.fromkeys(("ordinal", "offset", "source_start"), ordinal)
                | {"key": f"{ordinal:09}", "id": str(ordinal), "size": 1, "width": 640, "height": 480, "format": "jpeg"}
                | {"rows": 24, "cols": 24, "views": 1, "texts": [f"a {words[0]}, a {words[1]} and a {words[2]}"]}
                | {
                    "label_shares": [0.1],
                    "phrases": kept,
                    "phrase_texts": [0] * len(kept),
                    "codes": [],
                    "code_counts": [],
                }
                | {"scores": found.random(len(kept)).round(4).tolist(), "origins": ["model"] * len(kept)}
                | {"source_name": "", "source_path": f"{ordinal}.jpg"}
            )
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / f"{unit:06}.parquet", **PARQUET_OPTIONS)


if __name__ == "__main__":
    main()
