"""Growth of a linear head of many classes under sign methods (D18).

Tomihari & Sato, first version: momentum in sign methods "is important for preventing the excessive growth of
linear-head parameters in tasks with many classes". A linear head is trained at the same rate by SignSGD and by Signum
on features with Gaussian class means and a common offset, as features of a network have a mean; the second panel has
no offset, where it is the other way round, and the third the features that MiniLM makes of speeches, with the speaker
as the class.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hvp_engine import losses
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import figures
from hvp_engine.experiments.clock import Clock
from hvp_engine.experiments.data.images import gaussian
from hvp_engine.experiments.data.samples import Samples
from hvp_engine.experiments.models.with_head import usual_head
from hvp_engine.experiments.optimizers import constant, make_optimizer
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell, Result, Table, at_least
from hvp_engine.experiments.speakers import sources, speaker_features
from hvp_engine.experiments.training import fit

FEATURES = 64
STEPS, BATCH, RATE = 400, 32, 1e-3
OFFSETS = (3.0, 1.0, 0.0)
OPTIMIZERS = ("signsgd", "signum")
_CLASSES = {"tiny": (5, 500), "small": (5, 20, 100, 500), "paper": (5, 20, 100, 500)}
_SOURCE = "arXiv 2502.00213v1, abstract; bounds measured here"
Sizes = dict[tuple[str, int, str], list[float]]  # rms of the head's weights by features, classes, optimizer


def run(setting: Setting) -> Result:
    """Train heads of several numbers of classes with both optimizers, and compare the size of their weights."""
    seconds, counts = Clock(), _CLASSES[setting.size]
    sizes: Sizes = {}
    settings: dict[str, object] = {
        "steps": STEPS, "batch": BATCH, "rate": RATE, "features": FEATURES, "momentum": 0.9,
        "generated features": "Gaussian, drawn",
    }  # fmt: skip
    notes: tuple[str, ...] = ()
    with seconds.part("generated features"):
        for classes in counts:
            for offset in OFFSETS if setting.size != "tiny" else OFFSETS[:1]:
                for seed in range(setting.seeds):
                    samples = gaussian(classes, FEATURES, STEPS * BATCH, seed, offset)
                    _measure(sizes, _offset(offset), classes, samples, seed)
    with seconds.part("features of MiniLM"):
        if setting.size != "tiny":
            try:
                settings |= _add_real(setting, sizes, counts)
            except ConfigurationError as error:
                notes = (f"The panel with features of MiniLM is left out: {error}",)
    ratios = {
        (features, classes): np.array(sizes[features, classes, OPTIMIZERS[0]])
        / np.array(sizes[features, classes, OPTIMIZERS[1]])
        for features, classes in dict.fromkeys(key[:2] for key in sizes)
    }
    few, many = (ratios[_offset(OFFSETS[0]), classes] for classes in (counts[0], counts[-1]))
    claims = (
        at_least("SignSGD's head of 500 classes >= 1.3 x Signum's", "ratio", many.tolist(), 1.3, _SOURCE),
        at_least("ratio at 500 classes >= 2 x ratio at 5", "quotient", (many / few).tolist(), 2.0, _SOURCE),
    )
    rows = tuple(_row(sizes, features, classes, values) for (features, classes), values in ratios.items())
    columns = ("features", "classes", "rms SignSGD", "rms Signum", "ratio", "sd of ratio")
    return Result(Table(columns, rows), claims, _figure(sizes), settings, seconds, notes)


def _offset(offset: float) -> str:
    return f"Gaussian, offset {offset:g}"


def _row(sizes: Sizes, features: str, classes: int, ratios: NDArray[np.float64]) -> tuple[Cell, ...]:
    means = [float(np.mean(sizes[features, classes, name])) for name in OPTIMIZERS]
    return (features, classes, *means, float(ratios.mean()), float(ratios.std()))


def _measure(sizes: Sizes, features: str, classes: int, samples: Samples, seed: int) -> None:
    """Train a head with each optimizer, and note the size of its weights at the end."""
    for name in OPTIMIZERS:
        head = usual_head(samples.inputs.shape[1], classes, seed)
        batches = samples.batches(BATCH, seed)
        fit(head, losses.classification, batches, make_optimizer(name, head, RATE), constant(), steps=STEPS)
        sizes.setdefault((features, classes, name), []).append(float(head.weight.detach().square().mean().sqrt()))


def _add_real(setting: Setting, sizes: Sizes, counts: tuple[int, ...]) -> dict[str, object]:
    """Do the same on features of MiniLM, if its weights and the plays are there; say where they come from."""
    for classes in counts:
        samples = speaker_features(setting, classes)
        for seed in range(setting.seeds):
            _measure(sizes, "MiniLM, speakers", classes, samples, seed)
    return sources(setting)


def _figure(sizes: Mapping[tuple[str, int, str], list[float]]) -> Figure:
    kinds = list(dict.fromkeys(features for features, _, _ in sizes))
    with figures.style():
        figure, axes = figures.page(1, len(kinds), 1.8 * len(kinds), 1.9, sharey=True)
        for place, features in enumerate(kinds):
            counts = list(dict.fromkeys(classes for kind, classes, _ in sizes if kind == features))
            series = {
                label: (counts, np.transpose([sizes[features, classes, name] for classes in counts]))
                for name, label in zip(OPTIMIZERS, ("SignSGD", "Signum"), strict=True)
            }
            figures.curves(axes[0, place], series, bars=True)
            axes[0, place].set(yscale="log", title=features, xlabel="classes")
            figures.label_logs(axes[0, place], counts)
        axes[0, 0].set_ylabel("rms of the head's weights")
    return figure
