"""A training loop that can be stopped at any moment and goes on where it was."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch
from torch import Tensor, nn

from patchmint.errors import WeightsMismatchError

CHECKPOINT = "checkpoint.pt"

_SAVE_EVERY_S = 180
_REPORT_EVERY = 50
_EMA = 0.998
_MAX_NORM = 1.0
_MUON = 3.0


class Task(Protocol):
    """What is trained.

    Attributes:
        name: for the log.
        model: changed in place.
        memory: what the task itself remembers from step to step; kept in checkpoints.
    """

    name: str
    model: nn.Module
    memory: dict[str, Tensor]

    def losses(self, step: int) -> dict[str, Tensor]:
        """Losses of a step's batch, weighted; their sum is minimised. The batch depends on the step's number only."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures on scenes that are never trained on."""
        ...

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the weights as the pipeline reads them."""
        ...


@dataclass(frozen=True)
class Schedule:
    """How long, how fast.

    Attributes:
        steps: in all.
        rate: highest learning rate; it rises over `warmup` steps, then falls along a cosine to a fiftieth.
        warmup: steps.
        weight_decay: AdamW's.
        evaluate_every: steps between evaluations.
        muon: matrices whose names begin so are trained by Muon (Jordan et al. 2024), at `_MUON` times the rate, which
            takes half the steps where gradients of what is easy drown those of what is hard; "": none.
    """

    steps: int
    rate: float
    warmup: int = 200
    weight_decay: float = 0.01
    evaluate_every: int = 1000
    muon: str = ""

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        share = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.rate * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)


class Trainer:
    """Trains a task in a folder; a checkpoint found there is gone on with."""

    def __init__(self, task: Task, schedule: Schedule, folder: Path) -> None:
        self.task, self.schedule, self.folder = task, schedule, folder
        task.model.requires_grad_(requires_grad=True)
        self.average = {name: value.detach().clone() for name, value in task.model.state_dict().items()}
        self.optimizers = _optimizers(task.model, schedule)
        self.step = 0
        self.seconds = 0.0
        self._stop = False

    def run(self) -> None:
        """Train to the end, or until SIGTERM or SIGINT, which end it after a checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._train()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _train(self) -> None:
        saved = reported = time.monotonic()
        sums: dict[str, float] = {}
        counted = 0
        while self.step < self.schedule.steps and not self._stop:
            for name, value in self._advance().items():
                sums[name] = sums.get(name, 0.0) + value
            counted += 1
            now = time.monotonic()
            if self.step % _REPORT_EVERY == 0:
                pace = (now - reported) / counted
                losses = " ".join(f"{name} {total / counted:.4f}" for name, total in sums.items())
                self._say(f"step {self.step}/{self.schedule.steps} {losses} rate {self._rate():.2e} {pace:.2f} s/step")
                sums, counted, reported = {}, 0, now
            if self.step % self.schedule.evaluate_every == 0 or self.step == self.schedule.steps:
                self._evaluate()
                reported = time.monotonic()
            if now - saved > _SAVE_EVERY_S:
                self._save()
                saved = now
        self._save()
        self._say("stopped; the same command goes on" if self._stop else f"done after {self.seconds / 60:.0f} minutes")

    def _advance(self) -> dict[str, float]:
        start = time.monotonic()
        model = self.task.model
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._rate() * (_MUON if isinstance(optimizer, torch.optim.Muon) else 1)
        torch.manual_seed(self.step)
        losses = self.task.losses(self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), _MAX_NORM)
        if torch.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
        self.step += 1
        keep = min(_EMA, self.step / (self.step + 10))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - keep)
                else:
                    self.average[name].copy_(value)
        self.seconds += time.monotonic() - start
        return {name: float(value.detach()) for name, value in losses.items()} | {"norm": float(norm)}

    def _rate(self) -> float:
        return self.schedule.rate_at(self.step)

    def _evaluate(self) -> None:
        """Judge the averaged weights, as they would be stored, and store them."""
        model = self.task.model
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict({name: v.half() if v.is_floating_point() else v for name, v in self.average.items()})
        training = model.training
        model.eval()
        start = time.monotonic()
        try:
            with torch.no_grad():
                figures = self.task.evaluate(model)
            self.task.export(model, self.folder)
        finally:
            model.load_state_dict(own)
            model.train(training)
        text = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self._say(f"eval at {self.step}: {text} ({time.monotonic() - start:.0f} s)")

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        try:
            self.task.model.load_state_dict(state["model"])
            for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(own)
            self.task.memory.update(state["memory"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise WeightsMismatchError(
                f"{path} is a checkpoint of another model ({error}); train into another folder, or delete it"
            ) from error
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]
        self._say(f"going on at step {self.step}")

    def _save(self) -> None:
        state = {
            "model": self.task.model.state_dict(),
            "average": self.average,
            "memory": self.task.memory,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.folder / (CHECKPOINT + ".part")
        torch.save(state, partial)
        partial.replace(self.folder / CHECKPOINT)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stop = True

    def _say(self, line: str) -> None:
        text = f"[{self.task.name}] {line}"
        print(text, flush=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(text + "\n")


def _optimizers(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW, in which biases, norms and embeddings of one axis don't decay; and Muon for some matrices."""
    named = [(bool(schedule.muon) and name.startswith(schedule.muon), p) for name, p in model.named_parameters()]
    matrices = [p for muon, p in named if p.ndim > 1 and not muon]
    others = [p for _, p in named if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=schedule.rate, fused=True)]
    if chosen := [p for muon, p in named if muon and p.ndim > 1]:
        optimizers.append(
            torch.optim.Muon(
                chosen, lr=schedule.rate, weight_decay=schedule.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers
