"""Trains the demo's models: `python -m tools.demo_training.train {detector,masker,tokenizer,vit} --out FOLDER`.

The same command goes on where it was stopped. Figures in the log are those of the averaged weights, rounded as they are
stored, on scenes that are never trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from patchmint.demo import HELD_OUT_SEED, TRAINING_SEED
from tools.demo_training.loop import Schedule, Task, Trainer

SCHEDULES = {
    "detector": Schedule(steps=5500, rate=5e-4, warmup=300, weight_decay=0.02, evaluate_every=1000),
    "masker": Schedule(steps=3200, rate=6e-4, evaluate_every=500),
    "tokenizer": Schedule(steps=3000, rate=5e-4, evaluate_every=500),
    "vit": Schedule(
        steps=2000, rate=1.4e-3, warmup=30, weight_decay=0.02, evaluate_every=300, muon="vision_model.encoder."
    ),
}


def make_task(role: str, steps: int) -> Task:
    """The task that trains one of the models. torch and the models are loaded here, not when `--help` is asked for."""
    match role:
        case "detector":
            from tools.demo_training.train_detector import DetectorTask

            return DetectorTask(TRAINING_SEED, HELD_OUT_SEED, steps)
        case "masker":
            from tools.demo_training.train_masker import MaskerTask

            return MaskerTask(TRAINING_SEED, HELD_OUT_SEED)
        case "vit":
            from tools.demo_training.train_vit import VitTask

            return VitTask(TRAINING_SEED, HELD_OUT_SEED, steps)
        case _:
            from tools.demo_training.train_tokenizer import TokenizerTask

            return TokenizerTask(TRAINING_SEED, HELD_OUT_SEED)


def main() -> None:
    """Train one model to the end of its schedule, or until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_training.train", description="Train a demo model.")
    parser.add_argument("role", choices=sorted(SCHEDULES))
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and weights")
    parser.add_argument("--steps", type=int, help="another length than the schedule's")
    options = parser.parse_args()
    planned = SCHEDULES[options.role]
    if options.steps is not None:
        planned = Schedule(
            steps=options.steps,
            rate=planned.rate,
            warmup=planned.warmup,
            weight_decay=planned.weight_decay,
            evaluate_every=planned.evaluate_every,
            muon=planned.muon,
        )
    Trainer(make_task(options.role, planned.steps), planned, options.out).run()


if __name__ == "__main__":
    main()
