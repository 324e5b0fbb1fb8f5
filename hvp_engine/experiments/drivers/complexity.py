"""D17: curvature weighted by gradients exceeds curvature weighted by sizes in Transformers (arXiv 2502.00213).

The iteration complexity of SGD is bounded by Lambda_G = sum over tensors of |g_b|^2 / |g|^2 lambda_max(H_bb), that of
sign methods by Lambda_P = sum of P_b / P lambda_max(H_bb); the formulas are from memory. Over all tensors of the zoo's
networks, along their training with Adam.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hvp_engine.experiments import figures
from hvp_engine.experiments.cache import INIT, STAGES
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least
from hvp_engine.experiments.roles import every_tensor
from hvp_engine.experiments.tensors import STEPS, Facts, column, facts
from hvp_engine.experiments.zoo import zoo
from hvp_engine.experiments.zoo_plan import planned_curves, planned_spectra

TRANSFORMERS, CNNS = ("vit", "gpt"), ("vgg", "resnet")
_SOURCE = "arXiv 2502.00213 (abstract); formulas from memory, bound a guess"
Ratios = Mapping[str, NDArray[np.float64]]  # by model, (seeds, stages)


def run(setting: Setting) -> Result:
    """Weigh the largest eigenvalues of all tensors in both ways, at all stages of training."""
    stages, entries = _stages(setting), _entries(setting)
    rows: list[tuple[str | float, ...]] = []
    ratios: dict[str, NDArray[np.float64]] = {}
    ready(setting, entries.values())
    for name, entry in entries.items():
        both = np.array(
            [[complexities(facts(setting, entry, seed, stage)) for stage in stages] for seed in range(setting.seeds)]
        )  # (seeds, stages, 2)
        ratios[name] = both[..., 0] / both[..., 1]
        means = both.mean(axis=0).tolist()
        rows += [(name, stage, *pair, pair[0] / pair[1]) for stage, pair in zip(stages, means, strict=True)]
    with figures.style():
        figure, axes = figures.page(1, 1, 3.2, 2.2)
        figures.curves(axes[0, 0], {name: (range(len(stages)), found) for name, found in ratios.items()}, bars=True)
        axes[0, 0].set(yscale="log", ylabel="Lambda_G / Lambda_P", xlabel="share of training")
        axes[0, 0].set_xticks(range(len(stages)), stages)
        axes[0, 0].legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    columns = ("model", "stage", "Lambda_G", "Lambda_P", "ratio")
    data = {name: entry.data(0).source for name, entry in entries.items()}
    settings = {"lanczos steps": STEPS, "probes": 1, "stages": list(stages), "data": data}
    return Result(Table(columns, tuple(rows)), claims(ratios), figure, settings)


def complexities(found: Facts) -> tuple[float, float]:
    """Return Lambda_G and Lambda_P of a network's tensors."""
    curvature = np.array(column(found, "curvature"))
    squares, sizes = np.array(column(found, "gradient")) ** 2, np.array(column(found, "numel"))
    return float(squares @ curvature / squares.sum()), float(sizes @ curvature / sizes.sum())


def claims(ratios: Ratios) -> tuple[Claim, ...]:
    """Decide by the means over models and stages, for every seed."""
    transformers, cnns = (
        np.mean([ratios[name].mean(axis=1) for name in names], axis=0) for names in (TRANSFORMERS, CNNS)
    )
    statement = "Lambda_G / Lambda_P of Transformers >= 2 x that of CNNs, means over models and stages"
    return (at_least(statement, "ratio", (transformers / cnns).tolist(), 2.0, _SOURCE),)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the trainings with Adam, and all tensors of the zoo's networks at all stages."""
    entries, runs = _entries(setting), setting.seeds * len(_stages(setting))
    trained = [planned_curves(setting, entry, ("adam",)) for entry in entries.values()]
    return trained + [
        planned_spectra(setting, entry, runs, what=f"{name}, every tensor, {runs} runs", steps=STEPS, probes=1)
        for name, entry in entries.items()
    ]


def _entries(setting: Setting) -> dict[str, Entry]:
    """Take the networks of the zoo with a block of every tensor."""
    return {name: replace(zoo(setting)[name], choose=every_tensor) for name in (*TRANSFORMERS, *CNNS)}


def _stages(setting: Setting) -> tuple[str, ...]:
    return (INIT, *STAGES[setting.size])
