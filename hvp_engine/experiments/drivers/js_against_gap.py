"""JS0 against the gap (D8): among models of one task, SGD falls behind Adam where blocks differ more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hvp_engine.experiments import figures
from hvp_engine.experiments.blockwise import COLUMNS, Blockwise, Values, measure, settings_of
from hvp_engine.experiments.clock import Clock
from hvp_engine.experiments.drivers import pretrained_lm
from hvp_engine.experiments.drivers.js_heatmaps import CNNS, CONTEXT, transformers
from hvp_engine.experiments.gaps import Gap, gap
from hvp_engine.experiments.heterogeneity import kendall
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.pretraining import pair
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least
from hvp_engine.experiments.zoo import entry_of
from hvp_engine.experiments.zoo_plan import planned_curves, planned_spectra

ON_PAR = ("vgg", "resnet", "mlp")
RANDOM, PRETRAINED = "random LM", "pre-trained LM"
_ARROWS = ((RANDOM, PRETRAINED), ("vgg", "vit"))  # points of one task
_SOURCE = "arXiv 2402.16788, table 1; bounds within a task, measured here"


def run(setting: Setting) -> Result:
    """Put the gap of every model beside how unlike its blocks are."""
    measured: dict[str, Blockwise] = {}
    gaps: dict[str, Gap] = {}
    seconds, both = Clock(), pair(setting)
    ready(setting, (*_models(setting), both.random))
    for name in _models(setting):
        with seconds.part(name):
            measured[name], gaps[name] = measure(setting, name), gap(setting, name)
    with seconds.part("pair of language models"):
        for name, one in zip((RANDOM, PRETRAINED), both.measure(setting), strict=True):
            measured[name], gaps[name] = one, gap(setting, one.entry)
    columns = (*COLUMNS, "loss of SGD", "loss of Adam", "gap", "gap sd", "gap / Adam's loss")
    rows = tuple(
        (*one.row, *curves.losses, *curves.summary, curves.relative)
        for one, curves in zip(measured.values(), gaps.values(), strict=True)
    )
    claims = gates({name: one.js0 for name, one in measured.items()}, {name: one.values for name, one in gaps.items()})
    means = {name: (float(np.mean(one.js0)), gaps[name].mean) for name, one in measured.items()}
    tau = kendall(*zip(*means.values(), strict=True))
    said = f"Kendall's tau over all models is {tau:.2f}, not decided by: losses of different tasks do not compare."
    notes = (said, *(edge for one in gaps.values() for edge in one.edges))
    settings = {**settings_of(measured.values()), "pre-training": both.origin, "Kendall's tau": tau}
    return Result(Table(columns, rows), claims, _draw(measured, gaps), settings, seconds, notes)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan spectra and trainings of every model, and of the pair of language models."""
    entries = [entry_of(setting, name) for name in _models(setting)]
    parts = [planned_spectra(setting, entry, setting.seeds) for entry in entries]
    return parts + [planned_curves(setting, entry) for entry in entries] + pretrained_lm.plan(setting)


def gates(js0: Values, gaps: Values) -> tuple[Claim, ...]:
    """Decide within a task only, by means over seeds of each model: on digits, and from random to pre-trained."""
    mean_js0 = {name: float(np.mean(values)) for name, values in js0.items()}
    mean = {name: float(np.mean(values)) for name, values in gaps.items()}
    beyond = mean["vit"] - 10.0 * max(0.0, *(mean[name] for name in ON_PAR))
    shrunk = mean[RANDOM] - 1.5 * max(0.0, mean[PRETRAINED])  # negative where the random start has no gap
    order = mean_js0[RANDOM] - mean_js0[PRETRAINED]
    few = "gap(vit) >= 10 x the largest gap of vgg, resnet and mlp"
    return (
        at_least(few, "gap(vit) - 10 x the other", [beyond], 0.0, _SOURCE),
        at_least("gap(vit) >= 0.1", "gap", [mean["vit"]], 0.1, _SOURCE),
        at_least("gap(random LM) >= 1.5 x gap(pre-trained LM)", "difference", [shrunk], 0.0, _SOURCE),
        at_least("JS0 of the language models is in the order of their gaps", "difference", [order], 0.0, _SOURCE),
    )


def _models(setting: Setting) -> tuple[str, ...]:
    return (*CONTEXT, *CNNS, *transformers(setting))


def _draw(measured: Mapping[str, Blockwise], gaps: Mapping[str, Gap]) -> Figure:
    absolute = np.array([one.values for one in gaps.values()]).T
    relative = absolute / np.array([one.losses[1] for one in gaps.values()])
    with figures.style():
        figure, axes = figures.page(2, 2, 5.5, 4.6)
        for column, statistic in enumerate(("js0", "spread")):
            x = np.array([getattr(one, statistic) for one in measured.values()]).T
            for row, (y, label) in enumerate(((absolute, "gap, nats"), (relative, "gap / Adam's loss"))):
                _panel(axes[row, column], list(measured), x, y)
                axes[row, column].set(xlabel="JS0" if statistic == "js0" else "spread", ylabel=label)
    return figure


def _panel(axes: Axes, names: Sequence[str], x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    figures.scatter(axes, x, y, names)
    places = dict(zip(names, zip(x.mean(axis=0), y.mean(axis=0), strict=True), strict=True))
    for start, end in _ARROWS:
        axes.annotate("", places[end], places[start], arrowprops={"arrowstyle": "->", "color": "0.6", "lw": 0.7})
