"""Peak memory and time of planning, by number of samples: memory must stay flat.

    python benchmarks/plan_memory.py [--full] [--json]

A synthetic source of five captions an image, every eighth id unlawful and every hundredth a repetition, is planned into
a temporary folder, each size in a process of its own: 100 thousand and a million samples, with --full 10 million (about
ten minutes, 3 GB of temporary disk). Ends with 1 where the largest size's peak is over 1.25 times the smallest's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from patchmint.config import UNTRAINED
from patchmint.config.build import BuildConfig
from patchmint.pipeline.plan import make_plan, record_models, to_batches
from patchmint.samples import ImageRef, SourceSample, SourceText
from patchmint.shards.plan import load_plan
from patchmint.shards.plan_parts import read_unit
from patchmint.storage import open_storage

SIZES = (100_000, 1_000_000)
FULL_SIZE = 10_000_000
FLAT = 1.25


@dataclass(frozen=True)
class Measured:
    """One size.

    Attributes:
        samples: how many were planned.
        seconds: to make the plan.
        peak_mb: resident memory of the process at most, in MB, imports included.
        before_mb: the same before planning.
        plan_mb: size of the plan on disk.
        load_seconds: to load the index.
        unit_seconds: to read one unit.
    """

    samples: int
    seconds: float
    peak_mb: float
    before_mb: float
    plan_mb: float
    load_seconds: float
    unit_seconds: float


def synthetic(count: int) -> Iterator[SourceSample]:
    for number in range(count):
        name = f"{number - number % 100 if number % 100 == 50 else number:012d}"
        yield SourceSample(
            id=f"train2017/{name}.jpg" if number % 8 == 0 else name,
            images=(ImageRef(f"train2017/{number:012d}.jpg"),),
            texts=tuple(
                SourceText(f"Caption {caption} of image {number}: a cat and a dog on a sofa.") for caption in range(5)
            ),
        )


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(count: int) -> Measured:
    with tempfile.TemporaryDirectory(prefix="patchmint-benchmark-") as folder:
        config = BuildConfig.parse(
            {"source": {"kind": "coco", "uri": "synthetic"}, "output": {"uri": folder}, "models": UNTRAINED}
        )
        storage = open_storage(folder)
        before, start = peak_mb(), time.perf_counter()
        make_plan(to_batches(synthetic(count)), config, record_models(config), storage)
        planned = time.perf_counter()
        plan = load_plan(storage)
        assert plan is not None
        assert plan.total == count
        loaded = time.perf_counter()
        read_unit(storage, plan.units[-1])
        return Measured(
            samples=count,
            seconds=round(planned - start, 1),
            peak_mb=round(peak_mb(), 1),
            before_mb=round(before, 1),
            plan_mb=round(sum(entry.size for entry in storage.list()) / 1e6, 1),
            load_seconds=round(loaded - planned, 3),
            unit_seconds=round(time.perf_counter() - loaded, 3),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="10 million samples as well")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", type=int, help="measure this many samples in this process")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(asdict(measure(arguments.only))))
        return
    rows = []
    for size in (*SIZES, *([FULL_SIZE] if arguments.full else [])):
        done = subprocess.run([sys.executable, __file__, "--only", str(size)], check=True, stdout=subprocess.PIPE)
        rows.append(Measured(**json.loads(done.stdout)))
        if not arguments.json:
            row = rows[-1]
            print(
                f"{row.samples:>10,} samples: {row.seconds:7.1f} s ({row.samples / row.seconds:,.0f} a second), peak "
                f"{row.peak_mb:.0f} MB ({row.before_mb:.0f} MB before), plan {row.plan_mb:.1f} MB, index loaded in "
                f"{row.load_seconds:.3f} s, a unit read in {row.unit_seconds:.3f} s",
                flush=True,
            )
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    if rows[-1].peak_mb > FLAT * rows[0].peak_mb:
        sys.exit(f"not flat: {rows[-1].peak_mb} MB against {rows[0].peak_mb} MB")


if __name__ == "__main__":
    main()
