"""Adam-mini's partition against exact blocks of a GPT's Hessian (zyushun/Adam-mini; the thesis's figure 3.4).

Adam-mini has one learning rate per head of queries and keys and per row of every other matrix, because that is how the
Hessian is said to be divided. Held against it: the share of a tensor's block that lies in these groups, over the share
that random groups of the same sizes hold.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from hvp_engine.experiments import exact, figures
from hvp_engine.experiments.partition import (
    CONTEXT,
    PROJECTIONS,
    RATE,
    SIZES,
    Ratios,
    blocks,
    by_head,
    corpus_of,
    divided,
    groups_of,
    network,
    train,
)
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell, Result, Table, at_least
from hvp_engine.experiments.zoo import data_of

_COLUMNS = ("stage", "tensor", "groups", "energy share", "random groups", "sd of share")
_SOURCE = "thesis of Z's first author (arXiv 2608.16760), figure 3.4; bounds measured here"


def run(setting: Setting) -> Result:
    """Train a small GPT, form the block of every weight matrix, and divide it."""
    corpus = corpus_of(setting)
    found: list[dict[str, Ratios]] = []
    for seed in range(setting.seeds):
        model = network(setting, corpus, seed)
        before = blocks(setting, model, corpus)
        train(setting, model, corpus, seed)
        after = blocks(setting, model, corpus)
        found.append({"init": divided(model, before), "trained": divided(model, after)})
        if seed == 0:
            figure = drawn(model, after, found[0]["trained"])
    smallest = {
        kind: [
            min(a / b for name, (a, b) in seed["trained"].items() if by_head(name) == (kind == "heads"))
            for seed in found
        ]
        for kind in ("heads", "rows")
    }
    claims = (
        at_least("trained q and k: heads hold >= 1.5 x random groups", "ratio", smallest["heads"], 1.5, _SOURCE),
        at_least("trained v, wo, fc, proj: rows hold >= 2 x random groups", "ratio", smallest["rows"], 2.0, _SOURCE),
    )
    rows = [row(stage, name, [seed[stage][name] for seed in found]) for stage in found[0] for name in found[0][stage]]
    settings: dict[str, object] = {**SIZES[setting.size]._asdict(), "rate": RATE, "length": CONTEXT}
    settings |= data_of(setting, others={"text": corpus.source})
    return Result(Table(_COLUMNS, tuple(rows)), claims, figure, settings)


def row(stage: str, name: str, pairs: list[tuple[float, float]]) -> tuple[Cell, ...]:
    """Return what the table says of a tensor at a stage: means over seeds."""
    kind = "heads" if by_head(name) else "rows"
    return stage, name, kind, *np.mean(pairs, axis=0).tolist(), float(np.std(pairs, axis=0)[0])


def drawn(model: nn.Module, matrices: Mapping[str, exact.FloatArray], ratios: Ratios) -> Figure:
    """Draw the blocks of all layers, a row each, with the groups' borders."""
    with figures.style():
        layers = len(matrices) // len(PROJECTIONS)
        figure, axes = figures.page(layers, len(PROJECTIONS), 7.0, 0.3 + 1.2 * layers)
        for ax, (name, matrix) in zip(axes.flat, matrices.items(), strict=True):
            share, random = ratios[name]
            ax.set_title(f"{name.removesuffix('.weight')}\n{share:.2f} (random {random:.2f})", fontsize=6)
            exact.draw_magnitudes(ax, matrix, groups_of(model, name))
    return figure
