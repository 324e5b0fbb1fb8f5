"""D13: gradients are spread more unevenly over the tensors of Transformers than of CNNs (arXiv 2502.00213).

Gini coefficients over tensors of gradient norm, gradient norm per root of parameters, and largest eigenvalue. Which
tensors are counted decides: on the paper's lists and on weight matrices Transformers are more uneven, over all tensors,
biases and norms among them, they are not; the table has all three.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from hvp_engine.api import gradients
from hvp_engine.experiments import figures
from hvp_engine.experiments.entry import Entry, weights
from hvp_engine.experiments.heterogeneity import gini, gradient_norms, spread
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least
from hvp_engine.experiments.roles import is_key_bias
from hvp_engine.experiments.studied import BATCHES, RANDOM, chosen, gradient_batches, sources, studied
from hvp_engine.experiments.studied_paper import planned
from hvp_engine.experiments.tensors import column, facts, network
from hvp_engine.experiments.zoo import zoo

_OF_ZOO = ("vit", "gpt", "resnet", "vgg")
_SOURCE = "arXiv 2502.00213; bounds measured here"
LISTED, PER_ROOT, CURVATURE = "Gini ||g||", "Gini ||g|| / sqrt(P)", "Gini lambda_max"
WEIGHTS, EVERY = "spread ||g||, weights", "Gini ||g||, all tensors"
Measures = Mapping[str, Mapping[str, list[float]]]  # by model and measure, a number per seed


def run(setting: Setting) -> Result:
    """Measure all networks, pre-trained ones where they are installed and random ones always."""
    listed, notes = chosen(setting)
    random = (
        {}
        if setting.size == "paper"
        else {"roberta": studied(setting)["roberta"], **{name: zoo(setting)[name] for name in _OF_ZOO}}
    )
    entries = {**random, **listed}
    ready(setting, entries.values())
    families = {name: entry.family for name, entry in entries.items()}
    found = {name: measures(setting, entry, name in listed) for name, entry in entries.items()}
    names = (LISTED, PER_ROOT, CURVATURE, WEIGHTS, EVERY)
    with figures.style():
        figure, axes = figures.page(1, 2, 7.0, 2.4)
        for ax, shown, among in zip(axes[0], (names[:3], names[3:]), (listed, random or listed), strict=True):
            figures.bars(ax, {of: {name: found[name][of] for name in among} for of in shown})
            ax.tick_params(axis="x", labelsize=6)
        axes[0, 0].set_ylabel("Gini coefficient over the listed tensors")
        axes[0, 1].set_ylabel("Gini coefficient, or spread in decades")
    table = tuple(
        (name, families[name], *(float(np.mean(rows[of])) if of in rows else "-" for of in names))
        for name, rows in found.items()
    )
    settings = {
        "batches of gradients": 1 if setting.size == "paper" else BATCHES,
        "lists": {name: len(entry.blocks) for name, entry in listed.items()},
        "weights": sources(setting, listed),
        "data": {name: entry.data(0).source for name, entry in entries.items()},
    }
    return Result(Table(("model", "family", *names), table), claims(found, families), figure, settings, notes=notes)


def measures(setting: Setting, entry: Entry, is_listed: bool) -> dict[str, list[float]]:
    """Compute the measures of a network for every seed; those of the paper's lists where it is asked for."""
    rows: dict[str, list[float]] = {WEIGHTS: [], EVERY: []}
    for seed in range(setting.seeds):
        model, batches = network(setting, entry, seed), gradient_batches(setting, entry, seed)
        norms = {
            name: norm
            for name, norm in gradient_norms(model, entry.loss, batches).items()
            if norm > 0.0 and not is_key_bias(name)
        }
        matrices = [name for names in weights(model).values() for name in names if name in norms]
        rows[WEIGHTS].append(spread([norms[name] for name in matrices]))
        rows[EVERY].append(gini(list(norms.values())))
        if is_listed:
            listed = gradients(model, entry.loss, entry.blocks, data=batches).values()
            lengths, sizes = np.array([one.norm for one in listed]), np.array([one.numel for one in listed])
            curvature = column(facts(setting, entry, seed), "curvature")
            of = {LISTED: lengths, PER_ROOT: lengths / np.sqrt(sizes), CURVATURE: curvature}
            for name, values in of.items():
                rows.setdefault(name, []).append(gini(values))
    return rows


def claims(found: Measures, families: Mapping[str, str]) -> tuple[Claim, ...]:
    """Decide: pre-trained Transformers against CNNs on the paper's lists, random ones on weight matrices."""

    def of(family: str, measure: str, among: Iterable[str]) -> NDArray[np.float64]:
        return np.array([found[name][measure] for name in among if families[name] == family])

    random = [name for name in found if name in (*RANDOM, *_OF_ZOO)]
    pretrained = [name for name in found if name not in random]
    decided = []
    if random:
        ratio = of("transformer", WEIGHTS, random).mean(axis=0) / of("cnn", WEIGHTS, random).mean(axis=0)
        statement = "Random networks: mean spread of log10 ||g|| of Transformers >= 2 x that of CNNs"
        decided.append(at_least(statement, "ratio", ratio.tolist(), 2.0, _SOURCE))
    if {families[name] for name in pretrained} >= {"transformer", "cnn"}:
        for measure, bound in ((LISTED, 1.15), (PER_ROOT, 1.25)):
            ratio = of("transformer", measure, pretrained).min(axis=0) / of("cnn", measure, pretrained).max(axis=0)
            statement = f"{measure} of each pre-trained Transformer >= {bound} x that of the CNN"
            decided.append(at_least(statement, "ratio", ratio.tolist(), bound, _SOURCE))
    return tuple(decided)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan the paper's networks: a gradient costs less than one product."""
    return planned(setting, steps=1, probes=1)
