"""What trust is worth, on demo scenes that nothing was trained, tuned or calibrated on.

    python benchmarks/trust.py --json                 # 15 minutes on one core
    python benchmarks/trust.py --parts selector --json # nine selectors: 12 minutes

Two data sets are built, of scenes with other seeds than any other: one to calibrate by, one to judge on. Errors are
planted into a fifth of the texts of the second one, as corrections, so `patchmint trust` meets them as it would any
labels. `--keep FOLDER` keeps what was built, and takes what is there.

`auroc_full`, `auroc_cheap`: how well trust, learnt without any truth, tells texts with planted errors from others;
`f1_all`, `f1_trusted`: F1 of patches with them, of all texts and of the trusted 80 % (`_cheap`: by cheap trust).
`f1_built_...`: the same without planted errors; `full` trust, calibrated on the other scenes (`_unjudged`: without).
`ece`: of scores calibrated on the other scenes, with `ece_floor`: what it would be if they were exactly right.
`absent`: absent things labelled after a second look (as in `patchmint demo --second-look`), with `f1`
and `missed` things, on three times as many scenes of a third seed; `..._one_look`: without it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from patchmint.config.build import BuildConfig
from patchmint.datasets.corrections import Corrected, with_instances, write_corrections
from patchmint.datasets.dataset import Dataset, open_dataset
from patchmint.datasets.reader import iter_stored
from patchmint.datasets.rows import iter_tables
from patchmint.demo.dataset import obtain_scenes
from patchmint.demo.texts import SECOND_LOOK
from patchmint.jobs.build import run_build
from patchmint.jobs.trust import passes_of, write_trust
from patchmint.jobs.truths import open_truth
from patchmint.judging.calibrate import fit
from patchmint.judging.judge import Judge, judge_images
from patchmint.judging.metrics import Floats, calibration_error, reliability
from patchmint.judging.plant import Planted, Planter, found_of
from patchmint.judging.trust import Known, Trust
from patchmint.judging.truth import ImageName, Truth
from patchmint.shards.endings import DOCUMENT
from patchmint.shards.schema import FoundDocument

CALIBRATION_SEED, JUDGED_SEED, ABSENT_SEED = 7_200_003, 7_300_003, 7_400_003
ABSENT_TIMES = 3
SHARE, KEPT, SEEDS = 0.2, 0.8, 3
NAMES = {"f1": "patch_f1", "absent": "absent_rate", "missed": "missed_rate"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300, help="of each of the two data sets")
    parser.add_argument("--keep", type=Path, help="folder for what is built")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("trusted", "absent", "planted", "selector"),
        default=["trusted", "absent", "planted"],
    )
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        fit_on, judged_on = (
            build(folder / name, seed, options.scenes)
            for name, seed in (("calibration", CALIBRATION_SEED), ("judged", JUDGED_SEED))
        )
        figures: dict[str, Any] = {}
        if "trusted" in options.parts:
            figures |= scores_of(fit_on, judged_on)
            with timed("trusting labels as they are"):
                figures |= trusted(fit_on, judged_on)
        if "absent" in options.parts:
            with timed("taking a second look"):
                figures |= absent(folder / "absent", ABSENT_TIMES * options.scenes)
        if {"planted", "selector"} & set(options.parts):
            with timed("planting errors, and looking for them"):
                figures |= found_again(judged_on)
        if "selector" in options.parts:
            figures |= selectors(judged_on, fit_on, options.steps)
    figures |= {"scenes": options.scenes, "seconds": round(time.monotonic() - started)}
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<20} {value if not isinstance(value, float) else format(value, '.3f')}")


@contextmanager
def timed(what: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - begun:.0f} s", file=sys.stderr)


def build(
    folder: Path, seed: int, count: int, name: str = "dataset", settings: Mapping[str, object] | None = None
) -> Path:
    """Make scenes and shards, or go on where an earlier call stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    obtain_scenes(folder / "scenes", seed=seed, count=count, progress=lambda _: None)
    config = {
        "source": {"kind": "coco", "uri": str(folder / "scenes"), "texts": "caption"},
        "output": {"uri": str(folder / name), "samples_per_shard": 100},
        "models": "demo",
        "grid": {"rows": 24, "cols": 24, "patch_px": 14, "fit": "squash"},
        **(settings or {"labels": {"instances": True}, "features": {"connector": "dci"}}),
    }
    with timed(f"building {folder.name}/{name}"):
        run_build(BuildConfig.parse(config))
    return folder


