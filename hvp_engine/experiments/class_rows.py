"""The curvature of every class's row of a linear head, on data that follows Zipf's law (`class_structure.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvp_engine import losses
from hvp_engine.api import eigsh
from hvp_engine.blocks import rows
from hvp_engine.experiments.data import images
from hvp_engine.experiments.data.samples import Samples
from hvp_engine.experiments.data.source import Source
from hvp_engine.experiments.entry import seeded
from hvp_engine.experiments.heterogeneity import FloatArray, spearman
from hvp_engine.experiments.models.vision import MLP
from hvp_engine.experiments.optimizers import constant, make_optimizer
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.training import fit

EXACT, INITIAL, TRAINED = "frequencies alone", "initialisation", "after an epoch"
STAGES = (EXACT, INITIAL, TRAINED)
DIGITS = "digits"
DRAWN = {"tiny": 600, "small": 4000, "paper": 4000}
HIDDEN, RATE = 64, 1e-3
_GAUSSIAN_CLASSES = {"tiny": 20, "small": 100, "paper": 100}
_BATCH = 64


@dataclass(frozen=True)
class Sample:
    """What was found for one data set and seed; all arrays are (classes,).

    Attributes:
        frequencies: Of the classes.
        exact: Largest eigenvalues where the head knows the frequencies, by the formula.
        curvature: Largest eigenvalues that the engine found, by stage.
    """

    frequencies: FloatArray
    exact: FloatArray
    curvature: Mapping[str, FloatArray]

    def rank(self, stage: str) -> float:
        """Return Spearman's correlation of curvature and frequency."""
        return spearman(self.frequencies, self.curvature[stage])

    @property
    def apart(self) -> float:
        """The largest relative distance between the formula and what the engine found."""
        return float(np.max(np.abs(self.curvature[EXACT] / self.exact - 1.0)))


def data(setting: Setting, seed: int) -> dict[str, Samples]:
    """Draw both data sets with Zipf's frequencies."""
    classes, count = _GAUSSIAN_CLASSES[setting.size], DRAWN[setting.size]
    pool = images.gaussian(classes, HIDDEN, 2 * count, seed)
    return {DIGITS: zipf(images.digits().train, count, seed), f"{classes} Gaussians": zipf(pool, count, seed)}


def source() -> Source:
    """Say where the digits come from."""
    return images.digits().source


def zipf(samples: Samples, count: int, seed: int) -> Samples:
    """Draw samples with replacement so that class k has a share in proportion to 1 / (k + 1), and one at least."""
    generator = torch.Generator().manual_seed(seed)
    classes = int(samples.labels.max()) + 1
    shares = 1.0 / torch.arange(1, classes + 1)
    counts = (count * shares / shares.sum()).round().clamp(min=1).long()
    chosen = []
    for label, wanted in enumerate(counts.tolist()):
        own = (samples.labels == label).nonzero()[:, 0]
        chosen.append(own[torch.randint(len(own), (wanted,), generator=generator)])
    order = torch.cat(chosen)
    order = order[torch.randperm(len(order), generator=generator)]
    return Samples(samples.inputs[order], samples.labels[order])


def measure(samples: Samples, seed: int, setting: Setting) -> Sample:
    """Find the largest eigenvalue of every row, at two starts and after an epoch, and as the formula has it."""
    inputs, labels = samples.inputs.to(setting.device), samples.labels.to(setting.device)
    counts = torch.bincount(labels).double()
    pi = counts / counts.sum()
    model: Any = seeded(lambda: MLP((inputs[0].numel(), HIDDEN, len(pi))))(seed).to(setting.device)
    curvature = {INITIAL: largest(model, inputs, labels, seed, setting)}
    head = model.layers[-1]
    kept = {name: value.clone() for name, value in head.state_dict().items()}
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(pi.log())
        features = torch.relu(model.layers[0](inputs.flatten(1))).double()
    top = torch.linalg.eigvalsh(features.T @ features / len(features))[-1]
    curvature[EXACT] = largest(model, inputs, labels, seed, setting)
    head.load_state_dict(kept)
    steps = len(labels) // _BATCH
    batches = islice(Samples(inputs, labels).batches(_BATCH, seed), steps)
    fit(model, losses.classification, batches, make_optimizer("adam", model, RATE), constant(), steps=steps)
    curvature[TRAINED] = largest(model, inputs, labels, seed, setting)
    return Sample(pi.numpy(force=True), (pi * (1.0 - pi) * top).numpy(force=True), curvature)


def largest(model: MLP, inputs: Tensor, labels: Tensor, seed: int, setting: Setting) -> FloatArray:
    """Return the largest eigenvalue of the block of every row of the head, (classes,)."""
    blocks = rows(model, f"layers.{len(model.layers) - 1}.weight")
    found = eigsh(
        model, losses.classification, blocks, data=[(inputs, labels)], k=1, which="LA", vectors=False, seed=seed,
        precision=setting.precision, progress=False,
    )  # fmt: skip
    return np.array([pairs.values[0] for pairs in found.values()])
