"""A small GPT and the exact blocks of its Hessian, divided as Adam-mini divides its parameters (`adam_mini.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from hvp_engine import losses
from hvp_engine.api import dense
from hvp_engine.blocks import heads, rows
from hvp_engine.experiments import exact
from hvp_engine.experiments.data import text
from hvp_engine.experiments.data.corpus import Corpus
from hvp_engine.experiments.entry import seeded
from hvp_engine.experiments.heterogeneity import energy_share
from hvp_engine.experiments.models.gpt import GPT, GPTConfig
from hvp_engine.experiments.optimizers import cosine, make_optimizer
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.training import fit

HEADS, WIDTH, CONTEXT = 4, 16, 32
BATCH, RATE = 32, 1e-2
_BY_HEAD = ("attn.wq", "attn.wk")
PROJECTIONS = (*_BY_HEAD, "attn.wv", "attn.wo", "c_fc", "c_proj")


class _Sizes(NamedTuple):
    layers: int
    steps: int
    sequences: int  # where the Hessian is taken


SIZES = {"tiny": _Sizes(1, 200, 8), "small": _Sizes(2, 400, 32), "paper": _Sizes(2, 400, 32)}
Ratios = dict[str, tuple[float, float]]  # energy share of the groups, and of random ones, by tensor


def corpus_of(setting: Setting) -> Corpus:
    """Return the text; in tests that of Python's own sources, which every machine has."""
    if setting.size == "tiny":
        return text.byte_text("stdlib")
    return text.characters("shakespeare", setting.data)


def network(setting: Setting, corpus: Corpus, seed: int) -> nn.Module:
    """Make the GPT of a seed at its initialisation, damped as the paper's code does."""
    config = GPTConfig(corpus.vocabulary, CONTEXT, SIZES[setting.size].layers, HEADS, WIDTH, damp_wo=False)
    return seeded(lambda: GPT(config))(seed).to(setting.device)


def train(setting: Setting, model: nn.Module, corpus: Corpus, seed: int) -> None:
    """Train with Adam, and leave the model in eval mode."""
    steps = SIZES[setting.size].steps
    batches = (batch.to(setting.device) for batch in corpus.batches(BATCH, CONTEXT, seed))
    fit(model, losses.causal_lm, batches, make_optimizer("adam", model, RATE), cosine(steps), steps=steps, clip=1.0)
    model.eval()


def blocks(setting: Setting, model: nn.Module, corpus: Corpus) -> Mapping[str, exact.FloatArray]:
    """Form the exact block of every weight matrix of every layer, in float64."""
    sizes = SIZES[setting.size]
    names = [f"layers.{layer}.{projection}.weight" for layer in range(sizes.layers) for projection in PROJECTIONS]
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
