"""An MLP whose initial weights are scaled layer by layer: its blocks come to differ, and nothing else changes.

The weights of layer l are multiplied by c_l, with the product of all c_l being 1. A ReLU net without biases is
positively homogeneous, so the function stays and H_ll becomes H_ll / c_l^2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from hvp_engine.experiments.blockwise import Blockwise
from hvp_engine.experiments.entry import Entry, seeded
from hvp_engine.experiments.gaps import Gap, gap
from hvp_engine.experiments.models.vision import MLP
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.training import FloatArray
from hvp_engine.experiments.zoo import zoo

PATTERNS = {  # exponents of c, layer by layer
    "(c, 1, 1, 1/c)": (1, 0, 0, -1),
    "(1, c, 1/c, 1)": (0, 1, -1, 0),
    "(1/c, 1, 1, c)": (-1, 0, 0, 1),
}
SCALES = {"tiny": (1, 4), "small": (1, 4, 16, 64), "paper": (1, 4, 16, 64)}  # powers of 2 scale without rounding
GRID = {"sgd": (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4), "adam": (0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)}
JUDGED = 10  # last steps
_STEPS = {"tiny": 8, "small": 60, "paper": 3 * (60_000 // 128)}


@dataclass(frozen=True)
class Point:
    """An MLP scaled by a pattern with one c, trained with both optimizers."""

    pattern: str
    scale: int
    gap: Gap

    @classmethod
    def trained(cls, setting: Setting, pattern: str, scale: int) -> Point:
        """Train it with all seeds, or read the curves."""
        return cls(pattern, scale, gap(setting, scaled(setting, pattern, scale)))

    @property
    def losses(self) -> dict[str, list[float]]:
        """Mean loss of the last steps, by optimizer and seed."""
        both = {"SGD": self.gap.sgd, "Adam": self.gap.adam}
        return {label: [float(c.losses[-JUDGED:].mean()) for c in curves] for label, curves in both.items()}

    @property
    def medians(self) -> tuple[float, float]:
        """Median over seeds of the losses of SGD and Adam."""
        sgd, adam = (float(np.median(values)) for values in self.losses.values())
        return sgd, adam


def factors(pattern: str, scale: int) -> tuple[float, ...]:
    """Return c_l of every layer."""
    return tuple(float(scale) ** exponent for exponent in PATTERNS[pattern])


def scaled(setting: Setting, pattern: str, scale: int) -> Entry:
    """Make the entry of an MLP whose initial weights are scaled by a pattern; all patterns are the same at scale 1."""
    base = zoo(setting)["mlp"]
    sizes = (784, 128, 128, 128, 10) if setting.size == "paper" else (64, 64, 64, 64, 10)
    by_layer = factors(pattern, scale)
    return replace(
        base,
        name="mlp-scaled-" + "-".join(f"{factor:g}" for factor in by_layer),
        build=seeded(partial(_scaled_mlp, sizes, by_layer)),
        recipe=replace(base.recipe, steps=setting.option("steps", _STEPS[setting.size])),
        rates=base.rates if setting.size == "tiny" else GRID,
    )


def largest_error(one: Blockwise, other: Blockwise, by_layer: tuple[float, ...]) -> list[float]:
    """Return by seed how far the recurrences of H_ll(c) c_l^2 and of H_ll(1) are apart, relative to the latter's norm.

    Args:
        one: The MLP at c = 1.
        other: The scaled one, with the same probes.
        by_layer: c_l of every layer.
    """
    errors = []
    for base, changed in zip(one.spectra, other.spectra, strict=True):
        pairs = zip(base.values(), changed.values(), by_layer, strict=True)
        errors.append(max(_apart(b.alphas, c.alphas * factor**2) for b, c, factor in pairs))
    return errors


def _scaled_mlp(sizes: tuple[int, ...], by_layer: tuple[float, ...]) -> nn.Module:
    model = MLP(sizes)
    with torch.no_grad():
        matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
        for matrix, factor in zip(matrices, by_layer, strict=True):
            matrix.mul_(factor)
    return model


def _apart(expected: FloatArray, found: FloatArray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
