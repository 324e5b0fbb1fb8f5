"""Fine-tuning with six optimizers (D15; Tomihari & Sato).

A Transformer and a CNN, both pre-trained, get a new linear head; all parameters are trained. Each optimizer has the
best rate of its grid by the training loss of seed 0. Adam and the methods that step by signs should be ahead of SGD
on the Transformer, and not on the CNN. At the paper's size these are RoBERTa-base, ResNet-18 and ViT-B/16 on every task
whose data is given, at the paper's own rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from hvp_engine.experiments import figures, studied_paper
from hvp_engine.experiments.clock import Clock
from hvp_engine.experiments.compared import COLUMNS, LABELS, Found, compared, edges
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.fine_tuned import image_entry, text_entry
from hvp_engine.experiments.fine_tuning_recipe import OPTIMIZERS
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting, find
from hvp_engine.experiments.result import Claim, Result, Table, at_least
from hvp_engine.experiments.studied import sources
from hvp_engine.experiments.zoo_plan import planned_curves

_ADAM, _SIGN, _SGD = ("adam", "rmsprop"), ("signsgd", "signum"), ("plain-sgd", "sgd")
_SOURCE = "arXiv 2502.00213; bounds measured here"


def run(setting: Setting) -> Result:
    """Search rates, train with the best ones on all seeds, compare.

    Raises:
        ConfigurationError: The paper's size is asked for without data.
    """
    entries, seconds = _entries(setting), Clock()
    ready(setting, entries)
    found: dict[str, dict[str, Found]] = {}
    for entry in entries:
        with seconds.part(entry.name):
            found[entry.name] = compared(setting, entry)
    settings = {
        "steps": {entry.name: entry.recipe.steps for entry in entries},
        "batch": {entry.name: entry.recipe.batch for entry in entries},
        "data": [dict(entry.data(0).source) for entry in entries],
        "weights": sources(setting, find("fine-tuning").loads if setting.size == "small" else ()),
    }
    notes = tuple(sentence for name, all_ in found.items() for sentence in edges(name, all_))
    if setting.option("text", "tweets") != "tweets":
        notes = (*notes, "The claim is about tweets; on other texts it is known not to show.")
    rows = tuple(one.row(name, optimizer) for name, all_ in found.items() for optimizer, one in all_.items())
    kinds = ([found[e.name] for e in entries if (e.family == "cnn") is cnn] for cnn in (False, True))
    return Result(Table(COLUMNS, rows), claims(*kinds), _figure(found), settings, seconds, notes)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan six optimizers on all seeds, for every network and task of the paper."""
    return [planned_curves(setting, entry, OPTIMIZERS) for entry in studied_paper.every(setting).values()]


def claims(texts: Sequence[Mapping[str, Found]], images: Sequence[Mapping[str, Found]]) -> tuple[Claim, ...]:
    """Decide for every Transformer, and for every CNN against the Transformers' mean.

    Args:
        texts: What every Transformer gave, by optimizer.
        images: What every CNN gave, likewise.
    """
    decided = []
    adam = [_gap(one, _ADAM) for one in texts]
    if texts:
        decided.append(at_least("Transformer: Adam or RMSprop >= 0.04 nats ahead of SGD", "gap", adam, 0.04, _SOURCE))
    signs = [_gap(one, _SIGN) for one in texts if any(name in one for name in _SIGN)]
    if signs:
        decided.append(at_least("Transformer: a sign method >= 0.03 nats ahead of SGD", "gap", signs, 0.03, _SOURCE))
    if texts and images:
        less = [sum(adam) / len(adam) - abs(_gap(one, _ADAM)) for one in images]
        statement = "CNN: Adam and SGD nearer than on the Transformer"
        decided.append(at_least(statement, "gap less gap", less, 0.0, _SOURCE))
    return tuple(decided)


def _entries(setting: Setting) -> Sequence[Entry]:
    if setting.size == "paper":
        return list(studied_paper.entries(setting).values())
    return text_entry(setting), image_entry(setting)


def _gap(found: Mapping[str, Found], others: tuple[str, ...]) -> float:
    """By how much the best of SGD's kind is behind the best of others; optimizers that were not tried are left out."""
    behind, ahead = (min(found[name].loss for name in names if name in found) for names in (_SGD, others))
    return behind - ahead


def _figure(found: Mapping[str, Mapping[str, Found]]) -> Figure:
    with figures.style():
        figure, axes = figures.page(2, len(found), 2.75 * len(found), 4.0, sharex="col")
        for (top, bottom), (name, optimizers) in zip(axes.T, found.items(), strict=True):
            losses, accuracies = {}, {}
            for optimizer, one in optimizers.items():
                losses[LABELS[optimizer]] = (range(1, len(one.smoothed[0]) + 1), one.smoothed)
                whole = max(one.seeds, key=lambda seed: len(seed.steps)).steps
                kept = [seed.accuracies for seed in one.seeds if len(seed.steps) == len(whole)]
                accuracies[LABELS[optimizer]] = (whole, kept)
            figures.curves(top, losses)
            figures.curves(bottom, accuracies, bars=True)
            top.set(title=name, yscale="log")
            bottom.set(xlabel="step")
            bottom.get_legend().remove()
        axes[0, 0].set_ylabel("training loss, nats")
        axes[1, 0].set_ylabel("test accuracy")
    return figure
