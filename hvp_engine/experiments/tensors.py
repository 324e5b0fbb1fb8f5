"""Curvature and gradient of single tensors: the numbers of D12, D13, D14 and D17, measured once and shared by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal
from torch import nn

from hvp_engine.api import gradients, slq
from hvp_engine.blocks import BlockSpec
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.roles import role_of
from hvp_engine.problem.objective import Loss
from hvp_engine.results.spectrum import Spectrum

STEPS = 20  # of Lanczos, one probe
_LAST = 5  # over which the change of the largest value is given


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


def facts(setting: Setting, entry: Entry, seed: int, stage: str = "init", model: nn.Module | None = None) -> Facts:
    """Measure every block of an entry on its Hessian batches, or read what was measured before.

    Args:
        setting: Where, and in which arithmetic.
        entry: Model, data, blocks.
        seed: Of all of them and of the probe.
        stage: Of training: names the file.
        model: The model at that stage; None builds it at its start.
    """
    made = entry.build(seed) if model is None else model
    data = entry.data(seed).fixed
    folder = setting.out.parent / "cache" / "tensors" / f"{entry.name}-{len(entry.blocks)}-{stage}-{seed}"
    return measure(made.to(setting.device).eval(), entry.loss, entry.blocks, data, seed, setting, folder)


def measure(
    model: nn.Module, loss: Loss, blocks: BlockSpec, data: Iterable[Any], seed: int, setting: Setting, folder: Path
) -> dict[str, TensorFacts]:
    """Measure gradient and largest eigenvalue of blocks, all of them in one call; ``folder`` resumes it."""
    kept = list(data)
    lengths = gradients(model, loss, blocks, data=kept)
    spectra = slq(
        model, loss, blocks, data=kept, steps=STEPS, probes=1, seed=seed, precision=setting.precision, out=folder,
    )  # fmt: skip
    return {
        name: TensorFacts(role_of(name), found.numel, found.norm, *_largest(spectra[name]))
        for name, found in lengths.items()
    }


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
