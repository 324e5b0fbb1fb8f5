"""Fine-tuning with six optimizers (D15; Tomihari & Sato).

A Transformer and a CNN, both pre-trained, get a new linear head; all parameters are trained. Each optimizer has the
best rate of its grid by the training loss of seed 0. Adam and the methods that step by signs should be ahead of SGD
on the Transformer, and not on the CNN.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields

import numpy as np
from matplotlib.figure import Figure

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import figures
from hvp_engine.experiments.class_metrics import ClassMetrics, class_metrics
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.fine_tuned import OPTIMIZERS, image_entry, text_entry
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell, Claim, Result, Table, at_least
from hvp_engine.experiments.training import Curve, search
from hvp_engine.experiments.tuning import FloatArray, Tuned, tuned
from hvp_engine.system.progress import ProgressReporter

LABELS = dict(zip(OPTIMIZERS, ("Adam", "RMSprop", "SGD", "SGD+m", "SignSGD", "Signum"), strict=True))
_ADAM, _SIGN, _SGD = ("adam", "rmsprop"), ("signsgd", "signum"), ("plain-sgd", "sgd")
_METRICS = tuple(field.name for field in fields(ClassMetrics))
_SOURCE = "arXiv 2502.00213; bounds measured here"


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

    def harm(self) -> str:
        """Say what the next larger and the next smaller rate of the grid cost in training loss."""
        rates = sorted(self.grid, reverse=True)
        place = rates.index(self.best.rate)
        beside = [rates[i] if 0 <= i < len(rates) else None for i in (place - 1, place + 1)]
        return ", ".join("-" if rate is None else f"{self.grid[rate].final - self.best.final:+.3f}" for rate in beside)


def run(setting: Setting) -> Result:
    """Search rates, train with the best ones on all seeds, compare.

    Raises:
        ConfigurationError: The paper's size is asked for, which this driver does not have.
    """
    _refuse_paper(setting)
    entries = (text_entry(setting), image_entry(setting))
    found: dict[str, dict[str, Found]] = {}
    seconds = {}
    for entry in entries:
        begin = time.perf_counter()
        found[entry.name] = _compared(setting, entry)
        seconds[entry.name] = time.perf_counter() - begin
    rows = tuple(_row(name, optimizer, one) for name, all_ in found.items() for optimizer, one in all_.items())
    titles = ("model", "optimizer", "rate", "larger, smaller rate", "training loss", "sd", *_METRICS)
    settings = {
        "steps": {entry.name: entry.recipe.steps for entry in entries},
        "batch": {entry.name: entry.recipe.batch for entry in entries},
        "data": [dict(entry.data(0).source) for entry in entries],
    }
    text, image = (found[entry.name] for entry in entries)
    notes = tuple(_edges(name, all_) for name, all_ in found.items() if _edges(name, all_))
    if setting.option("text", "tweets") != "tweets":
        notes = (*notes, "The claim is about tweets; on other texts it is known not to show.")
    return Result(Table(titles, rows), _claims(text, image), _figure(found), settings, seconds, notes)


def plan(setting: Setting) -> list[PlannedPart]:
    """Refuse to plan: there is no paper size to plan.

    Raises:
        ConfigurationError: Always.
    """
    _refuse_paper(setting)
    return []


def _refuse_paper(setting: Setting) -> None:
    if setting.size == "paper":
        raise ConfigurationError("The experiment fine-tuning has no size 'paper'; give size='small' (--size small).")


def _compared(setting: Setting, entry: Entry) -> dict[str, Found]:
    found = {}
    with ProgressReporter(entry.name, len(entry.rates), None) as reporter:
        for optimizer, rates in entry.rates.items():

            def train(rate: float, optimizer: str = optimizer) -> Curve:
                return tuned(setting, entry, optimizer, rate, 0, tested=False).curve

            best, grid = search(train, rates)
            seeds = [tuned(setting, entry, optimizer, best.rate, seed, tested=True) for seed in range(setting.seeds)]
            found[optimizer] = Found(best, grid, seeds)
            reporter.advance(1, f"{optimizer} {found[optimizer].loss:.3f}")
    return found


def _gap(found: Mapping[str, Found], others: tuple[str, ...]) -> float:
    """By how much the best of SGD's kind is behind the best of others; optimizers that were not tried are left out."""
    behind, ahead = (min(found[name].loss for name in names if name in found) for names in (_SGD, others))
    return behind - ahead


def _claims(text: Mapping[str, Found], image: Mapping[str, Found]) -> tuple[Claim, ...]:
    claims = [
        at_least("Transformer: Adam or RMSprop >= 0.04 nats ahead of SGD", "gap", [_gap(text, _ADAM)], 0.04, _SOURCE)
    ]
    if any(name in text for name in _SIGN):
        gap = _gap(text, _SIGN)
        claims.append(at_least("Transformer: a sign method >= 0.03 nats ahead of SGD", "gap", [gap], 0.03, _SOURCE))
    smaller = _gap(text, _ADAM) - abs(_gap(image, _ADAM))
    claims.append(at_least("CNN: Adam and SGD nearer than on the Transformer", "gap less gap", [smaller], 0.0, _SOURCE))
    return tuple(claims)


def _row(name: str, optimizer: str, found: Found) -> tuple[Cell, ...]:
    losses = [seed.curve.final for seed in found.seeds]
    metrics = np.mean([astuple(class_metrics(seed.logits, seed.labels)) for seed in found.seeds], axis=0)
    rate = f"{found.best.rate:g}{' (edge)' if found.best.at_edge else ''}"
    return (name, LABELS[optimizer], rate, found.harm(), found.loss, float(np.std(losses)), *metrics.tolist())


def _edges(name: str, found: Mapping[str, Found]) -> str:
    at_edge = [LABELS[optimizer] for optimizer, one in found.items() if one.best.at_edge]
    return f"On {name} the best rate of {', '.join(at_edge)} is the edge of its grid." if at_edge else ""


def _figure(found: Mapping[str, Mapping[str, Found]]) -> Figure:
    with figures.style():
        figure, axes = figures.page(2, len(found), 5.5, 4.0, sharex="col")
        for column, (name, optimizers) in enumerate(found.items()):
            top, bottom = axes[:, column]
            losses, accuracies = {}, {}
            for optimizer, one in optimizers.items():
                rows = [_smooth(seed.losses) for seed in one.seeds]
                losses[LABELS[optimizer]] = (np.arange(1, len(rows[0]) + 1), rows)
                whole = max(one.seeds, key=lambda seed: len(seed.steps)).steps
                kept = [seed.accuracies for seed in one.seeds if len(seed.steps) == len(whole)]
                accuracies[LABELS[optimizer]] = (whole, kept)
            figures.curves(top, losses)
            figures.curves(bottom, accuracies, bars=True)
            top.set(title=name, yscale="log")
            bottom.set(xlabel="step")
            bottom.get_legend().remove()
        axes[0, 0].set_ylabel("training loss, nats")
        axes[1, 0].set_ylabel("test accuracy")
    return figure


def _smooth(losses: FloatArray) -> FloatArray:
    """Average losses over the last five steps, for the eye."""
    return np.array([losses[max(0, step - 4) : step + 1].mean() for step in range(len(losses))])
