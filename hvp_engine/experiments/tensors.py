"""Curvature and gradient of single tensors: the numbers of D12, D13, D14 and D17, measured once and shared by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal
from torch import nn

from hvp_engine.api import gradients, slq
from hvp_engine.experiments.cache import INIT, checkpoint, folder
from hvp_engine.experiments.continued import Continued
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.roles import role_of
from hvp_engine.results.spectrum import Spectrum

STEPS = 20  # of Lanczos, one probe
_TINY_STEPS = 4
_LAST = 5  # steps, over which the change of the largest value is given


class TensorFacts(NamedTuple):
    """What is known of one tensor.

    Attributes:
        role: What it does in the network.
        numel: Number of parameters.
        gradient: Length of the gradient with respect to it.
        curvature: Largest eigenvalue of its diagonal block of the Hessian, as far as Lanczos has come.
        change: By which share that grew over the last five steps.
    """

    role: str
    numel: int
    gradient: float
    curvature: float
    change: float


Facts = Mapping[str, TensorFacts]


def facts(setting: Setting, entry: Entry, seed: int, stage: str = INIT) -> Facts:
    """Measure every block of an entry on its Hessian batches, all in one call, or read what was measured before.

    Args:
        setting: Where, and in which arithmetic.
        entry: Model, data, blocks; under one name the number of blocks tells lists apart.
        seed: Of model, data and probe.
        stage: Of training.
    """
    model, data = network(setting, entry, seed, stage), entry.data(seed).fixed
    lengths = gradients(model, entry.loss, entry.blocks, data=data)
    spectra = slq(
        model, entry.loss, entry.blocks, data=data, probes=1, seed=seed, precision=setting.precision,
        steps=_TINY_STEPS if setting.size == "tiny" else STEPS,
        out=folder(setting, "tensors") / f"{entry.name}-{len(entry.blocks)}-{stage}-{seed}",
    )  # fmt: skip
    return {
        name: TensorFacts(role_of(name), found.numel, found.norm, *_largest(spectra[name]))
        for name, found in lengths.items()
    }


def network(setting: Setting, entry: Entry, seed: int, stage: str = INIT) -> nn.Module:
    """Return a model at a stage, in eval mode; one with weights of another training keeps the statistics of these."""
    if stage == INIT and isinstance(entry, Continued):
        return entry.build(seed).to(setting.device).eval()
    return checkpoint(setting, entry, stage, seed)


def column(found: Facts, field: str) -> list[float]:
    """Return one of the numbers of every tensor, in their order."""
    return [float(getattr(facts, field)) for facts in found.values()]


def _largest(spectrum: Spectrum) -> tuple[float, float]:
    """Return the largest Ritz value, and by which share of it that grew over the last steps."""
    alphas, betas, steps = spectrum.alphas[0], spectrum.betas[0], int(spectrum.steps[0])
    value = spectrum.extremes()[1]
    early = max(1, steps - _LAST)
    if early == steps or value == 0.0:
        return value, 0.0
    before = float(np.max(eigvalsh_tridiagonal(alphas[:early], betas[: early - 1])))
    return value, (value - before) / abs(value)
