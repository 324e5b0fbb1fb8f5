"""The constant r of Adam's rate on quadratics (D10): within a block the first gradient is rarely very uneven."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hvp_engine.experiments import figures
from hvp_engine.experiments.quadratic_problem import CONDITION, HETEROGENEOUS, Counts, FloatArray, Quadratics
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Result, Table, at_least, at_most

TRIALS = 1000
BOUND = 1000.0
_SOURCE = "arXiv 2402.16788, after theorem 3.2; the square in r is inferred"


def run(setting: Setting) -> Result:
    """Draw r = max over blocks of (max |g| / min |g|)^2 at Gaussian starts, and hold theorem 3.2 against every draw."""
    problems = Quadratics.drawn(HETEROGENEOUS, TRIALS)
    r = ratios(problems) ** 2
    inside = int((r <= BOUND).sum())
    low = float(stats.binomtest(inside, TRIALS).proportion_ci(0.95, "exact").low)
    broken = int((~theorem_holds(problems, r)).sum())
    claims = (
        at_least("P(r <= 1000) >= 2/3", "share of draws", [inside / TRIALS], 2.0 / 3.0, _SOURCE, paper=2.0 / 3.0),
        at_least("P(r <= 1000) is above 0.70", "lower 95 % bound (Clopper-Pearson)", [low], 0.70, _SOURCE),
        at_most("No draw violates the bounds of theorem 3.2", "draws that do", [broken], 0.0, _SOURCE),
    )
    without = float((np.sqrt(r) <= BOUND).mean())
    rows = (
        ("P(r <= 1000)", inside / TRIALS), ("lower 95 % bound", low), ("the same without the square", without),
        ("median of r", float(np.median(r))), ("draws that violate theorem 3.2", broken),
    )  # fmt: skip
    with figures.style():
        figure, axes = figures.page(1, 1, 3.2, 2.4)
        panel = axes[0, 0]
        panel.ecdf(r)
        panel.axvline(BOUND, color="0.6", linewidth=0.8, label="1000")
        panel.axhline(2.0 / 3.0, color="0.6", linewidth=0.8, linestyle="--", label="2/3")
        panel.set(xscale="log", xlabel="r", ylabel="share of draws")
        panel.legend(fontsize=6, frameon=False)
    settings = {"draws": TRIALS, "kappa": CONDITION, "eigenvalues": HETEROGENEOUS}
    return Result(Table(("", "value"), rows), claims, figure, settings)


def ratios(problems: Quadratics) -> FloatArray:
    """Return the largest over blocks of max |g| / min |g| at the start, (seeds,)."""
    sizes = np.abs(problems.gradients)
    return np.asarray((sizes.max(axis=2) / sizes.min(axis=2)).max(axis=1))


def theorem_holds(problems: Quadratics, r: FloatArray) -> NDArray[np.bool_]:
    """Say of every seed whether both of theorem 3.2's bounds on the loss hold, (seeds,) bool.

    Adam's loss falls in every step by at least max over blocks of 1 - 1 / (r kappa of the block); that of gradient
    descent with its best step ends by falling no faster than (1 - 2 / (kappa + 1))^2.
    """
    blocks = np.linalg.eigvalsh(problems.matrices)
    conditions = blocks[..., -1] / blocks[..., 0]
    promised = (1.0 - 1.0 / (r[:, None] * conditions)).max(axis=1)
    slowest = (problems.adam.rates**2).max(axis=(1, 2))
    descent = problems.gradient_descent
    step = 10 * descent.iterations()  # by then only the slowest modes are left
    fall = (_loss(problems, step + 1) / _loss(problems, step)) * (1.0 + 1e-9)
    return np.asarray((slowest <= promised) & (fall >= (1.0 - 2.0 / (descent.condition + 1.0)) ** 2))


def _loss(problems: Quadratics, steps: Counts) -> FloatArray:
    """Return the loss of gradient descent after so many steps, one number for each seed, (seeds,)."""
    descent = problems.gradient_descent
    parts = descent.shares * descent.rates ** steps[:, None, None]
    return np.asarray((parts**2 / (2.0 * descent.eigenvalues)).sum(axis=(1, 2)))
