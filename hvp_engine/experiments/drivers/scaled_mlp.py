"""An MLP whose blocks are made to differ, and nothing else: SGD degrades, Adam hardly (D5).

The initial weights of layer l are multiplied by c_l, with the product of all c_l being 1. A ReLU net without biases is
positively homogeneous, so the function stays and H_ll becomes H_ll / c_l^2. Pattern (1/c, 1, 1, c) is kept although SGD
does not suffer there: heterogeneity is not sufficient.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from hvp_engine.experiments import figures
from hvp_engine.experiments.blockwise import Blockwise, measure
from hvp_engine.experiments.entry import Entry, seeded
from hvp_engine.experiments.gaps import Gap, gap
from hvp_engine.experiments.models.vision import MLP
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell, Claim, Result, Table, at_least, at_most
from hvp_engine.experiments.training import FloatArray
from hvp_engine.experiments.zoo import zoo
from hvp_engine.experiments.zoo_plan import planned_curves, planned_spectra

PATTERNS = {  # exponents of c, layer by layer; the first one is decided on
    "(c, 1, 1, 1/c)": (1, 0, 0, -1),
    "(1, c, 1/c, 1)": (0, 1, -1, 0),
    "(1/c, 1, 1, c)": (-1, 0, 0, 1),
}
SCALES = {"tiny": (1, 4), "small": (1, 4, 16, 64), "paper": (1, 4, 16, 64)}  # powers of 2 scale without rounding
GRID = {"sgd": (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4), "adam": (0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)}
_STEPS = {"tiny": 8, "small": 60, "paper": 3 * (60_000 // 128)}
_JUDGED = 10  # last steps
_SOURCE = "arXiv 2402.16788, figure 5a (its scaling is not published); bounds measured here"


@dataclass(frozen=True)
class _Point:
    """An MLP scaled by a pattern with one c, trained with both optimizers."""

    pattern: str
    scale: int
    gap: Gap

    @property
    def losses(self) -> dict[str, list[float]]:
        """Mean loss of the last steps, by optimizer and seed."""
        both = {"SGD": self.gap.sgd, "Adam": self.gap.adam}
        return {label: [float(c.losses[-_JUDGED:].mean()) for c in curves] for label, curves in both.items()}


def run(setting: Setting) -> Result:
    """Train all patterns at all scales with both optimizers, and take the spectra of the first pattern."""
    begin = time.perf_counter()
    points = [
        _Point(pattern, scale, gap(setting, scaled(setting, pattern, scale)))
        for pattern in PATTERNS
        for scale in SCALES[setting.size]
    ]
    trained = time.perf_counter()
    first = next(iter(PATTERNS))
    measured = {scale: measure(setting, scaled(setting, first, scale)) for scale in SCALES[setting.size]}
    done = time.perf_counter()
    entry = scaled(setting, first, 1)
    settings = {
        "steps": entry.recipe.steps, "batch": entry.recipe.batch, "clip": entry.recipe.clip, "grids": GRID,
        "parameters": entry.parameters, "data": entry.data(0).source, "judged by the mean of the last": _JUDGED,
    }  # fmt: skip
    return Result(
        Table(_COLUMNS, tuple(_row(point, measured) for point in points)),
        decide(points, measured),
        _draw(points, measured),
        settings,
        {"training": trained - begin, "spectra": done - trained},
        tuple(sentence for point in points for sentence in point.gap.edges),
    )


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the trainings of all patterns and the spectra of the first one."""
    entry, scales = scaled(setting, next(iter(PATTERNS)), 1), len(SCALES["paper"])
    training, spectra = planned_curves(setting, entry), planned_spectra(setting, entry, setting.seeds * scales)
    runs = scales * len(PATTERNS)
    hours = {name: runs * value for name, value in training.hours.items()}
    return [replace(training, what=f"{runs} times {training.what}", flop=runs * training.flop, hours=hours), spectra]


def scaled(setting: Setting, pattern: str, scale: int) -> Entry:
    """Make the entry of an MLP whose initial weights are scaled by a pattern; all patterns are the same at scale 1."""
    base = zoo(setting)["mlp"]
    sizes = (784, 128, 128, 128, 10) if setting.size == "paper" else (64, 64, 64, 64, 10)
    factors = tuple(float(scale) ** exponent for exponent in PATTERNS[pattern])
    return replace(
        base,
        name="mlp-scaled-" + "-".join(f"{factor:g}" for factor in factors),
        build=seeded(partial(_scaled_mlp, sizes, factors)),
        recipe=replace(base.recipe, steps=setting.option("steps", _STEPS[setting.size])),
        rates=base.rates if setting.size == "tiny" else GRID,
    )


