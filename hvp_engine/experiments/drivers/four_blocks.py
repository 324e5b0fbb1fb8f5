"""Four blocks of a CNN and of a Transformer (D3): their spectra are alike in the first and unlike in the second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvp_engine.experiments import cache, figures, whole
from hvp_engine.experiments.blockwise import mean_and_deviation
from hvp_engine.experiments.clock import Clock
from hvp_engine.experiments.four import four
from hvp_engine.experiments.gaps import Gap, gap
from hvp_engine.experiments.heterogeneity import spread
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.plateau import OFF_PLATEAU, plateau
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell, Claim, Result, Table, at_least
from hvp_engine.experiments.zoo import entry_of
from hvp_engine.experiments.zoo_plan import planned_curves, planned_spectra
from hvp_engine.results.spectra import Spectra

_COLUMNS = ("model", "blocks", "JS0", "sd", "spread", "sd", "loss of SGD", "loss of Adam")
_CNN, _TRANSFORMER = "vgg", "bert"
_SOURCE = "arXiv 2402.16788, figure 3"


def run(setting: Setting) -> Result:
    """Draw four blocks of both models in units of the model's tenth largest eigenvalue, and both optimizers' curves."""
    spectra, gaps, units, seconds = dict[str, list[Spectra]](), dict[str, Gap](), dict[str, float](), Clock()
    steps, probes = whole.steps_and_probes(setting)
    ready(setting, (_CNN, _TRANSFORMER))
    for name in (_CNN, _TRANSFORMER):
        with seconds.part(name):
            blocks = four(entry_of(setting, name))
            spectra[name] = [
                cache.spectra(setting, name, "init", seed, blocks=blocks, steps=steps, probes=probes, label="four")
                for seed in range(setting.seeds)
            ]
            units[name] = whole.whole(setting, name, "init", 0).unit
            gaps[name] = gap(setting, name)
    js0 = {name: [one.js0() for one in found] for name, found in spectra.items()}
    table = Table(_COLUMNS, tuple(_row(name, spectra[name], js0[name], gaps[name]) for name in spectra))
    shown, notes = _curves_of(setting, gaps[_TRANSFORMER])
    figure = _draw(spectra, units, (gaps[_CNN], shown))
    data = {name: entry_of(setting, name).data(0).source for name in spectra}
    settings = {"steps": steps, "probes": probes, "tenth largest eigenvalue": units, "data": data}
    return Result(table, gates(js0[_CNN], js0[_TRANSFORMER]), figure, settings, seconds, notes)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan spectra and trainings of both models."""
    entries = [entry_of(setting, name) for name in (_CNN, _TRANSFORMER)]
    blocks = [planned_spectra(setting, entry, setting.seeds, four(entry)) for entry in entries]
    units = [planned_spectra(setting, entry, 1, {"full": ["*"]}) for entry in entries]
    return blocks + units + [planned_curves(setting, entry) for entry in entries]


def gates(cnn: Sequence[float], transformer: Sequence[float]) -> tuple[Claim, ...]:
    """Decide whether the blocks of the Transformer are further apart, by JS0 per seed of four blocks of each model."""
    ratio = [above / below for above, below in zip(transformer, cnn, strict=True)]
    return (at_least("JS0 of BERT's four blocks >= 1.4 x that of VGG's", "ratio", ratio, 1.4, _SOURCE),)


def _curves_of(setting: Setting, transformer: Gap) -> tuple[Gap, tuple[str, ...]]:
    """Return the curves to draw beside the Transformer's spectra: GPT's where BERT is still on its plateau."""
    if setting.size != "small":
        return transformer, ()
    rest = plateau(entry_of(setting, _TRANSFORMER), 0)
    if transformer.losses[1] <= rest - OFF_PLATEAU:
        return transformer, ()
    note = f"BERT is still on the plateau of single tokens, {rest:.2f} nats, so that the curves are those of gpt."
    return gap(setting, "gpt"), (note,)


def _row(model: str, found: Sequence[Spectra], js0: Sequence[float], curves: Gap) -> tuple[Cell, ...]:
    spreads = [spread([block.largest().value for block in one.values()]) for one in found]
    return (model, ", ".join(found[0]), *mean_and_deviation(js0), *mean_and_deviation(spreads), *curves.losses)


def _draw(spectra: Mapping[str, Sequence[Spectra]], units: Mapping[str, float], gaps: Sequence[Gap]) -> Figure:
    with figures.style():
        figure, axes = figures.page(2, 2, 5.5, 4.2)
        for row, (name, found), curves in zip(axes, spectra.items(), gaps, strict=True):
            _densities(row[0], found[0], units[name])
            row[0].set_title(f"four blocks of {name}, seed 0")
            curves.draw(row[1])
    return figure


def _densities(axes: Axes, spectra: Spectra, unit: float) -> None:
    """Draw each block over its own range, which may be a small part of the largest one's."""
    for name, block in spectra.items():
        grid, density = block.density(reading="gauss")
        axes.plot(grid / unit, np.maximum(density * unit, 1e-8), linewidth=0.8, label=name)
    axes.set(yscale="log", xlabel="eigenvalue / tenth largest of the model", ylabel="density")
    axes.set_ylim(bottom=1e-6)
    axes.legend(fontsize=5, frameon=False)
