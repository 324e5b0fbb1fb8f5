"""How much of a Hessian lies between its tensors: norm(Hv - Bv) / norm(Hv) and the cosine of Hv and Bv, for random v.

B is the Hessian without what lies between two tensors. For small nets no paper gives a number. What can be held
against is an identity: with E[v v'] = I / n, E norm(Hv - Bv)^2 / E norm(Hv)^2 = 1 - S, where S is the share of the
squared norm of H in the tensors' own blocks, which driver D2's net has exactly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from hvp_engine import losses
from hvp_engine.api import off_diagonal
from hvp_engine.experiments import cache, exact_net, figures
from hvp_engine.experiments.heterogeneity import energy_share
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Result, Table, at_most
from hvp_engine.experiments.small_zoo import BERT_NOTE
from hvp_engine.experiments.zoo import zoo
from hvp_engine.experiments.zoo_plan import planned_curves, planned_spectra
from hvp_engine.problem.precision import Precision
from hvp_engine.results.off_diagonal import OffDiagonal

PROBES, EXACT_PROBES = 8, 512
STAGES = {"init": "init", "1.0": "trained"}  # of a training, and what the figure calls them
_ZOO = {"tiny": ("mlp",), "small": ("mlp", "vgg", "resnet", "vit", "mixer", "bert", "gpt")}
_NOTE = (
    "Calibrated once on seeds 100 to 102, which no check uses: with the specification's 64 probes chance alone puts "
    "the ratio up to 5.8 % beside the identity, with 512 less than 0.9 %; the bound of 5 % was kept."
)
_SOURCE = "an identity for Gaussian v; Z's claim of near block-diagonality, by layer"


def run(setting: Setting) -> Result:
    """Compare products of the zoo's Hessians, and of the exact net's, with those of their block diagonals."""
    names = [name for name in zoo(setting) if setting.size == "paper" or name in _ZOO[setting.size]]
    ready(setting, names)
    pairs = [identity(setting, seed) for seed in range(setting.seeds)]
    apart = [abs(measured / exact - 1.0) for measured, exact in pairs]
    claims = (
        at_most(
            f"rms norm(Hv - Bv) / rms norm(Hv) is sqrt(1 - S) within 5 % ({EXACT_PROBES} probes)",
            "relative difference", apart, 0.05, _SOURCE,
        ),
    )  # fmt: skip
    found = {
        (name, stage): [strength(setting, name, stage, seed) for seed in range(setting.seeds)]
        for name in names
        for stage in STAGES
    }
    table = tuple(
        (name, stage, *np.mean(numbers, axis=0).tolist(), float(np.std(numbers, axis=0)[0]))
        for (name, stage), numbers in found.items()
    )
    measured, exactly = np.array(pairs).T
    net = ("exact MLP", "init", float(measured.mean()), float("nan"), float(measured.std()))
    with figures.style():
        figure, axes = figures.page(1, 2, 5.5, 2.2, width_ratios=(3, 1))
        of = {name: {said: [n[0] for n in found[name, stage]] for stage, said in STAGES.items()} for name in names}
        figures.bars(axes[0, 0], of)
        axes[0, 0].set_ylabel("norm(Hv - Bv) / norm(Hv)")
        figures.scatter(axes[0, 1], exactly, measured)
        axes[0, 1].axline((float(exactly.mean()),) * 2, slope=1.0, color="0.5", linewidth=0.6)
        axes[0, 1].set(
            xlim=(0.7, 1.0), ylim=(0.7, 1.0), xlabel="sqrt(1 - S), exact", ylabel=f"measured, {EXACT_PROBES} probes"
        )
    columns = ("model", "stage", "norm(Hv - Bv) / norm(Hv)", "cosine", "sd")
    data = {name: zoo(setting)[name].data(0).source for name in names}
    settings = {"data": data, "probes": PROBES, "probes of the exact net": EXACT_PROBES, "blocks": "every tensor"}
    notes = (_NOTE, BERT_NOTE) if setting.size == "small" else (_NOTE,)
    return Result(Table(columns, (*table, net)), claims, figure, settings, notes=notes)


def strength(setting: Setting, name: str, stage: str, seed: int) -> tuple[float, float]:
    """Measure ratio and cosine of a model of the zoo at a stage of its training."""
    entry = zoo(setting)[name]
    model = cache.checkpoint(setting, name, stage, seed)
    found = compared(model, entry.loss, entry.data(seed).fixed, setting, PROBES, seed, setting.precision)
    return found.ratio.value, found.cosine.value


def identity(setting: Setting, seed: int) -> tuple[float, float]:
    """Return the ratio of root mean squares of the exact net at initialisation, measured and by its energy share."""
    setting = replace(setting, size="small")  # at the paper's, too: one that has all its matrix
    data = exact_net.pictures(setting)
    net = exact_net.network(setting, data, seed).eval()
    found = compared(net, losses.classification, [data.train], setting, EXACT_PROBES, seed, "fp64")
    whole, _, between, _ = found.sums.sum(axis=(0, 1))
    matrix = exact_net.hessian(setting, net, data)
    parts = np.split(np.arange(len(matrix)), [net.fc1.weight.numel()])
    return float(np.sqrt(between / whole)), float(np.sqrt(1.0 - energy_share(matrix, parts)))


def compared(
    model: nn.Module, loss: Any, data: Any, setting: Setting, probes: int, seed: int, precision: Precision
) -> OffDiagonal:
    """Multiply random vectors by the whole Hessian and by every tensor's block."""
    return off_diagonal(
        model, loss, "parameter", data=data, probes=probes, seed=seed, precision=precision, progress=False
    )


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the trainings with Adam; count the products with the whole matrix and with every block at both stages."""
    runs = setting.seeds * len(STAGES)
    trained = [planned_curves(setting, entry, ("adam",)) for entry in zoo(setting).values()]
    return trained + [
        planned_spectra(setting, entry, runs, blocks, f"{name}, {what}", steps=1, probes=PROBES)
        for name, entry in zoo(setting).items()
        for what, blocks in (("whole", "full"), ("tensors", "parameter"))
    ]
