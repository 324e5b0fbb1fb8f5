"""The Hessian's blocks between hidden neurons fade as classes grow in number (arXiv 2505.02809).

A two-layer ReLU net on Gaussian inputs with random classes, at its initialisation, as in the released
train_gaussian.py. Its hidden layer's matrix has a closed form; the engine multiplies it out; both must agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hvp_engine import losses
from hvp_engine.api import dense
from hvp_engine.blocks import rows
from hvp_engine.experiments import figures
from hvp_engine.experiments.data.samples import generator_of_data
from hvp_engine.experiments.exact import FloatArray, draw_magnitudes, planned_matrices, positions
from hvp_engine.experiments.models.two_layer import TwoLayer
from hvp_engine.experiments.neuron_blocks import between_over_within, closed_form
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Result, Table, at_least, at_most

WIDTH = 8
_SOURCE = "arXiv 2505.02809; bounds measured here"
_FIT_FROM = 30  # classes: below, the blocks' norms are not yet in their regime
Sample = tuple[TwoLayer, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class _Sizes:
    inputs: int
    samples: int
    classes: tuple[int, ...]


_SIZES = {
    "tiny": _Sizes(60, 600, (2, 10, 30, 100, 300)),
    "small": _Sizes(60, 600, (2, 10, 30, 100, 300, 1000)),
    "paper": _Sizes(500, 5000, (2, 10, 30, 100, 300, 1000)),
}


def run(setting: Setting) -> Result:
    """Form the hidden layer's matrix for every number of classes, and compare its blocks."""
    sizes = _SIZES[setting.size]
    ratios = np.zeros((setting.seeds, len(sizes.classes)))
    apart = np.zeros_like(ratios)
    shown: dict[int, FloatArray] = {}
    for seed in range(setting.seeds):
        for column, classes in enumerate(sizes.classes):
            drawn = sample(sizes, classes, seed)
            matrix, exact = multiplied_out(*drawn, setting), closed_form(*drawn)
            ratios[seed, column] = between_over_within(exact, WIDTH)
            apart[seed, column] = np.linalg.norm(matrix - exact) / np.linalg.norm(exact)
            shown.setdefault(classes, matrix)
    means = ratios.mean(axis=0)
    slopes = [slope(sizes.classes, row) for row in ratios]
    worst = float((means[1:] / means[:-1]).max())
    claims = (
        at_most("mean norm ratios fall from each number of classes to the next", "quotient", [worst], 1.0, _SOURCE),
        at_most(f"log-log slope from {_FIT_FROM} classes on <= -0.35", "slope", slopes, -0.35, _SOURCE),
        at_least(f"log-log slope from {_FIT_FROM} classes on >= -0.75", "slope", slopes, -0.75, _SOURCE),
        at_most("engine and closed form agree to 1e-4", "relative distance", apart.max(axis=1).tolist(), 1e-4, "ours"),
    )
    with figures.style():
        figure, axes = figures.page(1, 3, 5.5, 1.9)
        figures.curves(axes[0, 0], {"between / within neurons": (sizes.classes, ratios)}, bars=True)
        axes[0, 0].set(xscale="log", yscale="log", xlabel="classes", ylabel="norm, between / within")
        axes[0, 0].get_legend().remove()
        model = sample(sizes, sizes.classes[0], 0)[0]
        neurons = positions(model, ["fc1.weight"], rows(model, "fc1.weight"))
        for ax, classes in zip(axes[0, 1:], (sizes.classes[0], sizes.classes[-1]), strict=True):
            ax.set_title(f"log10 |H|, {classes} classes")
            figure.colorbar(draw_magnitudes(ax, shown[classes], neurons), ax=ax, fraction=0.046)
    table = tuple(
        (classes, float(means[c]), float(ratios[:, c].std()), float(apart[:, c].max()))
        for c, classes in enumerate(sizes.classes)
    )
    columns = ("classes", "between / within, mean", "sd", "engine against closed form")
    settings = {"inputs": sizes.inputs, "samples": sizes.samples, "width": WIDTH, "data": "Gaussian, drawn"}
    return Result(Table(columns, table), claims, figure, settings)


def sample(sizes: _Sizes, classes: int, seed: int) -> Sample:
    """Draw a net and its data, inputs (N, d) and classes (N,)."""
    generator = generator_of_data(seed)
    inputs = torch.randn(sizes.samples, sizes.inputs, generator=generator)
    targets = torch.randint(classes, (sizes.samples,), generator=generator)
    return TwoLayer(sizes.inputs, WIDTH, classes, seed), (inputs, targets)


def multiplied_out(model: TwoLayer, batch: tuple[torch.Tensor, torch.Tensor], setting: Setting) -> FloatArray:
    """Form the hidden layer's block of the Hessian by products, in float64."""
    there = (model.to(setting.device), losses.classification, ["fc1.weight"])
    return dense(*there, data=[batch], check=False)["fc1.weight"].numpy(force=True)


def slope(classes: tuple[int, ...], ratios: FloatArray) -> float:
    """Fit a line to the logarithms of classes and ratios, and return its slope."""
    used = np.array(classes) >= _FIT_FROM
    return float(np.polyfit(np.log(np.array(classes)[used]), np.log(ratios[used]), 1)[0])


def plan(setting: Setting) -> list[PlannedPart]:
    """Count the products of the paper's size: 500 inputs, 5,000 samples, up to 1,000 classes."""
    sizes = _SIZES["paper"]
    classes = max(sizes.classes)
    with torch.device("meta"):
        model = TwoLayer(sizes.inputs, WIDTH, classes, 0)
        batch = (torch.empty(sizes.samples, sizes.inputs), torch.empty(sizes.samples, dtype=torch.int64))
    runs = setting.seeds * len(sizes.classes)
    what = f"matrices, counted as if all had {classes} classes"
    return planned_matrices(what, model, losses.classification, ["fc1.weight"], [batch], runs=runs, precision="fp64")
