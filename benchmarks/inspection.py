"""How quick `patchmint inspect` is on large data sets, each command as a process of its own.

    python benchmarks/inspection.py                    # 10,000 shards; 1,000,000 samples; some 10 minutes on 2 cores
    python benchmarks/inspection.py --samples 50000 --json

Not called inspect.py: a script's folder comes first on Python's path, and the standard library imports `inspect`.

- `ls` and `info` on shards that are listed in shards.json, as after every build.
- `show KEY`, once the index of keys is there, against the interpreter's own start plus one read: a process that
  imports the same libraries, and reads and parses the same sample at a place that it is told. `ratio` is the one over
  the other.
- `codes C`, once the index of codes is there: a code of 16,384, in some thousands of images.
- webdataset on whole tars (fewer, the same kind of samples): raw members, front to back. Per sample; what it would take
  to half of the large data set (where a key is found on average) and to its end (a code) is extrapolated from that.

The large data set is made up: real sidecars (codes drawn by Zipf's law) of sparse tars, in each of which one sample
is real. The keys that are looked up, and the best images of the code, are such. Medians of several rounds, contestants
taking turns; files come from the page cache. "cpu" is user and system time together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
from inspection_data import CODE, make_samples, make_shards, make_whole

ONE_READ = """
import sys
import patchmint.cli, patchmint.cli.inspect.show, patchmint.cli.inspect.sample_view, patchmint.inspection.show.lookup
import patchmint.datasets.dataset, patchmint.shards.manifest
from patchmint.shards.reader import read_sample
from patchmint.storage import open_storage
sample = read_sample(open_storage(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
print(sample.document.key, sample.selector.shape, sample.coverage.shape, sample.codes.shape)
"""
THROUGH = """
import sys, glob, warnings
warnings.simplefilter("ignore")
import webdataset
tars = sorted(glob.glob(sys.argv[1] + "/shards/*.tar"))
for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False):
    if sample["__key__"] == sys.argv[2]:
        print(sample["__key__"])
        break
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000, help="for ls")
    parser.add_argument("--samples", type=int, default=1_000_000, help="for show and codes")
    parser.add_argument("--per-shard", type=int, default=1000)
    parser.add_argument("--whole", type=int, default=2000, help="samples in whole tars, for webdataset")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.samples < 20 * arguments.per_shard:
        parser.error("the code's twenty best images are the real ones, one a shard: give 20 shards of samples or more")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PATCHMINT_CACHE"] = str(Path(folder) / "cache")
        found = measure(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


def show(found: dict) -> None:
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    print(f"{'':52} {'wall s':>8} {'cpu s':>8}")
    for name, row in found["rows"].items():
        cpu = f"{row['cpu']:8.3f}" if "cpu" in row else ""
        print(f"{name:52} {row['wall']:8.3f} {cpu}  {row.get('note', '')}")
    print(f"ratio {found['ratio']:.2f} (show over start plus one read, wall; {found['cpu_ratio']:.2f} in cpu time)")


def measure(folder: Path, arguments: argparse.Namespace) -> dict:
    rows: dict[str, dict] = {}
    shards, samples = arguments.shards, arguments.samples
    timed = Contest(rows, arguments.rounds)

    plain = make_shards(folder / "a", shards)
    timed.run(
        {
            "python -c pass": python("-c", "pass"),
            "patchmint --version": patchmint("--version"),
            f"ls, {shards} shards": patchmint("inspect", "ls", plain),
            f"info, {shards} shards": patchmint("inspect", "info", plain),
        }
    )
    start = time.perf_counter()
    large, (key, tar, offset, size) = make_samples(folder / "c", samples, arguments.per_shard)
    say(f"{samples} samples made in {time.perf_counter() - start:.0f} s")
    look, code = patchmint("inspect", "show", large, key), patchmint("inspect", "codes", large, CODE)
    for name, command in (("keys", look), ("codes", code)):
        timed.once(f"first look: makes the index of {name}", command)
        index = max((folder / "cache/indexes").glob(f"*/{name}-*"))
        size_of = sum(path.stat().st_size for path in index.iterdir())
        rows[f"first look: makes the index of {name}"]["note"] = f"{size_of / 1e6:.1f} MB"
    timed.run(
        {
            "start plus one read": python("-c", ONE_READ, large, tar, offset, size),
            f"show KEY, {samples} samples": look,
            f"codes {CODE}, {samples} samples": code,
        }
    )
    against_webdataset(folder / "d", arguments, timed, rows)
    ours, least = rows[f"show KEY, {samples} samples"], rows["start plus one read"]
    ratios = {"ratio": ours["wall"] / least["wall"], "cpu_ratio": ours["cpu"] / least["cpu"]}
    return {"machine": machine(), "rows": rows, **ratios}


def against_webdataset(folder: Path, arguments: argparse.Namespace, timed: Contest, rows: dict[str, dict]) -> None:
    """Whole tars read front to back; the start of its process isn't counted to the samples."""
    count = arguments.whole
    make_whole(folder, count)
    first, last = f"k{0:09d}", f"k{count - 1:09d}"
    names = "webdataset: to the first sample", f"webdataset: through {count} samples"
    timed.run({names[0]: python("-c", THROUGH, folder, first), names[1]: python("-c", THROUGH, folder, last)})
    each = (rows[names[1]]["wall"] - rows[names[0]]["wall"]) / (count - 1)
    for what, reached in (("half", arguments.samples / 2), ("all", arguments.samples)):
        name = f"webdataset: {what} of {arguments.samples} samples"
        rows[name] = {"wall": each * reached, "note": f"extrapolated from {each * 1e6:.0f} us a sample"}


class Contest:
    """Runs commands in turns, and notes the medians of their times."""

    def __init__(self, rows: dict[str, dict], rounds: int) -> None:
        self._rows, self._rounds = rows, rounds

    def run(self, commands: dict[str, list[str]]) -> None:
        """Run each once a round."""
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(self._rounds):
            for name, command in commands.items():
                times[name].append(timed(command))
            say(f"round {turn + 1} of {', '.join(commands)}")
        for name, found in times.items():
            wall, cpu = (statistics.median(values) for values in zip(*found, strict=True))
            self._rows[name] = {"wall": wall, "cpu": cpu}

    def once(self, name: str, command: list[str]) -> None:
        """Run one that can't be repeated."""
        wall, cpu = timed(command)
        self._rows[name] = {"wall": wall, "cpu": cpu}


def timed(command: list[str]) -> tuple[float, float]:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode or not (done.stdout or command[-1] == "pass"):
        sys.exit(f"{command} failed:\n{done.stderr.decode()}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def python(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def patchmint(*arguments: object) -> list[str]:
    return python("-m", "patchmint", *arguments)


def say(line: str) -> None:
    print(line, file=sys.stderr)


def machine() -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
        "load": f"{os.getloadavg()[0]:.1f}",
    }


if __name__ == "__main__":
    main()
