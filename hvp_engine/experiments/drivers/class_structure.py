"""F6: the curvature of a class's row of the head follows how frequent the class is (Papyan 2020; Kunstner et al. 2024).

With cross-entropy the diagonal block of row k of a linear head is E[p_k (1 - p_k) h h'], h the features. Where the head
knows nothing but the classes' frequencies (no weights, their logarithms as bias) that is pi_k (1 - pi_k) E[h h'], which
the engine must find exactly. In training the order comes as frequencies are learned, and goes as the samples are: on
digits and seeds 100 to 102, which calibrated the claim, Spearman's correlation was 0.0 to 0.2 at first, 0.95 to 0.99
after an epoch, 0.4 after four and 0.1 after eight. Gaussian inputs of 100 classes, learned slowly (0.65 to 0.74), are
shown beside them. Both are drawn so that frequencies fall as 1/k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from hvp_engine.experiments import class_rows, figures
from hvp_engine.experiments.class_rows import DIGITS, STAGES, TRAINED, Sample
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least, at_most

_COLUMNS = ("data", "head", "Spearman", "distance from the formula where it holds")
_SOURCE = "Kunstner et al., arXiv 2402.19449; Papyan, arXiv 2008.11865; bounds are guesses"


def run(setting: Setting) -> Result:
    """Find the largest eigenvalue of every row of the head, at three points, for both data sets."""
    found: dict[str, list[Sample]] = {}
    for seed in range(setting.seeds):
        for name, samples in class_rows.data(setting, seed).items():
            found.setdefault(name, []).append(class_rows.measure(samples, seed, setting))
    rows = [
        (name, stage, float(np.mean([s.rank(stage) for s in seeds])), float(np.mean([s.apart for s in seeds])))
        for name, seeds in found.items()
        for stage in STAGES
    ]
    settings = {
        "samples": class_rows.DRAWN[setting.size], "hidden": class_rows.HIDDEN, "rate": class_rows.RATE, "epochs": 1,
        "optimizer": "adam", "data": class_rows.source().described(),
    }  # fmt: skip
    return Result(Table(_COLUMNS, tuple(rows)), claims(found), _draw(found), settings)


def claims(found: Mapping[str, Sequence[Sample]]) -> tuple[Claim, ...]:
    """Decide the order by digits, the formula by the worse data set of every seed."""
    ranks = [sample.rank(TRAINED) for sample in found[DIGITS]]
    apart = [max(sample.apart for sample in samples) for samples in zip(*found.values(), strict=True)]
    return (
        at_least("digits: Spearman(curvature, frequency) >= 0.9 after an epoch", "correlation", ranks, 0.9, _SOURCE),
        at_most("p_k (1 - p_k) E[h h'] is found to 1e-3 where p is the frequency", "distance", apart, 1e-3, "ours"),
    )


def _draw(found: Mapping[str, Sequence[Sample]]) -> Figure:
    with figures.style():
        figure, axes = figures.page(1, len(found), 5.5, 2.5)
        for ax, (name, (first, *_)) in zip(axes[0], found.items(), strict=True):
            x = np.tile(first.frequencies, len(STAGES))
            y = np.concatenate([first.curvature[stage] for stage in STAGES])
            figures.scatter(ax, x, y, groups=np.repeat(STAGES, len(first.frequencies)).tolist())
            ax.set(xscale="log", yscale="log", xlabel="frequency of the class", title=f"{name}, seed 0")
        axes[0, 0].set_ylabel("largest eigenvalue of its row")
    return figure
