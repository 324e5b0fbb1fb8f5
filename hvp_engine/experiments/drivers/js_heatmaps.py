"""Jensen-Shannon heat maps (D4): blockwise spectra differ far more in Transformers than in CNNs."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from hvp_engine.experiments import figures
from hvp_engine.experiments.blockwise import COLUMNS, Blockwise, Values, measure, ratios, settings_of
from hvp_engine.experiments.clock import Clock
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least
from hvp_engine.experiments.zoo import zoo
from hvp_engine.experiments.zoo_plan import planned_spectra

CNNS = ("resnet", "vgg")
TRANSFORMERS = ("vit", "bert", "gpt")
CONTEXT = ("mlp", "mixer")
_CONTAINERS = re.compile(r"\b(layers?|blocks|features|encoder|attention|feedforward)\.")
_SOURCE = "arXiv 2608.16760, figure 3.7"


def run(setting: Setting) -> Result:
    """Compare all pairs of blocks of every model at initialisation."""
    measured, seconds = {}, Clock()
    ready(setting, models(setting))
    for name in models(setting):
        with seconds.part(name):
            measured[name] = measure(setting, name)
    js0 = {name: one.js0 for name, one in measured.items()}
    spread = {name: one.spread for name, one in measured.items()}
    table = Table(COLUMNS, tuple(one.row for one in measured.values()))
    claims = gates(js0, spread, transformers(setting), tiny=setting.size == "tiny")
    return Result(table, claims, _draw(list(measured.values())), settings_of(measured.values()), seconds)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the spectra of every model."""
    entries = zoo(setting)
    return [planned_spectra(setting, entries[name], setting.seeds) for name in models(setting)]


def gates(js0: Values, spread: Values, above: Sequence[str], *, tiny: bool = False) -> tuple[Claim, ...]:
    """Decide whether every Transformer is more heterogeneous than every CNN, by values per seed of each model."""
    by_spread, by_js0 = ratios(spread, above, CNNS), ratios(js0, above, CNNS)
    if tiny:  # with a third of the steps and one probe only the spread is known well enough
        return (_gate("spread", by_spread, 1.5),)
    return _gate("JS0", by_js0, 1.4), _gate("spread", by_spread, 2.0)


def transformers(setting: Setting) -> tuple[str, ...]:
    """Return the Transformers of a size: at the paper's, GPT-2 too."""
    return (*TRANSFORMERS, "gpt2") if setting.size == "paper" else TRANSFORMERS


def models(setting: Setting) -> tuple[str, ...]:
    """Return the models of a size in the order of the figure."""
    return (*CNNS, *transformers(setting), *CONTEXT)


def _gate(statistic: str, values: Sequence[float], factor: float) -> Claim:
    statement = f"{statistic} of every Transformer >= {factor:g} x {statistic} of every CNN"
    return at_least(statement, "ratio", values, factor, _SOURCE)


def _draw(measured: Sequence[Blockwise]) -> Figure:
    rows, columns = 2, -(-len(measured) // 2)
    with figures.style():
        figure, axes = figures.page(rows, columns, 2.3 * columns, 4.1)
        figure.set_layout_engine("compressed")  # for the maps are square
        for panel in axes.ravel()[len(measured) :]:
            panel.set_axis_off()
        for panel, one in zip(axes.ravel(), measured, strict=False):
            drawn = block_map(panel, one)
            mean, spread = (float(np.mean(values)) for values in (one.js0, one.spread))
            panel.set_title(f"{one.entry.name}\nJS0 {mean:.2f}, spread {spread:.2f}", parse_math=False)
        figure.colorbar(drawn, ax=axes, label="Jensen-Shannon divergence", shrink=0.6)
    return figure


def block_map(axes: Axes, one: Blockwise) -> AxesImage:
    """Draw the divergences between all blocks of a model, without numbers, the blocks named at the left only."""
    names = short(list(one.spectra[0]))
    drawn = figures.heat_map(axes, one.matrix, names, errors=np.full_like(one.matrix, np.inf))
    axes.set_xticks([])
    axes.tick_params(axis="y", labelsize=min(5.0, 110.0 / len(names)))
    return drawn


def short(names: Sequence[str], most: int = 18) -> list[str]:
    """Leave out of the names of blocks what all of them have, and of long ones the beginning."""
    kept = [_CONTAINERS.sub("", name) for name in names]
    return [name if len(name) <= most else f"…{name[1 - most :]}" for name in kept]