def largest_error(one: Blockwise, other: Blockwise, factors: tuple[float, ...]) -> list[float]:
    """Return by seed how far the recurrences of H_ll(c) c_l^2 and of H_ll(1) are apart, relative to the latter's norm.

    Args:
        one: The MLP at c = 1.
        other: The scaled one, with the same probes.
        factors: c_l of every layer.
    """
    errors = []
    for base, changed in zip(one.spectra, other.spectra, strict=True):
        pairs = zip(base.values(), changed.values(), factors, strict=True)
        errors.append(max(_apart(b.alphas, c.alphas * factor**2) for b, c, factor in pairs))
    return errors


def decide(points: list[_Point], measured: dict[int, Blockwise]) -> tuple[Claim, ...]:
    """Decide by ratios of medians over seeds, on the first pattern between the smallest and the largest c."""
    pattern = points[0].pattern
    chosen = [point for point in points if point.pattern == pattern]
    low, high = chosen[0], chosen[-1]
    (sgd, adam), (sgd_high, adam_high) = (
        [float(np.median(point.losses[label])) for label in ("SGD", "Adam")] for point in (low, high)
    )
    factors = tuple(float(high.scale) ** exponent for exponent in PATTERNS[pattern])
    errors = largest_error(measured[low.scale], measured[high.scale], factors)
    ends = f"c = {high.scale} against c = {low.scale}"
    return (
        at_least(f"SGD's loss grows 2.5 x, {ends}", "ratio of medians", [sgd_high / sgd], 2.5, _SOURCE),
        at_least(
            f"SGD's loss over Adam's grows 1.6 x, {ends}",
            "ratio of medians",
            [(sgd_high / adam_high) / (sgd / adam)],
            1.6,
            _SOURCE,
        ),
        at_most("H_ll(c) = H_ll(1) / c_l^2", "relative error", errors, 1e-4, "homogeneity, ours"),
    )


def _scaled_mlp(sizes: tuple[int, ...], factors: tuple[float, ...]) -> nn.Module:
    model = MLP(sizes)
    with torch.no_grad():
        matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
        for matrix, factor in zip(matrices, factors, strict=True):
            matrix.mul_(factor)
    return model


def _apart(expected: FloatArray, found: FloatArray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


_COLUMNS = (
    "pattern", "c", "SGD's rate", "SGD's loss, median", "Adam's rate", "Adam's loss, median", "JS0",
    "largest over smallest lambda_max",
)  # fmt: skip


def _row(point: _Point, measured: dict[int, Blockwise]) -> tuple[Cell, ...]:
    sgd, adam = (float(np.median(values)) for values in point.losses.values())
    known = point.pattern == next(iter(PATTERNS))
    js0 = float(np.mean(measured[point.scale].js0)) if known else float("nan")
    ratio = float(np.mean(_ratios(measured[point.scale]))) if known else float("nan")
    return point.pattern, point.scale, point.gap.sgd[0].rate, sgd, point.gap.adam[0].rate, adam, js0, ratio


def _ratios(measured: Blockwise) -> list[float]:
    return [float(row.max() / row.min()) for row in measured.lambda_max]


def _draw(points: list[_Point], measured: dict[int, Blockwise]) -> Figure:
    scales = list(measured)
    with figures.style():
        figure, panels = figures.page(1, len(PATTERNS) + 1, 8.0, 2.0)
        for axes, pattern in zip(panels[0], PATTERNS, strict=False):
            chosen = [point for point in points if point.pattern == pattern]
            series = {label: np.array([point.losses[label] for point in chosen]).T for label in ("SGD", "Adam")}
            figures.curves(axes, {label: (scales, values) for label, values in series.items()}, bars=True)
            axes.set(ylabel="training loss", title=pattern)
        axes = panels[0, -1]
        ratios = np.array([_ratios(found) for found in measured.values()]).T
        figures.curves(axes, {"solid": (scales, ratios)}, bars=True)
        axes.set(ylabel="ratio of lambda_max (solid)", title=f"blocks of {next(iter(PATTERNS))}")
        for axes in panels[0]:
            axes.set(xscale="log", yscale="log", xlabel="c")
            axes.set_xticks(scales, [str(scale) for scale in scales])
            axes.minorticks_off()
        axes.get_legend().remove()
        twin = axes.twinx()
        twin.plot(
            scales,
            [np.mean(found.js0) for found in measured.values()],
            "s--",
            color="black",
            markersize=2.5,
            linewidth=1.0,
        )
        twin.set(ylim=(0.0, 1.0), ylabel="JS0 (dashed)")
    return figure
