"""Four blocks of a CNN and of a Transformer (D3): their spectra are alike in the first and unlike in the second."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import cache, figures, whole
from hvp_engine.experiments.blockwise import mean_and_deviation
from hvp_engine.experiments.entry import Blocks, Entry
from hvp_engine.experiments.gaps import Gap, gap
from hvp_engine.experiments.heterogeneity import spread
from hvp_engine.experiments.paper_plan import PlannedPart
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least
from hvp_engine.experiments.zoo import zoo
from hvp_engine.experiments.zoo_plan import planned_curves, planned_spectra
from hvp_engine.results.spectra import Spectra

_ROLES = (r"query|wq$", r"value|wv$", r"c_fc$|fc1$|intermediate", r"wte|word_embedding|embeddings?$")
_COLUMNS = ("model", "blocks", "JS0", "sd", "spread", "sd", "loss of SGD", "loss of Adam")
_SOURCE = "arXiv 2402.16788, figure 3"


def run(setting: Setting) -> Result:
    """Draw four blocks of both models in units of the model's tenth largest eigenvalue, and both optimizers' curves."""
    seconds, rows, js0 = {}, [], {}
    with figures.style():
        figure, axes = figures.page(2, 2, 5.5, 4.0)
        for row, name in zip(axes, ("vgg", "bert"), strict=True):
            began = time.perf_counter()
            entry = zoo(setting)[name]
            found = [blocks_of(setting, entry, seed) for seed in range(setting.seeds)]
            curves = gap(setting, name)
            js0[name] = [spectra.js0() for spectra in found]
            spreads = [spread([block.largest().value for block in spectra.values()]) for spectra in found]
            rows.append(
                (name, ", ".join(found[0]), *mean_and_deviation(js0[name]), *mean_and_deviation(spreads), *curves.losses)
            )
            _densities(row[0], name, found[0], whole.whole(setting, name, "init", 0).unit)
            notes = _curves(setting, row[1], curves)
            seconds[name] = time.perf_counter() - began
    steps, probes = whole.STEPS[setting.size]
    data = {name: zoo(setting)[name].data(0).source for name in js0}
    settings = {"steps": steps, "probes": probes, "data": data}
    return Result(Table(_COLUMNS, tuple(rows)), gates(js0["vgg"], js0["bert"]), figure, settings, seconds, notes)


def plan(setting: Setting) -> list[PlannedPart]:
    """Plan spectra and trainings of both models."""
    entries = [zoo(setting)[name] for name in ("vgg", "bert")]
    blocks = [planned_spectra(setting, entry, setting.seeds, four(entry)) for entry in entries]
    units = [planned_spectra(setting, entry, 1, {"full": ["*"]}) for entry in entries]
    return blocks + units + [planned_curves(setting, entry) for entry in entries]


def gates(cnn: Sequence[float], transformer: Sequence[float]) -> tuple[Claim, ...]:
    """Decide whether the blocks of the Transformer are further apart, by JS0 per seed of four blocks of each model."""
    ratio = [above / below for above, below in zip(transformer, cnn, strict=True)]
    return (at_least("JS0 of BERT's four blocks >= 1.4 x that of VGG's", "ratio", ratio, 1.4, _SOURCE),)


def blocks_of(setting: Setting, entry: Entry, seed: int) -> Spectra:
    """Compute the spectra of a model's four blocks at initialisation, or read them."""
    steps, probes = whole.STEPS[setting.size]
    return cache.spectra(
        setting, entry.name, "init", seed, blocks=four(entry), steps=steps, probes=probes, label="four"
    )


def four(entry: Entry) -> Blocks:
    """Choose four blocks: of a Transformer the embedding, and query, value and first MLP layer of its middle layer; of
    another network the first, two in the middle, and the last.

    Raises:
        ConfigurationError: A Transformer has no block of one of these roles.
    """
    names = list(entry.blocks)
    if entry.family != "transformer":
        chosen = [names[round(place * (len(names) - 1) / 3)] for place in range(4)]
        return {name: entry.blocks[name] for name in chosen}
    chosen = []
    for role in _ROLES:
        matching = [name for name in names if re.search(role, name)]
        if not matching:
            raise ConfigurationError(f"No block of {entry.name} is a {role}; its blocks are {', '.join(names)}.")
        chosen.append(matching[len(matching) // 2])
    return {name: entry.blocks[name] for name in chosen}


def _densities(axes: Axes, model: str, spectra: Spectra, unit: float) -> None:
    low, high = (float(end) for end in np.array([block.extremes() for block in spectra.values()]).T @ [[1], [1]])
