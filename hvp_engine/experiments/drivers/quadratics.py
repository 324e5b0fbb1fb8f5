"""Quadratics with blocks (D9, D19): Adam is fast where eigenvalues differ between blocks, not where they are mixed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from hvp_engine.experiments import cache, figures
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.quadratic_problem import (
    CONDITION,
    HETEROGENEOUS,
    HOMOGENEOUS,
    Counts,
    FloatArray,
    Quadratics,
    adam_with_memory,
)
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least, at_most
from hvp_engine.experiments.zoo import entry_of
from hvp_engine.experiments.zoo_plan import planned_spectra

_CASE_1, _CASE_2 = "case 1: blocks of a GPT", "case 2: blocks of a ResNet"
_CASE_3, _CASE_4 = "case 3: heterogeneous", "case 4: homogeneous"
_BLOCKS, _EIGENVALUES = 4, 25  # of each sampled case
_STEPWISE = 3000
_BETA2 = 0.99
_LEAST = 1e-16  # reductions below it are drawn there: the panels end sooner
_NOTE = (
    "Cases 1 and 2 are reported, not gated: one affine map to kappa = 5,000 leaves most eigenvalues of all blocks near "
    "1 where a few of one block are far larger."
)
_SOURCE = "arXiv 2402.16788, figure 8"


def run(setting: Setting) -> Result:
    """Count iterations of gradient descent and Adam, each with its best constant step, on four kinds of quadratics."""
    seeds = 200 if setting.size == "tiny" else 1000
    began = time.perf_counter()
    models = _models(setting)
    spectra = {case: sampled(setting, model) for case, model in models.items()}
    seconds = {"spectra": time.perf_counter() - began}
    spectra |= {_CASE_3: np.array(HETEROGENEOUS), _CASE_4: np.array(HOMOGENEOUS)}
    began = time.perf_counter()
    problems = {case: Quadratics.drawn(values, seeds) for case, values in spectra.items()}
    counts = {case: (drawn.gradient_descent.iterations(), drawn.adam.iterations()) for case, drawn in problems.items()}
    rows = tuple(_row(case, problems[case], *counts[case]) for case in counts)
    columns = ("case", "GD", "GD quartiles", "Adam", "Adam quartiles", "Adam wins", "kappa of D^-1 H")
    with figures.style():
        figure, axes = figures.page(2, 4, 7.5, 4.0)
        for panel, (case, drawn) in zip(axes[0], problems.items(), strict=True):
            _convergence(panel, case, drawn)
        for panel, case in zip(axes[1], models, strict=False):
            _histogram(panel, case, spectra[case])
        _stalling(axes[1, 2], problems[_CASE_3])
        _ratios(axes[1, 3], counts)
    seconds["quadratics"] = time.perf_counter() - began
    settings = {
        "problems": seeds, "kappa": CONDITION, "reduction of the gradient": 1e-6,
        "blocks of cases 1 and 2": [_BLOCKS, _EIGENVALUES], "spectra of cases 1 and 2": models,
    }  # fmt: skip
    return Result(Table(columns, rows), _claims(counts), figure, settings, seconds, (_NOTE,))


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the spectra that eigenvalues are drawn from; what follows takes seconds."""
    return [planned_spectra(setting, entry_of(setting, model), runs=1) for model in _models(setting).values()]


def _models(setting: Setting) -> dict[str, str]:
    return {_CASE_1: "gpt2" if setting.size == "paper" else "gpt", _CASE_2: "resnet"}


def sampled(setting: Setting, model: str) -> FloatArray:
    """Draw eigenvalues from blocks of a model by quadrature weight, (blocks, eigenvalues), between 1 and kappa.

    Signs are dropped, and one affine map serves all blocks, so that what differs between them stays.
    """
    spectra = list(cache.spectra(setting, model, "init", 0).values())
    places = np.linspace(0, len(spectra) - 1, _BLOCKS).round().astype(int)
    rules = [spectra[place].reading.gauss for place in places]
    generator = np.random.default_rng(0)
    drawn = np.abs([generator.choice(rule.nodes, _EIGENVALUES, p=rule.weights / rule.weights.sum()) for rule in rules])
    return np.asarray(1.0 + (CONDITION - 1.0) * (drawn - drawn.min()) / np.ptp(drawn))


