"""SGD against Adam, each at its best learning rate: on par on CNNs and MLPs, apart on Transformers (D11).

Digits, where the CNNs converge within the steps, are the evidence for CNNs at small size; photographs, where a VGG
without BatchNorm does not, are drawn as context with a single seed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvp_engine.experiments import cache, figures
from hvp_engine.experiments.gaps import Gap, gap
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.plateau import plateau
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell, Claim, Result, Table, at_least, at_most
from hvp_engine.experiments.training import Curve, speed_up
from hvp_engine.experiments.zoo import zoo
from hvp_engine.experiments.zoo_plan import planned_curves

MODELS = {
    "tiny": ("mlp", "gpt"),
    "small": (
        "mlp", "vgg", "resnet", "vit", "mixer", "gpt", "bert",
        "vgg-photographs", "vit-photographs", "mixer-photographs",
    ),
    "paper": ("resnet", "vgg", "vit", "bert", "gpt", "gpt2"),
}  # fmt: skip
ON_PAR = ("mlp", "vgg", "resnet")
APART = {"vit": 0.2, "gpt": 0.1, "bert": 0.05}  # nats
OFF_PLATEAU = 0.3  # nats below the entropy of single tokens; above it both optimizers have learnt as little
_SOURCE = "arXiv 2402.16788, training curves in its appendix; bounds measured here"
COLUMNS = (
    "model", "SGD's rate", "SGD's loss", "sd", "Adam's rate", "Adam's loss", "sd", "gap", "speed-up",
    "held-out loss, SGD", "held-out loss, Adam", "held-out accuracy, SGD", "held-out accuracy, Adam",
)  # fmt: skip


def run(setting: Setting) -> Result:
    """Train every model with both optimizers, or read what other drivers have trained."""
    gaps: dict[str, Gap] = {}
    seconds: dict[str, float] = {}
    for name in MODELS[setting.size]:
        begin = time.perf_counter()
        gaps[name] = gap(replace(setting, seeds=1) if name.endswith("-photographs") else setting, name)
        seconds[name] = time.perf_counter() - begin
    entries = zoo(setting)
    entropy = plateau(entries["bert"], 0) if "bert" in gaps else float("inf")
    claims, notes = decide(gaps, entropy)
    used = {
        name: {
            "steps": entries[name].recipe.steps, "batch": entries[name].recipe.batch, "clip": entries[name].recipe.clip,
            "parameters": entries[name].parameters, "data": entries[name].data(0).source, "seeds": len(found.sgd),
        }
        for name, found in gaps.items()
    }  # fmt: skip
    notes += tuple(sentence for found in gaps.values() for sentence in found.edges)
    table = Table(COLUMNS, tuple(row(found) for found in gaps.values()))
    drawn = {"grid": draw_grid(setting, list(gaps))}
    return Result(table, claims, draw(list(gaps.values())), used, seconds, notes, drawn)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the grids and the final runs at the papers' sizes."""
    entries = zoo(setting)
    return [planned_curves(setting, entries[name]) for name in MODELS["paper"]]


def decide(gaps: Mapping[str, Gap], entropy: float) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """Decide by medians over seeds; leave BERT out, and say so, while Adam is on the plateau.

    Args:
        gaps: By model.
        entropy: Of the single tokens that BERT predicts, in nats.
    """
    notes: list[str] = []
    claims = [
        at_most(f"gap of {name} <= 0.02", "median gap", [_median(gaps[name].values)], 0.02, _SOURCE)
        for name in ON_PAR
        if name in gaps
    ]
    for name, least in APART.items():
        if name not in gaps:
            continue
        reached = _median([curve.final for curve in gaps[name].adam])
        if name == "bert" and not reached <= entropy - OFF_PLATEAU:
            notes.append(
                f"The gap of bert is not decided on: Adam's loss {reached:.3f} is less than {OFF_PLATEAU} nats below "
                f"the entropy of single tokens, {entropy:.3f}."
            )
            continue
        value = [_median(gaps[name].values)]
        claims.append(at_least(f"gap of {name} >= {least}", "median gap", value, least, _SOURCE))
    if "gpt" in gaps:
        value = [_median(speed_ups(gaps["gpt"]))]
        claims.append(at_least("Adam reaches SGD's loss of gpt 1.5 x sooner", "median speed-up", value, 1.5, _SOURCE))
    return tuple(claims), tuple(notes)


def row(found: Gap) -> tuple[Cell, ...]:
    """Return what the table says of a model, in the order of :data:`COLUMNS`: medians over seeds."""
    both: list[Cell] = []
    for curves in (found.sgd, found.adam):
        finals = [curve.final for curve in curves]
        rate = f"{curves[0].rate:g}{' (edge)' if curves[0].at_edge else ''}"
        both += [rate, _median(finals), float(np.std(finals, ddof=1)) if len(finals) > 1 else float("nan")]
    held_out = [_median([c.held_out for c in curves]) for curves in (found.sgd, found.adam)]
    accuracy = [_median([c.accuracy for c in curves]) for curves in (found.sgd, found.adam)]
    return (found.name, *both, _median(found.values), _median(speed_ups(found)), *held_out, *accuracy)


def speed_ups(found: Gap) -> list[float]:
    """Return by seed how many times sooner Adam reaches SGD's final loss."""
    return [speed_up(slow, fast) for slow, fast in zip(found.sgd, found.adam, strict=True)]


def draw(gaps: Sequence[Gap]) -> Figure:
    """Draw both optimizers' best runs, a panel per model."""
    with figures.style():
        figure, panels = _panels(len(gaps))
        for axes, found in zip(panels, gaps, strict=False):
            found.draw(axes)
    return figure


def draw_grid(setting: Setting, names: Sequence[str]) -> Figure:
    """Draw the final loss of every learning rate of the search, a panel per model."""
    with figures.style():
        figure, panels = _panels(len(names))
        for axes, name in zip(panels, names, strict=False):
            series = {label: _by_rate(cache.grid(setting, name, key)) for key, label in _LABELS.items()}
            figures.curves(axes, series, bars=True)
            axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="final loss", title=name)
    return figure


_LABELS = {"sgd": "SGD", "adam": "Adam"}


def _by_rate(curves: Mapping[float, Curve]) -> tuple[list[float], list[float]]:
    return list(curves), [curve.final for curve in curves.values()]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(4, count)
    rows = -(-count // columns)
    figure, axes = figures.page(rows, columns, 1.8 * columns, 1.6 * rows)
    for spare in axes.flat[count:]:
        spare.set_axis_off()
    return figure, list(axes.flat)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))
