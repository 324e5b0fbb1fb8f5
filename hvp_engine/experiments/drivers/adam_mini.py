"""Adam-mini's partition against exact blocks of a GPT's Hessian (zyushun/Adam-mini; the thesis's figure 3.4).

Adam-mini has one learning rate per head of queries and keys and per row of every other matrix, because that is how the
Hessian is said to be divided. Held against it: the share of a tensor's block that lies in these groups, over the share
that random groups of the same sizes hold.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from hvp_engine import losses
from hvp_engine.api import dense
from hvp_engine.blocks import heads, rows
from hvp_engine.experiments import exact, figures
from hvp_engine.experiments.data import text
from hvp_engine.experiments.data.corpus import Corpus
from hvp_engine.experiments.entry import seeded
from hvp_engine.experiments.heterogeneity import energy_share
from hvp_engine.experiments.models.gpt import GPT, GPTConfig
from hvp_engine.experiments.optimizers import cosine, make_optimizer
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Result, Table, at_least
from hvp_engine.experiments.training import fit

HEADS, WIDTH, CONTEXT = 4, 16, 32
BATCH, RATE = 32, 1e-2
_BY_HEAD = ("attn.wq", "attn.wk")
_PROJECTIONS = (*_BY_HEAD, "attn.wv", "attn.wo", "c_fc", "c_proj")
_SOURCE = "thesis of Z's first author (arXiv 2608.16760), figure 3.4; bounds measured here"


class _Sizes(NamedTuple):
    layers: int
    steps: int
    sequences: int  # where the Hessian is taken


_SIZES = {"tiny": _Sizes(1, 200, 8), "small": _Sizes(2, 400, 32), "paper": _Sizes(2, 400, 32)}
Ratios = dict[str, tuple[float, float]]  # energy share of the groups, and of random ones, by tensor


def run(setting: Setting) -> Result:
    """Train a small GPT, form the block of every weight matrix, and divide it."""
    begin = time.perf_counter()
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
    table = tuple(
        (
            stage,
            name,
            "heads" if by_head(name) else "rows",
            *np.mean(pairs, axis=0).tolist(),
            float(np.std(pairs, axis=0)[0]),
        )
        for stage in ("init", "trained")
        for name in found[0][stage]
        for pairs in [[seed[stage][name] for seed in found]]
    )
    settings = {**_SIZES[setting.size]._asdict(), "rate": RATE, "length": CONTEXT, **corpus.source.described()}
    columns = ("stage", "tensor", "groups", "energy share", "random groups", "sd of share")
    return Result(Table(columns, table), claims, figure, settings, {"all": time.perf_counter() - begin})


def corpus_of(setting: Setting) -> Corpus:
    """Return the text; in tests that of Python's own sources, which every machine has."""
    if setting.size == "tiny":
        return text.byte_text("stdlib")
    return text.characters("shakespeare", setting.data)


def network(setting: Setting, corpus: Corpus, seed: int) -> nn.Module:
    """Make the GPT of a seed at its initialisation, damped as the paper's code does."""
    config = GPTConfig(corpus.vocabulary, CONTEXT, _SIZES[setting.size].layers, HEADS, WIDTH, damp_wo=False)
    return seeded(lambda: GPT(config))(seed).to(setting.device)


def train(setting: Setting, model: nn.Module, corpus: Corpus, seed: int) -> None:
    """Train with Adam, and leave the model in eval mode."""
    steps = _SIZES[setting.size].steps
    batches = (batch.to(setting.device) for batch in corpus.batches(BATCH, CONTEXT, seed))
    fit(model, losses.causal_lm, batches, make_optimizer("adam", model, RATE), cosine(steps), steps=steps, clip=1.0)
    model.eval()


def blocks(setting: Setting, model: nn.Module, corpus: Corpus) -> Mapping[str, exact.FloatArray]:
    """Form the exact block of every weight matrix of every layer, in float64."""
    sizes = _SIZES[setting.size]
    names = [f"layers.{layer}.{projection}.weight" for layer in range(sizes.layers) for projection in _PROJECTIONS]
    found = dense(model, losses.causal_lm, names, data=[corpus.sequences(sizes.sequences, CONTEXT)])
    return {name: matrix.numpy(force=True) for name, matrix in found.items()}


def by_head(name: str) -> bool:
    """Say whether Adam-mini divides a tensor by heads."""
    return any(projection in name for projection in _BY_HEAD)


def groups_of(model: nn.Module, name: str) -> list[exact.IntArray]:
    """Return Adam-mini's groups of a tensor's entries."""
    pieces = heads(model, name, HEADS) if by_head(name) else rows(model, name)
    return exact.positions(model, [name], pieces)


def divided(model: nn.Module, matrices: Mapping[str, exact.FloatArray]) -> Ratios:
    """Measure which share of each block lies in Adam-mini's groups, and in random ones."""
    divisions = {name: groups_of(model, name) for name in matrices}
    return {
        name: (energy_share(matrix, divisions[name]), exact.random_energy_share(matrix, divisions[name]))
        for name, matrix in matrices.items()
    }


def drawn(model: nn.Module, matrices: Mapping[str, exact.FloatArray], ratios: Ratios) -> Figure:
    """Draw the blocks of all layers, a row each, with the groups' borders."""
    with figures.style():
        layers = len(matrices) // len(_PROJECTIONS)
        figure, axes = figures.page(layers, len(_PROJECTIONS), 7.0, 0.3 + 1.2 * layers)
        for ax, (name, matrix) in zip(axes.flat, matrices.items(), strict=True):
            share, random = ratios[name]
            ax.set_title(f"{name.removesuffix('.weight')}\n{share:.2f} (random {random:.2f})", fontsize=6)
            exact.draw_magnitudes(ax, matrix, groups_of(model, name))
    return figure