def truth_of(folder: Path) -> Truth:
    return open_truth(str(folder / "scenes" / "truth.json"))


def clean(folder: Path) -> Dataset:
    """The data set as it was built."""
    return open_dataset(folder / "dataset", columns=("none",))


def scores_of(fit_on: Path, judged_on: Path) -> dict[str, float]:
    """Scores calibrated on some scenes, judged on others."""
    outcomes = []
    for folder in (fit_on, judged_on):
        judging = Judge()
        judge_images(judging, clean(folder), truth_of(folder))
        outcomes.append(judging.outcomes()[1:])
    (scores, right), (others, hits) = outcomes
    meant = fit(scores, right)(others)
    rng = np.random.default_rng(0)
    tables = [reliability(meant.tolist(), (rng.random(len(meant)) < meant).tolist()) for _ in range(50)]
    return {
        "ece_before": float(calibration_error(reliability(others.tolist(), hits.tolist()))),
        "ece": float(calibration_error(reliability(meant.tolist(), hits.tolist()))),
        "ece_floor": float(np.mean([calibration_error(table) for table in tables])),
        "boxes": len(others),
    }


def absent(folder: Path, count: int) -> dict[str, Any]:
    """What is labelled though it isn't there, of one look and of two. Few things are absent: there are more scenes."""
    figures: dict[str, Any] = {}
    for name, labels in (("_one_look", {}), ("", SECOND_LOOK)):
        judging = Judge(replicates=1000)
        build(folder, ABSENT_SEED, count, f"dataset{name}", {"labels": labels, "tokens": None})
        judge_images(judging, open_dataset(folder / f"dataset{name}"), truth_of(folder))
        told, ends = judging.figures(), judging.intervals()
        figures |= {f"{own}{name}": told[of] for own, of in NAMES.items()}
        figures |= {f"{own}{name}_interval": ends[of] for own, of in NAMES.items()}
    return figures


def trusted(fit_on: Path, judged_on: Path) -> dict[str, float]:
    """F1 of all texts, and of the trusted ones: calibrated on other scenes, and without any truth."""
    learnt, trust = (Trust(clean(folder), passes_of(clean(folder), "cpu")) for folder in (fit_on, judged_on))
    learnt.count()
    learnt.learn(truth_of(fit_on))
    trust.count()
    known = list(trust.known(np.arange(clean(judged_on).samples), keep=True))
    f1 = f1_of(trust, known, truth_of(judged_on))
    figures = {"f1_built_all": float(np.nanmean(f1))}
    for name, model in (("f1_built_trusted", learnt.model), ("f1_built_trusted_unjudged", None)):
        trust.model = model
        if model is None:
            trust.learn()
        figures[name] = kept(f1, [trust.of(each) for each in known])
    return figures


