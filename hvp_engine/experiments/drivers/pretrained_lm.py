"""A pre-trained language model (D7): its blocks are more alike than at random, and SGD falls less behind Adam."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from hvp_engine.experiments import figures
from hvp_engine.experiments.blockwise import COLUMNS, Blockwise, settings_of
from hvp_engine.experiments.clock import Clock
from hvp_engine.experiments.drivers.js_heatmaps import block_map
from hvp_engine.experiments.gaps import Gap, gap
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.pretraining import pair
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_most
from hvp_engine.experiments.zoo_plan import planned_curves, planned_spectra

_SOURCE = "arXiv 2402.16788, figure 6"


def run(setting: Setting) -> Result:
    """Compare blocks, and SGD with Adam, at both starts of the same network on the same text."""
    both, seconds = pair(setting), Clock()
    with seconds.part("pre-training and spectra"):
        measured = both.measure(setting)
    with seconds.part("curves"):
        gaps = tuple(gap(setting, one.entry) for one in measured)
    columns = (*COLUMNS, "loss of SGD", "loss of Adam", "gap", "gap sd")
    rows = tuple((*one.row, *curves.losses, *curves.summary) for one, curves in zip(measured, gaps, strict=True))
    js0, spread = ([one.js0 for one in measured], [one.spread for one in measured])
    claims = gates(js0, spread, [one.values for one in gaps])
    settings = {**settings_of(measured), "pre-training": both.origin}
    notes = tuple(edge for one in gaps for edge in one.edges)
    return Result(Table(columns, rows), claims, _draw(measured, gaps), settings, seconds, notes)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the spectra and the fine-tuning at both starts, which cost the same: counted once.

    The released weights took no training of ours.
    """
    both = pair(setting)
    spectra = planned_spectra(setting, both.random, setting.seeds, both.blocks)
    return [part.times(2, f"both starts: {part.what}") for part in (spectra, planned_curves(setting, both.random))]


def gates(
    js0: Sequence[Sequence[float]], spread: Sequence[Sequence[float]], gaps: Sequence[Sequence[float]]
) -> tuple[Claim, ...]:
    """Decide by means over seeds, each argument with the values of the random start first.

    A gap of the random start that is not positive cannot shrink: its share is infinite.
    """
    random, pretrained = (float(np.mean(values)) for values in gaps)
    share = pretrained / random if random > 0.0 else float("inf")
    return (
        at_most("JS0 of the pre-trained model <= 0.8 x that of the random one", "ratio", [_share(js0)], 0.8, _SOURCE),
        at_most("its spread <= 0.75 x", "ratio", [_share(spread)], 0.75, _SOURCE),
        at_most("its gap between SGD and Adam <= 0.65 x", "ratio", [share], 0.65, _SOURCE),
    )


def _share(values: Sequence[Sequence[float]]) -> float:
    random, pretrained = values
    return float(np.mean(pretrained) / np.mean(random))


def _draw(measured: Sequence[Blockwise], gaps: Sequence[Gap]) -> Figure:
    with figures.style():
        figure, axes = figures.page(2, 2, 5.5, 5.0)
        for panel, one, start in zip(axes[0], measured, ("random", "pre-trained"), strict=True):
            drawn = block_map(panel, one)
            panel.set_title(f"{start}, JS0 {np.mean(one.js0):.2f}, spread {np.mean(one.spread):.2f}")
        figure.colorbar(drawn, ax=axes[0], label="Jensen-Shannon divergence", shrink=0.8)
        for panel, curves in zip(axes[1], gaps, strict=True):
            curves.draw(panel)
    return figure
