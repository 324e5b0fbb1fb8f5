"""F5: a classifier's Hessian has about one outlier per class, and BatchNorm suppresses them (Ghorbani et al. 2019).

The zoo's VGG on digits, without BatchNorm and with one behind every convolution, trained alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hvp_engine.api import eigsh
from hvp_engine.experiments import figures
from hvp_engine.experiments.cache import checkpoint, folder
from hvp_engine.experiments.entry import Entry, seeded
from hvp_engine.experiments.models.vision import VGG
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell, Claim, Result, Table, at_least, at_most
from hvp_engine.experiments.small_zoo import small_zoo

PLAIN, NORMALISED = "without BatchNorm", "with BatchNorm"
_RATE = 3e-3
_TOLERANCE = 1e-4  # the smallest of the values are far below the largest one
_SOURCE = "Ghorbani, Krishnan & Xiao, arXiv 1901.10159; bounds are guesses"
Values = Mapping[str, NDArray[np.float64]]  # by network (seeds, 2 C), falling


def run(setting: Setting) -> Result:
    """Train both networks per seed, and find twice as many of the largest eigenvalues as there are classes."""
    networks = entries(setting)
    classes = _classes(networks[PLAIN])
    found = {
        name: np.array([largest(setting, entry, 2 * classes, seed) for seed in range(setting.seeds)])
        for name, entry in networks.items()
    }
    with figures.style():
        figure, axes = figures.page(1, 1, 3.2, 2.4)
        ranks = np.arange(1, 2 * classes + 1)
        lines = {name: (ranks, np.where(values > 0.0, values, np.nan)) for name, values in found.items()}
        figures.curves(axes[0, 0], lines, bars=True)
        axes[0, 0].axvline(classes + 0.5, color="0.5", linewidth=0.6, linestyle="--")
        axes[0, 0].set(yscale="log", xlabel="rank (line: number of classes)", ylabel="eigenvalue")
        axes[0, 0].set_xticks(range(0, 2 * classes + 1, 5))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            name,
            *(float(np.mean(values[:, rank])) for rank in (0, classes - 1, -1)),
            float(np.mean(first_over_last(values, classes))),
            float(np.mean(values[:, classes - 1] / values[:, -1])),
            float(np.median(1 + np.argmax(values[:, :-1] / values[:, 1:], axis=1))),
        )
        for name, values in found.items()
    )
    columns = ("network", "lambda_1", "lambda_C", "lambda_2C", "lambda_1/C", "lambda_C/2C", "rank of the largest gap")
    entry = networks[PLAIN]
    settings = {"steps": entry.recipe.steps, "rate": _RATE, "classes": classes, "data": entry.data(0).source}
    return Result(Table(columns, rows), claims(found, classes), figure, settings)


def entries(setting: Setting) -> dict[str, Entry]:
    """Make both networks, trained at one rate; the paper's size is the small one."""
    base = small_zoo(replace(setting, size="small") if setting.size == "paper" else setting)["vgg"]
    make = partial(VGG, ((16, 16), (32, 32), (64, 64)), 128, 10, channels=1, side=8)
    builds = {PLAIN: make, NORMALISED: partial(make, batch_norm=True)}
    return {
        name: replace(base, name=f"vgg-{name.replace(' ', '-')}", build=seeded(build), rates={"adam": (_RATE,)})
        for name, build in builds.items()
    }


def largest(setting: Setting, entry: Entry, k: int, seed: int) -> NDArray[np.float64]:
    """Return the k largest eigenvalues of the whole Hessian after training, falling."""
    found = eigsh(
        checkpoint(setting, entry, "1.0", seed), entry.loss, data=entry.data(seed).fixed, k=k, which="LA",
        vectors=False, tolerance=_TOLERANCE, seed=seed, precision=setting.precision,
        out=folder(setting, "eigenvalues") / f"{entry.name}-{seed}",
    )  # fmt: skip
    return np.asarray(found["full"].values[::-1])


def first_over_last(values: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """Return lambda_1 / lambda_C of every seed."""
    return np.asarray(values[:, 0] / values[:, classes - 1])


def claims(found: Values, classes: int) -> tuple[Claim, ...]:
    """Decide for every seed."""
    plain, normalised = (first_over_last(found[name], classes) for name in (PLAIN, NORMALISED))
    below = found[PLAIN][:, classes - 1] / found[PLAIN][:, -1]
    return (
        at_least("lambda_1/lambda_C >= 3 x lambda_C/lambda_2C", "ratio", (plain / below).tolist(), 3.0, _SOURCE),
        at_most("lambda_1/lambda_C is smaller with BatchNorm", "ratio", (normalised / plain).tolist(), 1.0, _SOURCE),
    )


def _classes(entry: Entry) -> int:
    return list(entry.meta().parameters())[-1].numel()
