"""The panels of `quadratics.py`'s figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from hvp_engine.experiments import figures
from hvp_engine.experiments.quadratic_problem import CONDITION, Counts, FloatArray, Quadratics, adam_with_memory

_STEPWISE = 3000
_BETA2 = 0.99
_LEAST = 1e-16  # reductions below it are drawn there: the panels end sooner


def convergence(axes: Axes, case: str, drawn: Quadratics) -> None:
    """Draw how the gradient falls under gradient descent and under Adam."""
    steps = np.unique(np.geomspace(1, 1e5, 80).astype(np.int64))
    series = {}
    for label, iteration in (("GD", drawn.gradient_descent), ("Adam", drawn.adam)):
        start = iteration.norms(0)
        series[label] = (steps, _log(np.stack([iteration.norms(step) / start for step in steps], axis=1)))
    figures.curves(axes, series)
    axes.set(xscale="log", ylim=(-8, 0.5), title=case, xlabel="iteration", ylabel="log10 (gradient norm / start)")


def histogram(axes: Axes, case: str, values: FloatArray) -> None:
    """Draw the eigenvalues of the blocks, (blocks, eigenvalues)."""
    edges = np.geomspace(1.0, CONDITION, 16).tolist()
    axes.hist(list(values), edges, stacked=True, label=[f"block {number}" for number in range(len(values))])
    axes.set(xscale="log", title=case, xlabel="eigenvalue", ylabel="count")
    axes.legend(fontsize=6, frameon=False)


def stalling(axes: Axes, case: str, drawn: Quadratics) -> None:
    """Draw Adam that forgets its first gradient, step by step: with a constant step it ends in a cycle."""
    few = Quadratics(drawn.matrices[:50], drawn.starts[:50])
    series = {f"beta2 = {beta2:g}": adam_with_memory(few, beta2, _STEPWISE) for beta2 in (1.0, _BETA2)}
    every = np.arange(_STEPWISE + 1)
    figures.curves(axes, {label: (every, _log(norms / norms[:, :1])) for label, norms in series.items()})
    axes.set(
        title=f"Adam on {case}, step by step", xlabel="iteration", ylabel="log10 (gradient norm / start)", ylim=(-8, 3)
    )


def ratios(axes: Axes, counts: Mapping[str, Sequence[Counts]]) -> None:
    """Draw how often Adam needs how many times the iterations of gradient descent, by case."""
    for case, (descent, adam) in counts.items():
        axes.ecdf(adam / descent, linewidth=1.0, label=case.partition(":")[0])
    axes.axvline(1.0, color="0.7", linewidth=0.6)
    axes.set(xscale="log", title="iterations", xlabel="Adam / GD", ylabel="share of seeds")
    axes.legend(fontsize=6, frameon=False)


def _log(reductions: FloatArray) -> FloatArray:
    return np.asarray(np.log10(np.maximum(reductions, _LEAST)))
