"""F4: full-batch gradient descent trains where the largest eigenvalue is near 2 / rate (Cohen et al. 2021, 2022).

A tanh network on 500 digits with the squared error. For Adam the eigenvalue is that of P^-1/2 H P^-1/2, P the diagonal
that its step is divided by, and the edge is 38 / rate at beta1 = 0.9; it is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hvp_engine.experiments import figures
from hvp_engine.experiments.data import images
from hvp_engine.experiments.full_batch import EDGES, EVERY, SAMPLES, STEPS, Trace, follow
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least, at_most

RATES = {"plain-sgd": (0.1, 0.3), "adam": (1e-3,)}
LOW, HIGH, START = 0.9, 1.25, 0.9
_TITLES = {"plain-sgd": "gradient descent", "adam": "Adam"}
_COLUMNS = ("optimizer", "rate", "at the start", "smallest of the last half", "largest")
_SOURCE = "Cohen et al., arXiv 2103.00065 and 2207.14484; bounds measured here"
Values = NDArray[np.float64]  # of the largest eigenvalue relative to the edge, (seeds, looks)
Run = tuple[str, float]  # optimizer and rate


def run(setting: Setting) -> Result:
    """Train with every rate and seed, and follow the largest eigenvalue."""
    runs = [(name, rate) for name, rates in RATES.items() for rate in rates]
    followed = {run: [follow(setting, *run, seed) for seed in range(setting.seeds)] for run in runs}
    found = {run: np.array([eigenvalues for eigenvalues, _ in seeds]) for run, seeds in followed.items()}
    rows = tuple(
        (_TITLES[name], rate, float(values[:, 0].mean()), float(_half(values).min()), float(_half(values).max()))
        for (name, rate), values in found.items()
    )
    settings = {
        "samples": SAMPLES, "steps": STEPS[setting.size], "network": "64-64-64-10, tanh", "loss": "half squared",
        "data": images.digits().source.described(),
    }  # fmt: skip
    descent = {rate: values for (name, rate), values in found.items() if name == "plain-sgd"}
    return Result(Table(_COLUMNS, rows), claims(descent), _draw(setting, followed, found), settings)


def claims(descent: Mapping[float, Values]) -> tuple[Claim, ...]:
    """Decide for gradient descent by the last half of every seed, and by the start of the smaller rate."""
    halves = [_half(values) for values in descent.values()]
    low, high = (np.min([h.min(axis=1) for h in halves], axis=0), np.max([h.max(axis=1) for h in halves], axis=0))
    start = descent[min(descent)][:, 0]
    what, of = "largest eigenvalue x rate / 2", "over the last half, both rates"
    return (
        at_least(f"{what} >= {LOW} {of}", "smallest", low.tolist(), LOW, _SOURCE, paper=1.0),
        at_most(f"{what} <= {HIGH} {of}", "largest", high.tolist(), HIGH, _SOURCE, paper=1.0),
        at_most(f"{what} <= {START} at the start, rate {min(descent):g}", "value", start.tolist(), START, _SOURCE),
    )


def _half(values: Values) -> Values:
    return values[:, values.shape[1] // 2 :]


def _draw(setting: Setting, followed: Mapping[Run, Sequence[Trace]], found: Mapping[Run, Values]) -> Figure:
    looks = range(0, STEPS[setting.size] + 1, EVERY[setting.size])
    with figures.style():
        figure, axes = figures.page(1, 3, 6.5, 2.1)
        for ax, (name, edge) in zip(axes[0], EDGES.items(), strict=False):
            of = {f"rate {rate:g}": (looks, values) for (by, rate), values in found.items() if by == name}
            figures.curves(ax, of)
            ax.axhline(1.0, color="0.5", linewidth=0.6, linestyle="--")
            ax.set(xlabel="step", ylabel=f"lambda_max x rate / {edge:g}", title=_TITLES[name])
        steps = range(STEPS[setting.size])
        losses = {
            f"{_TITLES[name]}, {rate:g}": (steps, [loss for _, loss in seeds])
            for (name, rate), seeds in followed.items()
        }
        figures.curves(axes[0, 2], losses)
        axes[0, 2].legend(fontsize=6, frameon=False, loc="upper right")
        axes[0, 2].set(yscale="log", xlabel="step", ylabel="half squared error", title="training loss")
    return figure