def found_again(folder: Path) -> dict[str, Any]:
    """AUROC of trust on labels with planted errors, all of it by the commands' own ways."""
    dataset = clean(folder)
    kinds = planted(dataset)
    corrupted = Trust(open_dataset(folder / "dataset", columns=("corrections",)))
    f1 = f1_of(corrupted, corrupted.known(np.arange(dataset.samples)), truth_of(folder))
    figures: dict[str, Any] = {}
    for mode in ("cheap", "full"):
        name = f"trust-{mode}"
        if not (folder / "dataset" / "columns" / name / "dataset.json").exists():
            write_trust(open_dataset(folder / "dataset", columns=("corrections",)), name, full=mode == "full")
        values, of, every = [], [], []
        for _, table in iter_tables(open_dataset(folder / "dataset", columns=("corrections", name)), ["key", "trusts"]):
            for row in table.to_pylist():
                every += row["trusts"]
                for text, trust in enumerate(row["trusts"]):
                    if (row["key"], text) in kinds:
                        values.append(trust)
                        of.append(kinds[row["key"], text])
        told = Planted.of(np.array(values), of)
        figures |= {f"auroc_{mode}": told.auroc, f"by_kind_{mode}": {kind: n for kind, (_, n) in told.by_kind.items()}}
        figures |= {"f1_trusted" if mode == "full" else f"f1_trusted_{mode}": kept(f1, every)}
    return figures | {"f1_all": float(np.nanmean(f1)), "planted": told.planted, "texts": told.texts}


def f1_of(trust: Trust, known: Iterable[Known], truth: Truth) -> Floats:
    """F1 of the patches of each text; NaN of one that names nothing present."""
    found = []
    for each in known:
        image = truth.of(ImageName.of(each.image))
        assert image is not None
        text = image.text(each.image.texts.index(each.text), each.image.key_json.texts[each.text])
        present = text is not None and bool(text.things)
        found.append((trust.agreement(each, truth) or 0.0) if present else np.nan)
    return np.array(found)


def kept(f1: Floats, trusts: Sequence[float]) -> float:
    """Mean F1 of the texts that are trusted most."""
    best = np.argsort(-np.array(trusts), kind="stable")[: round(KEPT * len(trusts))]
    return float(np.nanmean(f1[best]))


def planted(dataset: Dataset) -> dict[tuple[str, int], int]:
    """Plant errors as corrections; what was planted, by key and text, of texts that something was found for."""
    assert dataset.manifest is not None
    planter, kinds, changed = Planter(SHARE, seed=1), {}, []
    for index, sample in iter_stored(dataset, np.arange(dataset.samples), (DOCUMENT, *dataset.manifest.layout.made)):
        (image,) = sample.images
        instances: list[FoundDocument] = []
        for text, found in found_of(image).items():
            wrong = found
            if found:
                wrong, kinds[sample.key, text] = planter.corrupt(found, (image.info.height, image.info.width))
            best_first = sorted(wrong, key=lambda each: -each.phrase.score)
            instances += [FoundDocument.of(each.phrase, each.mask) for each in best_first if each.mask is not None]
        if tuple(instances) != image.instances:
            changed.append(Corrected(index, with_instances(dataset, sample, [instances]), (), 0, False, True))
    if not dataset.storage.folders("columns"):
        write_corrections(dataset, changed)
    return kinds


def selectors(learn: Path, held_out: Path, steps: int) -> dict[str, Any]:
    """Selectors that were trained on clean labels, on planted errors, and on these weighted by trust: means over seeds.

    `auc`: patches of what the text names against those of other things; `auc_all`: against the whole rest.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from train_selector import Truth, judge, stored_labels, train

    judged_by, means = Truth(held_out), dict[str, dict[str, float]]()
    ways = {"clean": ("none",), "planted": ("corrections",), "weighted": ("corrections", "trust-full")}
    for way, columns in ways.items():
        with timed(f"{SEEDS} selectors on {way} labels"):
            models = [train(learn, stored_labels, steps, seed, columns) for seed in range(SEEDS)]
        found = [judge(model, held_out, judged_by) for model in models]
        means[way] = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
    shares = {
        f"{name}_{way}_of_clean": means[way][name] / means["clean"][name]
        for way in ("planted", "weighted")
        for name in ("auc", "auc_all")
    }
    return {"selectors": means, **shares}


if __name__ == "__main__":
    main()
