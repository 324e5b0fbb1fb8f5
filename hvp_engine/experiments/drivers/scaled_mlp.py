"""An MLP whose blocks are made to differ, and nothing else (`scaled.py`): SGD degrades, Adam hardly (D5).

Pattern (1/c, 1, 1, c) is kept although SGD does not suffer there: heterogeneity is not sufficient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from hvp_engine.experiments import figures
from hvp_engine.experiments.blockwise import Blockwise, measure
from hvp_engine.experiments.clock import Clock
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell, Claim, Result, Table, at_least, at_most
from hvp_engine.experiments.scaled import GRID, JUDGED, PATTERNS, SCALES, Point, factors, largest_error, scaled
from hvp_engine.experiments.zoo_plan import planned_curves, planned_spectra

DECIDED = next(iter(PATTERNS))
_SOURCE = "arXiv 2402.16788, figure 5a (its scaling is not published); bounds measured here"
_COLUMNS = (
    "pattern", "c", "SGD's rate", "SGD's loss, median", "Adam's rate", "Adam's loss, median", "JS0",
    "largest over smallest lambda_max",
)  # fmt: skip


def run(setting: Setting) -> Result:
    """Train all patterns at all scales with both optimizers, and take the spectra of the first pattern."""
    seconds, scales = Clock(), SCALES[setting.size]
    with seconds.part("training"):
        points = [Point.trained(setting, pattern, scale) for pattern in PATTERNS for scale in scales]
    with seconds.part("spectra"):
        measured = {scale: measure(in_float64(setting), scaled(setting, DECIDED, scale)) for scale in scales}
    entry = scaled(setting, DECIDED, 1)
    settings = {
        "steps": entry.recipe.steps, "batch": entry.recipe.batch, "clip": entry.recipe.clip, "grids": GRID,
        "parameters": entry.parameters, "data": entry.data(0).source, "judged by the mean of the last": JUDGED,
        "precision of the spectra": in_float64(setting).precision,
    }  # fmt: skip
    table = Table(_COLUMNS, tuple(_row(point, measured) for point in points))
    notes = tuple(sentence for point in points for sentence in point.gap.edges)
    return Result(table, decide(points, measured), _draw(points, measured), settings, seconds, notes)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the trainings of all patterns and the spectra of the first one."""
    entry, scales = scaled(setting, DECIDED, 1), len(SCALES["paper"])
    trainings = planned_curves(setting, entry).times(scales * len(PATTERNS))
    return [trainings, planned_spectra(in_float64(setting), entry, setting.seeds * scales)]


def in_float64(setting: Setting) -> Setting:
    """Ask for spectra in float64: at c = 64 the blocks are 10^7 apart, and one is below float32's unit of the other."""
    return replace(setting, precision="fp64")


def decide(points: Sequence[Point], measured: Mapping[int, Blockwise]) -> tuple[Claim, ...]:
    """Decide by ratios of medians over seeds, on the first pattern between the smallest and the largest c."""
    chosen = [point for point in points if point.pattern == points[0].pattern]
    low, high = chosen[0], chosen[-1]
    (sgd, adam), (sgd_high, adam_high) = low.medians, high.medians
    errors = largest_error(measured[low.scale], measured[high.scale], factors(high.pattern, high.scale))
    ends, ratio = f"c = {high.scale} against c = {low.scale}", "ratio of medians"
    beyond = (sgd_high / adam_high) / (sgd / adam)
    return (
        at_least(f"SGD's loss grows 2.5 x, {ends}", ratio, [sgd_high / sgd], 2.5, _SOURCE),
        at_least(f"SGD's loss over Adam's grows 1.6 x, {ends}", ratio, [beyond], 1.6, _SOURCE),
        at_most("H_ll(c) = H_ll(1) / c_l^2", "relative error", errors, 1e-4, "homogeneity, ours"),
    )


def _row(point: Point, measured: Mapping[int, Blockwise]) -> tuple[Cell, ...]:
    sgd, adam = point.medians
    known = point.pattern == DECIDED
    js0 = float(np.mean(measured[point.scale].js0)) if known else float("nan")
    ratio = float(np.mean(ratios(measured[point.scale]))) if known else float("nan")
    return point.pattern, point.scale, point.gap.sgd[0].rate, sgd, point.gap.adam[0].rate, adam, js0, ratio


def ratios(measured: Blockwise) -> list[float]:
    """Return the largest over the smallest lambda_max of all blocks, by seed."""
    return [float(row.max() / row.min()) for row in measured.lambda_max]


def _draw(points: Sequence[Point], measured: Mapping[int, Blockwise]) -> Figure:
    scales = list(measured)
    with figures.style():
        figure, panels = figures.page(1, len(PATTERNS) + 1, 8.0, 2.0)
        for axes, pattern in zip(panels[0], PATTERNS, strict=False):
            chosen = [point for point in points if point.pattern == pattern]
            series = {label: np.array([point.losses[label] for point in chosen]).T for label in ("SGD", "Adam")}
            figures.curves(axes, {label: (scales, values) for label, values in series.items()}, bars=True)
            axes.set(ylabel="training loss, nats", title=pattern)
        axes, twin = panels[0, -1], panels[0, -1].twinx()
        figures.curves(axes, {"solid": (scales, np.array([ratios(one) for one in measured.values()]).T)}, bars=True)
        axes.get_legend().remove()
        axes.set(ylabel="lambda_max ratio (solid)", title=f"blocks of {DECIDED}")
        js0 = [np.mean(found.js0) for found in measured.values()]
        twin.plot(scales, js0, "s--", color="black", markersize=2.5, linewidth=1.0)
        twin.set(ylim=(0.0, 1.0), ylabel="JS0 (dashed)")
        for axes in panels[0]:
            axes.set(yscale="log", xlabel="c")
            figures.label_logs(axes, scales)
    return figure
