"""SGD against Adam, each at its best learning rate: on par on CNNs and MLPs, apart on Transformers (D11).

Digits, where the CNNs converge within the steps, are the evidence for CNNs at small size; photographs, where a VGG
without BatchNorm does not, are drawn as context with a single seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from hvp_engine.experiments import cache, figures
from hvp_engine.experiments.clock import Clock
from hvp_engine.experiments.gaps import COLUMNS, Gap, gap, median
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.plateau import OFF_PLATEAU, plateau
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least, at_most
from hvp_engine.experiments.zoo import zoo
from hvp_engine.experiments.zoo_plan import planned_curves

MODELS = {
    "tiny": ("mlp", "gpt"),
    "small": (
        "mlp", "vgg", "resnet", "vit", "mixer", "gpt", "bert",
        "vgg-photographs", "vit-photographs", "mixer-photographs",
    ),
    "paper": ("resnet", "vgg", "vit", "bert", "gpt", "gpt2"),
}  # fmt: skip
ON_PAR = ("mlp", "vgg", "resnet")
APART = {"vit": 0.2, "gpt": 0.1, "bert": 0.05}  # nats
_LABELS = {"sgd": "SGD", "adam": "Adam"}
_SOURCE = "arXiv 2402.16788, training curves in its appendix; bounds measured here"


def run(setting: Setting) -> Result:
    """Train every model with both optimizers, or read what other drivers have trained."""
    gaps, seconds, entries = dict[str, Gap](), Clock(), zoo(setting)
    ready(setting, MODELS[setting.size])
    entropy = plateau(entries["bert"], 0) if "bert" in MODELS[setting.size] else float("inf")
    for name in MODELS[setting.size]:
        with seconds.part(name):
            gaps[name] = gap(replace(setting, seeds=1) if name.endswith("-photographs") else setting, name)
    claims, notes = decide(gaps, entropy)
    used = {
        name: {
            "steps": entries[name].recipe.steps, "batch": entries[name].recipe.batch, "clip": entries[name].recipe.clip,
            "parameters": entries[name].parameters, "data": entries[name].data(0).source, "seeds": len(found.sgd),
        }
        for name, found in gaps.items()
    }  # fmt: skip
    notes += tuple(sentence for found in gaps.values() for sentence in found.edges)
    table = Table(COLUMNS, tuple(found.medians for found in gaps.values()))
    drawn = {"grid": draw_grid(setting, list(gaps))}
    return Result(table, claims, draw(list(gaps.values())), used, seconds, notes, drawn)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the grids and the final runs at the papers' sizes."""
    entries = zoo(setting)
    return [planned_curves(setting, entries[name]) for name in MODELS["paper"]]


def decide(gaps: Mapping[str, Gap], entropy: float) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """Decide by medians over seeds; leave BERT out, and say so, while Adam is on the plateau.

    Args:
        gaps: By model.
        entropy: Of the single tokens that BERT predicts, and at the paper's size of its answers on pairs of sentences,
            in nats.
    """
    notes: list[str] = []
    medians = {name: [median(found.values)] for name, found in gaps.items()}
    on_par = (name for name in ON_PAR if name in gaps)
    claims = [at_most(f"gap of {name} <= 0.02", "median gap", medians[name], 0.02, _SOURCE) for name in on_par]
    for name, least in APART.items():
        if name not in gaps:
            continue
        reached = median([curve.final for curve in gaps[name].adam])
        if name == "bert" and not reached <= entropy - OFF_PLATEAU:
            notes.append(
                f"The gap of bert is not decided on: Adam's loss {reached:.3f} is less than {OFF_PLATEAU} nats below "
                f"the plateau of knowing how often each token comes, {entropy:.3f}."
            )
            continue
        claims.append(at_least(f"gap of {name} >= {least}", "median gap", medians[name], least, _SOURCE))
    if "gpt" in gaps:
        value = [median(gaps["gpt"].speed_ups)]
        claims.append(at_least("Adam reaches SGD's loss of gpt 1.5 x sooner", "median speed-up", value, 1.5, _SOURCE))
    return tuple(claims), tuple(notes)


def draw(gaps: Sequence[Gap]) -> Figure:
    """Draw both optimizers' best runs, a panel per model."""
    with figures.style():
        figure, panels = figures.panels(len(gaps), 4, 1.8, 1.6)
        for axes, found in zip(panels, gaps, strict=True):
            found.draw(axes)
    return figure


def draw_grid(setting: Setting, names: Sequence[str]) -> Figure:
    """Draw the final loss of every learning rate of the search, a panel per model."""
    with figures.style():
        figure, panels = figures.panels(len(names), 4, 1.8, 1.6)
        for axes, name in zip(panels, names, strict=True):
            grids = {label: cache.grid(setting, name, key) for key, label in _LABELS.items()}
            series = {label: (list(grid), [curve.final for curve in grid.values()]) for label, grid in grids.items()}
            figures.curves(axes, series, bars=True)
            axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="final loss, nats", title=name)
    return figure
