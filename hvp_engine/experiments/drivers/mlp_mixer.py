"""MLP-mixer (D6): its blocks differ although it has no attention; whether SGD falls behind, the data decide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from hvp_engine.experiments import figures
from hvp_engine.experiments.blockwise import COLUMNS, Blockwise, Values, measure, ratios, settings_of
from hvp_engine.experiments.clock import Clock
from hvp_engine.experiments.drivers.js_heatmaps import CNNS, block_map
from hvp_engine.experiments.gaps import Gap, gap
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least
from hvp_engine.experiments.zoo import data_of, entry_of
from hvp_engine.experiments.zoo_plan import planned_curves, planned_spectra

_MIXER = "mixer"
_SOURCE = "arXiv 2402.16788, figure 5 b and c"


def run(setting: Setting) -> Result:
    """Compare the blocks of the mixer with those of the CNNs, and SGD with Adam on it."""
    seconds = Clock()
    ready(setting, dict.fromkeys((_MIXER, *CNNS, *_trained(setting))))
    with seconds.part("spectra"):
        measured = {name: measure(setting, name) for name in (_MIXER, *CNNS)}
    with seconds.part("curves"):
        gaps = [gap(setting, name) for name in _trained(setting)]
    curves = {one.name: one for one in gaps}
    rows = [(*one.row, *_columns(curves.get(name))) for name, one in measured.items()]
    rows += [(one.name, *[""] * (len(COLUMNS) - 1), *_columns(one)) for one in gaps if one.name not in measured]
    table = Table((*COLUMNS, "loss of SGD", "loss of Adam", "gap"), tuple(rows))
    js0 = {name: one.js0 for name, one in measured.items()}
    spread = {name: one.spread for name, one in measured.items()}
    notes = ("The gap is reported, not decided by.", *(edge for one in gaps for edge in one.edges))
    settings = {**settings_of(measured.values()), **data_of(setting, _trained(setting))}
    return Result(table, gates(js0, spread), _draw(measured[_MIXER], gaps), settings, seconds, notes)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the spectra of the mixer and the CNNs, and the trainings of the mixer."""
    mixer, *cnns = (entry_of(setting, name) for name in (_MIXER, *CNNS))
    spectra = [planned_spectra(setting, entry, setting.seeds) for entry in (mixer, *cnns)]
    return [*spectra, planned_curves(setting, mixer)]


def gates(js0: Values, spread: Values) -> tuple[Claim, ...]:
    """Decide whether the mixer is more heterogeneous than every CNN, by values per seed of each model."""
    by_js0, by_spread = (ratios(values, (_MIXER,), CNNS) for values in (js0, spread))
    return (
        at_least("JS0 of the mixer >= 1.3 x JS0 of every CNN", "ratio", by_js0, 1.3, _SOURCE),
        at_least("spread of the mixer >= 1.8 x spread of every CNN", "ratio", by_spread, 1.8, _SOURCE),
    )


def _trained(setting: Setting) -> tuple[str, ...]:
    """Return the mixers to train: at small size on photographs too, where the claim shows, unlike on digits."""
    return (_MIXER, f"{_MIXER}-photographs") if setting.size == "small" else (_MIXER,)


def _columns(found: Gap | None) -> tuple[float | str, ...]:
    return ("", "", "") if found is None else (*found.losses, found.mean)


def _draw(mixer: Blockwise, gaps: Sequence[Gap]) -> Figure:
    with figures.style():
        figure, axes = figures.page(1, 1 + len(gaps), 2.4 * (1 + len(gaps)), 2.4)
        drawn = block_map(axes[0, 0], mixer)
        axes[0, 0].set_title(f"{_MIXER}, JS0 {np.mean(mixer.js0):.2f}")
        figure.colorbar(drawn, ax=axes[0, 0], label="Jensen-Shannon divergence", shrink=0.8)
        for panel, one in zip(axes[0, 1:], gaps, strict=True):
            one.draw(panel)
    return figure