def _row(case: str, drawn: Quadratics, descent: Counts, adam: Counts) -> tuple[str | float, ...]:
    quartiles = ["{:,.0f} to {:,.0f}".format(*np.percentile(found, (25, 75))) for found in (descent, adam)]
    medians = [f"{np.median(found):,.0f}" for found in (descent, adam)]
    wins, condition = float((adam < descent).mean()), float(np.median(drawn.adam.condition))
    return (case, medians[0], quartiles[0], medians[1], quartiles[1], wins, condition)


def _claims(counts: Mapping[str, Sequence[Counts]]) -> tuple[Claim, ...]:
    (descent3, adam3), (descent4, adam4) = counts[_CASE_3], counts[_CASE_4]
    gap = abs(float(np.median(descent3) / np.median(descent4)) - 1.0)
    gain = float(np.median(descent3) / np.median(adam3))
    return (
        at_least("Adam is 50 x faster than GD on case 3", "GD's median / Adam's", [gain], 50.0, _SOURCE),
        at_least("Adam wins in 99 % of case 3", "share", [float((adam3 < descent3).mean())], 0.99, _SOURCE),
        at_most("Adam wins in at most half of case 4", "share", [float((adam4 < descent4).mean())], 0.5, _SOURCE),
        at_most("GD is equally slow on cases 3 and 4", "relative difference of medians", [gap], 0.02, _SOURCE),
    )


def _convergence(axes: Axes, case: str, drawn: Quadratics) -> None:
    steps = np.unique(np.geomspace(1, 1e5, 80).astype(np.int64))
    series = {}
    for label, iteration in (("GD", drawn.gradient_descent), ("Adam", drawn.adam)):
        start = iteration.norms(0)
        series[label] = (steps, _log(np.stack([iteration.norms(step) / start for step in steps], axis=1)))
    figures.curves(axes, series)
    axes.set(xscale="log", ylim=(-8, 0.5), title=case, xlabel="iteration", ylabel="log10 gradient norm")


def _log(reductions: FloatArray) -> FloatArray:
    return np.asarray(np.log10(np.maximum(reductions, _LEAST)))


def _histogram(axes: Axes, case: str, values: FloatArray) -> None:
    axes.hist(
        list(values),
        np.geomspace(1.0, CONDITION, 16).tolist(),
        stacked=True,
        label=[f"block {number}" for number in range(len(values))],
    )
    axes.set(xscale="log", title=case, xlabel="eigenvalue", ylabel="count")
    axes.legend(fontsize=6, frameon=False)


def _stalling(axes: Axes, drawn: Quadratics) -> None:
    """Draw Adam that forgets its first gradient, step by step: with a constant step it ends in a cycle."""
    few = Quadratics(drawn.matrices[:50], drawn.starts[:50])
    series = {f"beta2 = {beta2:g}": adam_with_memory(few, beta2, _STEPWISE) for beta2 in (1.0, _BETA2)}
    every = np.arange(_STEPWISE + 1)
    figures.curves(axes, {label: (every, _log(norms / norms[:, :1])) for label, norms in series.items()})
    axes.set(title="Adam on case 3, step by step", xlabel="iteration", ylabel="log10 gradient norm", ylim=(-8, 3))


def _ratios(axes: Axes, counts: Mapping[str, Sequence[Counts]]) -> None:
    for case, (descent, adam) in counts.items():
        axes.ecdf(adam / descent, linewidth=1.0, label=case.partition(":")[0])
    axes.axvline(1.0, color="0.7", linewidth=0.6)
    axes.set(xscale="log", title="iterations", xlabel="Adam / GD", ylabel="share of seeds")
    axes.legend(fontsize=6, frameon=False)
