"""D12: the largest eigenvalue of a tensor's diagonal block grows with its gradient norm (arXiv 2502.00213).

The paper's code measures both per batch for 22, 21 and 16 tensors, by power iteration on one tensor after another. Here
all tensors of a batch are in one call: the largest Ritz value after 20 Lanczos steps, which is the largest positive
eigenvalue without deflations. Every seed has its own batch, and its own new head on a pre-trained body.
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import save

from hvp_engine.experiments import figures
from hvp_engine.experiments.clock import Clock
from hvp_engine.experiments.heterogeneity import gini, interval, pearson_of_logs, spearman
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least
from hvp_engine.experiments.studied import chosen, sources
from hvp_engine.experiments.studied_paper import planned
from hvp_engine.experiments.tensors import STEPS, Facts, column, facts

_SOURCE = "arXiv 2502.00213, no number published; bounds measured here"
_COLUMNS = (
    "model", "tensors", "Pearson of logs", "low", "high", "Spearman", "low", "high", "Gini lambda_max",
    "largest change",
)  # fmt: skip
_PEARSON, _SPEARMAN = 0.7, 0.6


def run(setting: Setting) -> Result:
    """Measure the tensors of every network on one batch per seed, and correlate their logarithms."""
    entries, notes = chosen(setting)
    found: dict[str, list[Facts]] = {}
    seconds = Clock()
    ready(setting, entries.values())
    for name, entry in entries.items():
        with seconds.part(name):
            found[name] = [facts(setting, entry, seed) for seed in range(setting.seeds)]
    transformers = [name for name, entry in entries.items() if entry.family == "transformer"]
    with figures.style():
        figure, axes = figures.page(1, len(found), 2.2 * len(found), 2.6)
        for ax, (name, seeds) in zip(axes[0], found.items(), strict=True):
            x, y = mean_of_logs(seeds, "gradient"), mean_of_logs(seeds, "curvature")
            figures.scatter(ax, x, y, groups=[tensor.role for tensor in seeds[0].values()])
            line = np.polyfit(np.log10(x), np.log10(y), 1)
            ends = np.array([min(x), max(x)])
            ax.plot(ends, 10.0 ** np.polyval(line, np.log10(ends)), color="0.5", linewidth=0.8)
            ax.set(xscale="log", yscale="log", xlabel="gradient norm", title=name)
        axes[0, 0].set_ylabel("largest eigenvalue")
    return Result(
        Table(_COLUMNS, tuple(row(name, seeds) for name, seeds in found.items())),
        claims({name: found[name] for name in transformers}),
        figure,
        {
            "lanczos steps": STEPS,
            "probes": 1,
            "tensors": {name: list(entry.blocks) for name, entry in entries.items()},
            "weights": sources(setting, entries),
            "data": {name: entry.data(0).source for name, entry in entries.items()},
        },
        seconds,
        notes,
        files={"lambda_and_gradient.safetensors": save({name: array(seeds) for name, seeds in found.items()})},
    )


def claims(found: dict[str, list[Facts]]) -> tuple[Claim, ...]:
    """Decide for Transformers, by the least of them in every seed, whether the two numbers go together."""
    batches = list(zip(*found.values(), strict=True))
    pearson = [min(pearson_of_logs(column(f, "gradient"), column(f, "curvature")) for f in batch) for batch in batches]
    ranks = [min(spearman(column(f, "gradient"), column(f, "curvature")) for f in batch) for batch in batches]
    return (
        at_least(f"Pearson of logs >= {_PEARSON} in every Transformer", "correlation", pearson, _PEARSON, _SOURCE),
        at_least(f"Spearman >= {_SPEARMAN} in every Transformer", "correlation", ranks, _SPEARMAN, _SOURCE),
    )


def mean_of_logs(seeds: list[Facts], field: str) -> list[float]:
    """Return the geometric mean over seeds of a number of every tensor."""
    logs = np.log10([column(found, field) for found in seeds])
    return [float(value) for value in 10.0 ** logs.mean(axis=0)]


def row(name: str, seeds: list[Facts]) -> tuple[str | int | float, ...]:
    """Make the table's row of a network, of the means over seeds, with bootstrap intervals over its tensors."""
    x, y = mean_of_logs(seeds, "gradient"), mean_of_logs(seeds, "curvature")
    change = max(abs(tensor.change) for found in seeds for tensor in found.values())
    pearson, ranks = (
        (pearson_of_logs(x, y), *interval(pearson_of_logs, x, y)),
        (spearman(x, y), *interval(spearman, x, y)),
    )
    return (name, len(x), *pearson, *ranks, gini(y), change)


def array(seeds: list[Facts]) -> torch.Tensor:
    """Return largest eigenvalue and gradient norm as the paper's code keeps them, (batches, tensors, 2) float64."""
    both = [[(tensor.curvature, tensor.gradient) for tensor in found.values()] for found in seeds]
    return torch.tensor(both, dtype=torch.float64)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the paper's networks, all listed tensors of one batch in one call."""
    return planned(setting, steps=STEPS, probes=1)
