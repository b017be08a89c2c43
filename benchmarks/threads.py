"""How fast a build labels where it has the machine for itself, where others compute too, and under a CPU quota.

    python benchmarks/threads.py            # some 15 minutes on 2 cores
    python benchmarks/threads.py --json

Makes the three situations itself: `idle`; `busy`, beside processes that spin; `quota`, in a control group that may use
one CPU (needs root). In each it builds scenes of the demo as patchmint does by itself ("ours"), and with the other ways
for threads to wait that libgomp has; contestants take turns, and the best round of each counts. Figures are samples a
second of the build, without loading models. `idle`, `busy`, `quota` are ours over the best one's, ours included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

CONTESTANTS = {
    "ours": {},
    "libgomp's own": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "1 thread, passive": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
}
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
CONTROLLERS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spinners", type=int, default=3 * (os.cpu_count() or 1), help="beside which it is busy")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_scenes(folder / "scenes", arguments.scenes)
        found: dict[str, object] = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0], "rates": {}}
        for situation, make in (("idle", idle), ("busy", lambda: busy(arguments.spinners)), ("quota", quota)):
            rates = dict.fromkeys(CONTESTANTS, 0.0)
            try:
                with make() as group:
                    for turn in range(arguments.rounds):
                        for contestant, variables in CONTESTANTS.items():
                            out = folder / f"{situation}-{turn}-{contestant}"
                            rates[contestant] = max(rates[contestant], rate(folder / "scenes", out, variables, group))
                            print(f"{situation}, {contestant}: {rates[contestant]:.2f} samples/s", file=sys.stderr)
            except OSError as error:
                found[situation] = None
                print(f"{situation}: can't be made here: {error}", file=sys.stderr)
                continue
            found["rates"][situation] = rates
            found[situation] = round(rates["ours"] / max(rates.values()), 3)
    print(json.dumps(found, indent=1) if arguments.json else shown(found))


def make_scenes(folder: Path, count: int) -> None:
    from patchmint.demo import DEMO_SEED
    from patchmint.demo.dataset import obtain_scenes

    obtain_scenes(folder, seed=DEMO_SEED, count=count, progress=lambda _: None)


def rate(scenes: Path, out: Path, variables: dict[str, str], group: Path | None) -> float:
    """Samples a second of one build, in a process of its own."""
    command = [sys.executable, "-m", "patchmint", "build", "--models", "demo", "--source.kind", "coco"]
    command += ["--source.uri", str(scenes), "--source.texts", "caption", "--output.uri", str(out)]
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    enter = (lambda: (group / "cgroup.procs").write_text(str(os.getpid()))) if group is not None else None
    done = subprocess.run(command, env=env, preexec_fn=enter, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    (record,) = (out / "runs").glob("*.json")
    return json.loads(record.read_text())["rate"]


@contextmanager
def idle() -> Iterator[None]:
    yield None


@contextmanager
def busy(spinners: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(spinners):
            spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(spinner.wait)
            stack.callback(spinner.kill)
        yield None


@contextmanager
def quota() -> Iterator[Path]:
    top = next((top for top in CONTROLLERS if (top / "cgroup.procs").exists()), CONTROLLERS[-1])
    group = top / f"patchmint-benchmark-{os.getpid()}"
    group.mkdir()
    try:
        if (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("100000")
        else:
            (group / "cpu.max").write_text("100000 100000")
        yield group
    finally:
        with suppress(OSError):
            group.rmdir()


def shown(found: dict) -> str:
    lines = [f"{found['cores']} cores, load {found['load_before']:.1f} before", f"{'samples/s':20}"]
    lines[1] += "".join(f"{situation:>8}" for situation in found["rates"])
    rates = found["rates"].values()
    lines += [f"{name:20}" + "".join(f"{rate[name]:8.2f}" for rate in rates) for name in CONTESTANTS]
    lines.append(f"{'ours over the best':20}" + "".join(f"{found[situation]:8.2f}" for situation in found["rates"]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
