"""SLQ against exact spectra (Z's own check in the first commit of its code, and zyushun/Hessian-structure).

The error of a density is E1, the integral of abs(phi_exact - phi_slq), both smoothed with the same Gaussian; between
two distributions it is at most 2. Once there are steps enough it is chance, and falls like 1 / sqrt(probes). Whether
the engine knows its own chance is seen by its bars of the trace: as many of them as they say hold the exact one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from hvp_engine import losses
from hvp_engine.api import dense, slq
from hvp_engine.experiments import exact_net, figures
from hvp_engine.experiments.exact import FloatArray
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Result, Table, at_least, at_most
from hvp_engine.experiments.slq_errors import Comparison, Sizes, comparison, slope
from hvp_engine.experiments.zoo import data_of, zoo
from hvp_engine.results import smoothing
from hvp_engine.results.spectrum import Spectrum

_SIZES = {
    "tiny": Sizes((5, 10, 20, 40, 80), (1, 2, 5, 10, 20), 50, 1),
    "small": Sizes((5, 10, 20, 40, 80, 160), (1, 2, 5, 10, 20), 50, 2),
}
_TRACE_STEPS, _TRACE_PROBES = 20, 2
_NET = "exact MLP"
_NOTE = (
    "Calibrated once on seeds 100 and 101, which no check uses, without the MLP's hidden layer: slopes -0.60 to -0.46, "
    "bars that hold in 96 to 100 % of the runs; the specification's bounds were kept."
)
_SOURCE = "theory of SLQ; Z's own validation shows the figure"


def run(setting: Setting) -> Result:
    """Compare SLQ of small blocks with their exact spectra, over steps and probes."""
    if setting.size == "paper":
        setting = replace(setting, size="small")  # exact spectra are of small blocks only
    sizes = _SIZES[setting.size]
    seeds = [comparisons(setting, sizes, seed) for seed in range(setting.seeds)]
    slopes = [max(abs(slope(sizes, c) + 0.5) for c in seed.values()) for seed in seeds]
    covered = [min(c.covered for c in seed.values()) for seed in seeds]
    most = sizes.steps[-1]
    claims = (
        at_most(
            f"E1 falls like probes^-0.5 +- 0.15 at {most} steps", "distance of the exponent", slopes, 0.15, _SOURCE
        ),
        at_least(f"95 % bars hold the exact trace in >= 90 % of {sizes.repeats} runs", "share", covered, 0.9, _SOURCE),
    )
    errors = {name: np.array([seed[name].errors for seed in seeds]) for name in seeds[0]}
    table = tuple(
        (name, steps, probes, float(found[:, i, j].mean()), float(found[:, i, j].std()))
        for name, found in errors.items()
        for i, steps in enumerate(sizes.steps)
        for j, probes in enumerate(sizes.probes)
    )
    settings: dict[str, object] = {
        "sigma": "sqrt(1e-5) x range",
        "repeats": sizes.repeats,
        "trace": [_TRACE_STEPS, _TRACE_PROBES],
    }
    settings |= data_of(setting, ["mlp"], {_NET: exact_net.pictures(setting).source})
    columns = ("block", "steps", "probes", "E1, mean", "sd")
    return Result(Table(columns, table), claims, drawn(sizes, seeds[0][_NET], errors), settings, notes=(_NOTE,))


def comparisons(setting: Setting, sizes: Sizes, seed: int) -> dict[str, Comparison]:
    """Compare the blocks of a seed's two nets at initialisation: the small net whole, the last layers of the MLP."""
    data = exact_net.pictures(setting)
    net = exact_net.network(setting, data, seed).eval()
    found = compared(setting, sizes, seed, net, losses.classification, {_NET: ["*"]}, [data.train])
    entry = zoo(setting)["mlp"]
    last = {f"mlp, {name}": patterns for name, patterns in list(entry.blocks.items())[-sizes.layers :]}
    model, batches = entry.build(seed).eval().to(setting.device), entry.data(seed).fixed
    return {**found, **compared(setting, sizes, seed, model, entry.loss, last, batches)}


def compared(
    setting: Setting, sizes: Sizes, seed: int, model: nn.Module, loss: Any, blocks: Mapping[str, Any], data: Any
) -> dict[str, Comparison]:
    """Form the blocks' matrices, run SLQ on them once with the most steps and probes, and again for the traces."""
    exact = {name: np.linalg.eigvalsh(h.numpy(force=True)) for name, h in dense(model, loss, blocks, data=data).items()}
    again = partial(slq, model, loss, blocks, data=data, precision=setting.precision, progress=False)
    found = again(steps=sizes.steps[-1], probes=sizes.probes[-1], seed=seed)
    repeats = [
        again(steps=_TRACE_STEPS, probes=_TRACE_PROBES, seed=number, check=False)
        for number in range(seed * sizes.repeats, (seed + 1) * sizes.repeats)
    ]
    return {
        name: comparison(sizes, exact[name], found[name], [spectra[name] for spectra in repeats]) for name in blocks
    }


def drawn(sizes: Sizes, found: Comparison, errors: Mapping[str, FloatArray]) -> Figure:
    """Draw the small net's density, exact and by SLQ, and E1 against steps and against probes."""
    grid = smoothing.smoothing_grid(float(found.eigenvalues[0]), float(found.eigenvalues[-1]), found.sigma)
    exactly = Spectrum.exact(_NET, found.eigenvalues.size, found.eigenvalues)
    with figures.style():
        figure, axes = figures.page(1, 3, 7.0, 2.2)
        for label, spectrum in (("exact", exactly), (f"SLQ, {sizes.steps[-1]} steps", found.spectrum)):
            axes[0, 0].plot(*spectrum.density(grid, found.sigma, "gauss"), linewidth=0.8, label=label)
        axes[0, 0].set(yscale="log", ylim=(1e-4, None), xlabel="eigenvalue", ylabel="density", title=f"{_NET}, seed 0")
        axes[0, 0].legend(fontsize=6, frameon=False)
        labels = [f"{probes} probe{'s' * (probes > 1)}" for probes in sizes.probes]
        by_steps = {label: (sizes.steps, errors[_NET][:, :, j]) for j, label in enumerate(labels)}
        figures.curves(axes[0, 1], by_steps, bars=True)
        axes[0, 1].set(yscale="log", xlabel="steps", ylabel="E1", title=_NET)
        figures.label_logs(axes[0, 1], sizes.steps)
        figures.curves(axes[0, 2], {name: (sizes.probes, e[:, -1]) for name, e in errors.items()}, bars=True)
        axes[0, 2].set(yscale="log", xlabel="probes", ylabel="E1", title=f"{sizes.steps[-1]} steps")
        figures.label_logs(axes[0, 2], sizes.probes)
    return figure
