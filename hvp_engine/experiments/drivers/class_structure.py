"""F6: the curvature of a class's row of the head follows how frequent the class is (Papyan 2020; Kunstner et al. 2024).

With cross-entropy the diagonal block of row k of a linear head is E[p_k (1 - p_k) h h'], h the features. Where the head
knows nothing but the classes' frequencies (no weights, their logarithms as bias) that is pi_k (1 - pi_k) E[h h'], which
the engine must find exactly. In training the order comes as frequencies are learned, and goes as the samples are: on
digits and seeds 100 to 102, which calibrated the claim, Spearman's correlation was 0.0 to 0.2 at first, 0.95 to 0.99
after an epoch, 0.4 after four and 0.1 after eight. Gaussian inputs of 100 classes, learned more slowly (0.65 to 0.74), are
shown beside them. Both are drawn so that frequencies fall as 1/k.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from hvp_engine import losses
from hvp_engine.api import eigsh
from hvp_engine.blocks import rows
from hvp_engine.experiments import figures
from hvp_engine.experiments.data import images
from hvp_engine.experiments.data.samples import Samples
from hvp_engine.experiments.entry import seeded
from hvp_engine.experiments.heterogeneity import FloatArray, spearman
from hvp_engine.experiments.models.vision import MLP
from hvp_engine.experiments.optimizers import constant, make_optimizer
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least, at_most
from hvp_engine.experiments.training import fit

EXACT, INITIAL, TRAINED = "frequencies alone", "initialisation", "after an epoch"
STAGES = (EXACT, INITIAL, TRAINED)
DIGITS = "digits"
_DRAWN = {"tiny": 600, "small": 4000, "paper": 4000}
_GAUSSIAN_CLASSES = {"tiny": 20, "small": 100, "paper": 100}
_HIDDEN, _BATCH, _RATE = 64, 64, 1e-3
_SOURCE = "Kunstner et al., arXiv 2402.19449; Papyan, arXiv 2008.11865; bounds are guesses"


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


def run(setting: Setting) -> Result:
    """Find the largest eigenvalue of every row of the head, at three points, for both data sets."""
    began = time.perf_counter()
    found: dict[str, list[Sample]] = {}
    for seed in range(setting.seeds):
        for name, samples in data(setting, seed).items():
            found.setdefault(name, []).append(measure(samples, seed, setting))
    with figures.style():
        figure, axes = figures.page(1, len(found), 5.5, 2.3)
        for ax, (name, seeds) in zip(axes[0], found.items(), strict=True):
            x = [value for _ in STAGES for value in seeds[0].frequencies]
            y = [value for stage in STAGES for value in seeds[0].curvature[stage]]
            groups = [stage for stage in STAGES for _ in seeds[0].frequencies]
            figures.scatter(ax, x, y, groups=groups)
            ax.set(xscale="log", yscale="log", xlabel="frequency of the class", title=name)
        axes[0, 0].set_ylabel("largest eigenvalue of its row")
    table = tuple(
        (
            name,
            stage,
            *(float(np.mean(part)) for part in ([_rank(s, stage) for s in seeds], [_apart(s) for s in seeds])),
        )
        for name, seeds in found.items()
        for stage in STAGES
    )
    columns = ("data", "head", "Spearman", "distance from the formula where it holds")
    settings = {"samples": _DRAWN[setting.size], "hidden": _HIDDEN, "rate": _RATE, "epochs": 1, "optimizer": "adam"}
    return Result(Table(columns, table), claims(found), figure, settings, {"all": time.perf_counter() - began})


def data(setting: Setting, seed: int) -> dict[str, Samples]:
    """Draw both data sets with Zipf's frequencies."""
    classes, count = _GAUSSIAN_CLASSES[setting.size], _DRAWN[setting.size]
    pool = images.gaussian(classes, _HIDDEN, 2 * count, seed)
    return {DIGITS: zipf(images.digits().train, count, seed), f"{classes} Gaussians": zipf(pool, count, seed)}


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
    model = seeded(lambda: MLP((inputs[0].numel(), _HIDDEN, len(pi))))(seed).to(setting.device)
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
    fit(model, losses.classification, batches, make_optimizer("adam", model, _RATE), constant(), steps=steps)
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


def claims(found: Mapping[str, list[Sample]]) -> tuple[Claim, ...]:
    """Decide the order by digits, the formula by the worse data set of every seed."""
    ranks = [_rank(sample, TRAINED) for sample in found[DIGITS]]
    apart = [max(_apart(sample) for sample in samples) for samples in zip(*found.values(), strict=True)]
    return (
        at_least("digits: Spearman(curvature, frequency) >= 0.9 after an epoch", "correlation", ranks, 0.9, _SOURCE),
        at_most("p_k (1 - p_k) E[h h'] is found to 1e-3 where p is the frequency", "distance", apart, 1e-3, "ours"),
    )


def _rank(sample: Sample, stage: str) -> float:
    return spearman(sample.frequencies, sample.curvature[stage])


def _apart(sample: Sample) -> float:
    """Return the largest relative distance between the formula and what the engine found."""
    return float(np.max(np.abs(sample.curvature[EXACT] / sample.exact - 1.0)))
