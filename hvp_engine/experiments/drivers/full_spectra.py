"""Full spectra over training (D1): those of CNNs and of Transformers look alike, so they explain no gap of SGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from hvp_engine.experiments import figures, whole
from hvp_engine.experiments.blockwise import Values, mean_and_deviation, measure
from hvp_engine.experiments.clock import Clock
from hvp_engine.experiments.drivers.js_heatmaps import CNNS, transformers
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell, Claim, Result, Table, at_least, at_most
from hvp_engine.experiments.small_zoo import BERT_NOTE
from hvp_engine.experiments.whole import Whole
from hvp_engine.experiments.zoo import zoo
from hvp_engine.experiments.zoo_plan import planned_curves, planned_spectra

_STAGES = ("init", "0.1", "0.5", "1.0")
_GPT2_STAGES = ("init", "0.001", "0.025", "0.05", "0.075", "0.1")
_COLUMNS = ("model", "stage", "lambda_max / lambda_10", "sd", "lambda_min / lambda_10", "sd", "tr / n")
_SOURCE = "arXiv 2402.16788, figure 1 and section 2.1"

Found = Mapping[str, Mapping[str, Sequence[Whole]]]  # by model and stage, one per seed


def run(setting: Setting) -> Result:
    """Draw the spectrum of every model at every stage in units of its tenth largest eigenvalue."""
    found: dict[str, dict[str, list[Whole]]] = {}
    seconds, models = Clock(), (*CNNS, *transformers(setting))
    ready(setting, models)
    for name in models:
        with seconds.part(name):
            found[name] = {
                stage: [whole.whole(setting, name, stage, seed) for seed in range(setting.seeds)]
                for stage in _stages(setting, name)
            }
    furthest = [whole.furthest([one["init"][seed] for one in found.values()]) for seed in range(setting.seeds)]
    largest = {name: [one.ends[1] for one in stages["init"]] for name, stages in found.items()}
    spread = {name: measure(setting, name).spread for name in transformers(setting)}
    rows = tuple(_row(name, stage, ones) for name, stages in found.items() for stage, ones in stages.items())
    steps, probes = whole.steps_and_probes(setting)
    settings = {
        "steps": steps, "probes": probes, "sigma": whole.SIGMA, "grid": whole.SPACING,
        "largest divergence between models at initialisation": furthest,
        "stages": {name: list(stages) for name, stages in found.items()},
        "data": {name: zoo(setting)[name].data(0).source for name in found},
    }  # fmt: skip
    notes = () if setting.size == "paper" else (BERT_NOTE,)
    return Result(Table(_COLUMNS, rows), gates(furthest, largest, spread), _draw(found), settings, seconds, notes)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the trainings with Adam and the spectra at all stages."""
    entries = {name: zoo(setting)[name] for name in (*CNNS, *transformers(setting))}
    trained = [planned_curves(setting, entry, ("adam",)) for entry in entries.values()]
    return trained + [
        planned_spectra(setting, entry, setting.seeds * len(_stages(setting, name)), {"full": ["*"]})
        for name, entry in entries.items()
    ]


def gates(furthest: Sequence[float], largest: Values, spread: Values) -> tuple[Claim, ...]:
    """Decide whether full spectra look alike at initialisation.

    Args:
        furthest: Largest divergence between two models, by seed.
        largest: lambda_max / lambda_10 of every model, by seed.
        spread: Spread over the blocks of every Transformer, by seed.
    """
    ends = np.array([largest[name] for name in largest])
    inside = np.min([spread[name] for name in spread], axis=0)
    between = "sd over models of log10(lambda_max / lambda_10) <= a third of the spread inside every Transformer"
    return (
        at_most("JS of any two full spectra <= 0.10", "JS", furthest, 0.10, _SOURCE),
        at_least("lambda_max / lambda_10 >= 1.5 for all", "ratio", list(ends.min(axis=0)), 1.5, _SOURCE),
        at_most("lambda_max / lambda_10 <= 15 for all", "ratio", list(ends.max(axis=0)), 15.0, _SOURCE),
        at_most(between, "share", list(np.log10(ends).std(axis=0) / inside), 1.0 / 3.0, _SOURCE),
    )


def _stages(setting: Setting, model: str) -> tuple[str, ...]:
    if setting.size == "tiny":
        return (_STAGES[0], _STAGES[-1])
    return _GPT2_STAGES if model == "gpt2" else _STAGES


def _row(model: str, stage: str, ones: Sequence[Whole]) -> tuple[Cell, ...]:
    low, high = zip(*(one.ends for one in ones), strict=True)
    mean = float(np.mean([one.spectrum.moment(1).value for one in ones]))
    return model, stage, *mean_and_deviation(high), *mean_and_deviation(low), mean


def _draw(found: Found) -> Figure:
    columns = max(len(stages) for stages in found.values())
    grid = whole.common_grid([one for stages in found.values() for ones in stages.values() for one in ones])
    grid = grid[:: max(1, grid.size // 4000)]
    with figures.style():
        figure, axes = figures.page(len(found), columns, 1.5 * columns + 0.5, 1.1 * len(found) + 0.4, sharex=True)
        for row, (name, stages) in zip(axes, found.items(), strict=True):
            for panel in row[len(stages) :]:
                panel.set_axis_off()
            for panel, (stage, ones) in zip(row, stages.items(), strict=False):
                for seed, one in enumerate(ones):
                    density = np.maximum(one.density(grid), 1e-7)
                    panel.plot(grid, density, linewidth=0.6, label=f"seed {seed}")
                panel.set(yscale="log", ylim=(1e-6, 30.0), title=f"{name}, {_said(stage)}")
                figures.symmetric_logs(panel, float(grid[0]), float(grid[-1]))  # single outliers are far out
        axes[0, 0].legend(fontsize=5, frameon=False, loc="upper left")
        figure.supxlabel("eigenvalue / tenth largest eigenvalue", fontsize=8)
        figure.supylabel("spectral density", fontsize=8)
    return figure


def _said(stage: str) -> str:
    return stage if stage == "init" else f"{100.0 * float(stage):g} %"
