"""Optimizers compared on one network: each with the best rate of its grid by seed 0, then on every seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields

import numpy as np

from hvp_engine.experiments.class_metrics import ClassMetrics, class_metrics
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.fine_tuning_recipe import OPTIMIZERS
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell
from hvp_engine.experiments.training import Curve, search
from hvp_engine.experiments.tuning import FloatArray, Tuned, tuned
from hvp_engine.system.progress import ProgressReporter

LABELS = dict(zip(OPTIMIZERS, ("Adam", "RMSprop", "SGD", "SGD+m", "SignSGD", "Signum"), strict=True))
COLUMNS = (
    "model", "optimizer", "rate", "larger, smaller rate", "training loss", "sd",
    *(field.name for field in fields(ClassMetrics)),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What one optimizer did on one model: the grid of seed 0, the best rate on every seed."""

    best: Curve
    grid: Mapping[float, Curve]
    seeds: list[Tuned]

    @property
    def loss(self) -> float:
        """Median over seeds of the final training loss."""
        return float(np.median([seed.curve.final for seed in self.seeds]))

    @property
    def harm(self) -> str:
        """What the next larger and the next smaller rate of the grid cost in training loss, in words."""
        rates = sorted(self.grid, reverse=True)
        place = rates.index(self.best.rate)
        beside = [rates[i] if 0 <= i < len(rates) else None for i in (place - 1, place + 1)]
        return ", ".join("-" if rate is None else f"{self.grid[rate].final - self.best.final:+.3f}" for rate in beside)

    @property
    def smoothed(self) -> list[FloatArray]:
        """Training losses by seed, each averaged over the last five steps, for the eye."""
        curves = [seed.losses for seed in self.seeds]
        return [np.array([one[max(0, step - 4) : step + 1].mean() for step in range(len(one))]) for one in curves]

    def row(self, model: str, optimizer: str) -> tuple[Cell, ...]:
        """Return what a table says of it, in the order of :data:`COLUMNS`."""
        losses = [seed.curve.final for seed in self.seeds]
        metrics = np.mean([astuple(class_metrics(seed.logits, seed.labels)) for seed in self.seeds], axis=0)
        rate = f"{self.best.rate:g}{' (edge)' if self.best.at_edge else ''}"
        return (model, LABELS[optimizer], rate, self.harm, self.loss, float(np.std(losses)), *metrics.tolist())


def compared(setting: Setting, entry: Entry) -> dict[str, Found]:
    """Search the rate of every optimizer that the entry has a grid for, and train with the best one on all seeds."""
    found = {}
    with ProgressReporter(entry.name, len(entry.rates), None) as reporter:
        for optimizer, rates in entry.rates.items():
            alone = len(rates) == 1  # then nothing is searched for, and seed 0 is trained once

            def train(rate: float, optimizer: str = optimizer, tested: bool = alone) -> Curve:
                return tuned(setting, entry, optimizer, rate, 0, tested=tested).curve

            best, grid = search(train, rates)
            seeds = [tuned(setting, entry, optimizer, best.rate, seed, tested=True) for seed in range(setting.seeds)]
            found[optimizer] = Found(best, grid, seeds)
            reporter.advance(1, f"{optimizer} {found[optimizer].loss:.3f}")
    return found


def edges(name: str, found: Mapping[str, Found]) -> tuple[str, ...]:
    """Say which best rates are the edge of their grid, in a sentence; none where none is."""
    at_edge = [LABELS[optimizer] for optimizer, one in found.items() if one.best.at_edge]
    return (f"On {name} the best rate of {', '.join(at_edge)} is the edge of its grid.",) if at_edge else ()
