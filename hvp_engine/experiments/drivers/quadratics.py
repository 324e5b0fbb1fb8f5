"""Quadratics with blocks (D9, D19): Adam is fast where eigenvalues differ between blocks, not where they are mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hvp_engine.experiments import cache, figures, quadratic_panels
from hvp_engine.experiments.clock import Clock
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.quadratic_problem import (
    CONDITION,
    HETEROGENEOUS,
    HOMOGENEOUS,
    Counts,
    FloatArray,
    Quadratics,
)
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least, at_most
from hvp_engine.experiments.zoo import data_of, entry_of
from hvp_engine.experiments.zoo_plan import planned_spectra

_CASE_1, _CASE_2 = "case 1: blocks of a GPT", "case 2: blocks of a ResNet"
_CASE_3, _CASE_4 = "case 3: heterogeneous", "case 4: homogeneous"
_BLOCKS, _EIGENVALUES = 4, 25  # of each sampled case
_COLUMNS = ("case", "GD", "GD quartiles", "Adam", "Adam quartiles", "Adam wins", "kappa of D^-1 H")
_NOTE = (
    "Cases 1 and 2 are reported, not gated: one affine map to kappa = 5,000 leaves most eigenvalues of all blocks near "
    "1 where a few of one block are far larger."
)
_SOURCE = "arXiv 2402.16788, figure 8"


def run(setting: Setting) -> Result:
    """Count iterations of gradient descent and Adam, each with its best constant step, on four kinds of quadratics."""
    seeds, seconds, models = 200 if setting.size == "tiny" else 1000, Clock(), _models(setting)
    ready(setting, models.values())
    with seconds.part("spectra"):
        spectra = {case: sampled(setting, model) for case, model in models.items()}
    spectra |= {_CASE_3: np.array(HETEROGENEOUS), _CASE_4: np.array(HOMOGENEOUS)}
    with seconds.part("quadratics"):
        problems = {case: Quadratics.drawn(values, seeds) for case, values in spectra.items()}
        counts = {case: (one.gradient_descent.iterations(), one.adam.iterations()) for case, one in problems.items()}
        rows = tuple(_row(case, problems[case], *counts[case]) for case in counts)
        with figures.style():
            figure, axes = figures.page(2, 4, 7.5, 4.0)
            for panel, (case, drawn) in zip(axes[0], problems.items(), strict=True):
                quadratic_panels.convergence(panel, case, drawn)
            for panel, case in zip(axes[1], models, strict=False):
                quadratic_panels.histogram(panel, case, spectra[case])
            quadratic_panels.stalling(axes[1, 2], _CASE_3.partition(":")[0], problems[_CASE_3])
            quadratic_panels.ratios(axes[1, 3], counts)
    settings = {
        "problems": seeds, "kappa": CONDITION, "reduction of the gradient": 1e-6,
        "blocks of cases 1 and 2": [_BLOCKS, _EIGENVALUES], "spectra of cases 1 and 2": models,
        **data_of(setting, models.values()),
    }  # fmt: skip
    return Result(Table(_COLUMNS, rows), _claims(counts), figure, settings, seconds, (_NOTE,))


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the spectra that eigenvalues are drawn from; what follows takes seconds."""
    return [planned_spectra(setting, entry_of(setting, model), runs=1) for model in _models(setting).values()]


def _models(setting: Setting) -> dict[str, str]:
    return {_CASE_1: "gpt2" if setting.size == "paper" else "gpt", _CASE_2: "resnet"}


def sampled(setting: Setting, model: str) -> FloatArray:
    """Draw eigenvalues from blocks of a model by quadrature weight, (blocks, eigenvalues), between 1 and kappa.

    Signs are dropped, and one affine map serves all blocks, so that what differs between them stays.
    """
    spectra = list(cache.spectra(setting, model, "init", 0).values())
    places = np.linspace(0, len(spectra) - 1, _BLOCKS).round().astype(int)
    rules = [spectra[place].reading.gauss for place in places]
    generator = np.random.default_rng(0)
    drawn = np.abs([generator.choice(rule.nodes, _EIGENVALUES, p=rule.weights / rule.weights.sum()) for rule in rules])
    return np.asarray(1.0 + (CONDITION - 1.0) * (drawn - drawn.min()) / np.ptp(drawn))


def _row(case: str, drawn: Quadratics, descent: Counts, adam: Counts) -> tuple[str | float, ...]:
    quartiles = ["{:,.0f} to {:,.0f}".format(*np.percentile(found, (25, 75))) for found in (descent, adam)]
    medians = [f"{np.median(found):,.0f}" for found in (descent, adam)]
    wins, condition = float((adam < descent).mean()), float(np.median(drawn.adam.condition))
    return (case, medians[0], quartiles[0], medians[1], quartiles[1], wins, condition)


def _claims(counts: Mapping[str, Sequence[Counts]]) -> tuple[Claim, ...]:
    (descent3, adam3), (descent4, adam4) = counts[_CASE_3], counts[_CASE_4]
    gap = abs(float(np.median(descent3) / np.median(descent4)) - 1.0)
    gain = float(np.median(descent3) / np.median(adam3))
    return (
        at_least("Adam is 50 x faster than GD on case 3", "GD's median / Adam's", [gain], 50.0, _SOURCE),
        at_least("Adam wins in 99 % of case 3", "share", [float((adam3 < descent3).mean())], 0.99, _SOURCE),
        at_most("Adam wins in at most half of case 4", "share", [float((adam4 < descent4).mean())], 0.5, _SOURCE),
        at_most("GD is equally slow on cases 3 and 4", "relative difference of medians", [gap], 0.02, _SOURCE),
    )
