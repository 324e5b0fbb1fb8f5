"""The whole Hessian of a small MLP over training (Z's figure of exact Hessians; Collobert 2004).

A two-layer ReLU net, eight neurons wide, without biases. Blocks are the incoming weights of a neuron. How near the
matrix is to block-diagonal is the share of its squared norm that lies in these blocks: of the whole matrix, of each
layer's own part, and what a random partition with the same sizes would hold.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from matplotlib.figure import Figure

from hvp_engine import losses
from hvp_engine.experiments import exact, figures
from hvp_engine.experiments.data.samples import Images
from hvp_engine.experiments.exact_net import WIDTH, Shares, hessian, network, neurons, pictures, shares
from hvp_engine.experiments.models.two_layer import LAYERS, TwoLayer
from hvp_engine.experiments.optimizers import cosine, make_optimizer
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Result, Table, at_least
from hvp_engine.experiments.training import fit
from hvp_engine.experiments.zoo import data_of
from hvp_engine.system.tensor_files import tensor_chunks

BATCH = 128
_STEPS = {"tiny": 300, "small": 2000, "paper": 4690}  # 10 epochs of MNIST
_RATES = {"tiny": 1e-3, "small": 1e-3, "paper": 1e-4}
_STAGES = {"init": 0.0, "1 step": 0.0, "1 %": 0.01, "50 %": 0.5, "100 %": 1.0}
_SOURCE = "Z's figure of exact Hessians, near block-diagonal throughout training; the shares are ours"
_PAPER = (("mnist", 784, 10, 60_000), ("cifar100", 3072, 100, 50_000))  # name, inputs, classes, samples
_LARGE = 10_000  # parameters from which a matrix in float64 is a burden


def run(setting: Setting) -> Result:
    """Train the net, form its Hessian at every stage, and measure what lies in its blocks."""
    data = pictures(setting)
    matrices: dict[str, exact.FloatArray] = {}  # of seed 0
    found: list[dict[str, Shares]] = []
    for seed in range(setting.seeds):
        found.append({})
        for stage, net in stages(setting, data, seed).items():
            matrix = hessian(setting, net, data)
            found[-1][stage] = shares(net, matrix)
            matrices.setdefault(stage, matrix)
    within = [min(part[name] for part in seed.values() for name in LAYERS) for seed in found]
    grown = [seed["100 %"]["whole"] / seed["init"]["whole"] for seed in found]
    against = [seed["100 %"]["whole"] / seed["100 %"]["random"] for seed in found]
    claims = (
        at_least("within a layer S >= 0.5 at every stage", "share", within, 0.5, _SOURCE),
        at_least("S of the whole at the end >= 1.5 x S at initialisation", "ratio", grown, 1.5, _SOURCE),
        at_least("S of the whole at the end >= 1.7 x a random partition's", "ratio", against, 1.7, _SOURCE),
    )
    every = {(stage, part): [seed[stage][part] for seed in found] for stage in _STAGES for part in found[0][stage]}
    table = tuple((*key, float(np.mean(values)), float(np.std(values))) for key, values in every.items())
    files = {
        f"hessian-{stage.replace(' ', '')}.safetensors": b"".join(
            tensor_chunks({"hessian": matrix}, f"{stage}, seed 0")
        )
        for stage, matrix in matrices.items()
    }
    settings: dict[str, object] = {"width": WIDTH, "steps": _STEPS[setting.size], "rate": _RATES[setting.size]}
    settings |= data_of(setting, others={"pictures": data.source})
    columns = ("stage", "share of energy in neurons, of", "mean", "sd")
    figure = drawn(matrices, found[0], network(setting, data, 0))
    return Result(Table(columns, table), claims, figure, settings, notes=_notes(setting, matrices), files=files)


def stages(setting: Setting, data: Images, seed: int) -> dict[str, TwoLayer]:
    """Train the net of a seed with Adam; return copies of it at every stage."""
    net, steps, rate = network(setting, data, seed), _STEPS[setting.size], _RATES[setting.size]
    wanted = {stage: max(round(share * steps), int(stage != "init")) for stage, share in _STAGES.items()}
    kept = {0: copy.deepcopy(net).eval()}

    def keep(step: int) -> None:
        if step in wanted.values():
            kept[step] = copy.deepcopy(net).eval()

    batches = (tuple(part.to(setting.device) for part in batch) for batch in data.train.batches(BATCH, seed))
    schedule = cosine(steps, warm_up=0.0, last=0.1)
    fit(net, losses.classification, batches, make_optimizer("adam", net, rate), schedule, steps=steps, after=keep)
    return {stage: kept[step] for stage, step in wanted.items()}


def drawn(matrices: dict[str, exact.FloatArray], found: dict[str, Shares], net: TwoLayer) -> Figure:
    """Draw the four stages after the start, with their shares: never the picture without the number."""
    with figures.style():
        figure, axes = figures.page(1, 4, 7.0, 1.8)
        for ax, stage in zip(axes[0], list(_STAGES)[1:], strict=True):
            parts = found[stage]
            ax.set_title(f"{stage}: S = {parts['whole']:.2f}\nby layer {parts[LAYERS[0]]:.2f}, {parts[LAYERS[1]]:.2f}")
            bar = figure.colorbar(exact.draw_magnitudes(ax, matrices[stage], neurons(net)), ax=ax, fraction=0.046)
        bar.set_label("log10 |H|")
    return figure


def plan(setting: Setting) -> list[PlannedPart]:
    """Count the products that give the matrices; what training such a net takes is nothing beside them."""
    parts = []
    for name, inputs, classes, samples in _PAPER:
        with torch.device("meta"):
            net = TwoLayer(inputs, WIDTH, classes, 0)
            batch = (torch.empty(samples, inputs), torch.empty(samples, dtype=torch.int64))
        what, runs = f"{name}, {setting.seeds} x {len(_STAGES)} matrices", setting.seeds * len(_STAGES)
        parts += exact.planned_matrices(
            what, net, losses.classification, "full", [batch], runs=runs, precision=setting.precision
        )
    return parts


def _notes(setting: Setting, matrices: dict[str, exact.FloatArray]) -> tuple[str, ...]:
    size = len(next(iter(matrices.values())))
    if size < _LARGE:
        return ()
    return (f"The matrices of {size:,} parameters were formed in {setting.precision}; float64 would take twice that.",)
