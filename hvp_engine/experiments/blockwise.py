"""How unlike the blocks of a model are at initialisation: the statistics of its blockwise spectra, seed by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hvp_engine.blocks import BlockSpec
from hvp_engine.experiments import cache, heterogeneity
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.heterogeneity import FloatArray
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell
from hvp_engine.experiments.zoo import entry_of
from hvp_engine.results.spectra import Spectra

Values = Mapping[str, Sequence[float]]

COLUMNS = (
    "model", "blocks", "JS0", "JS0 sd", "spread", "spread sd", "smallest lambda_max", "largest lambda_max",
    "Gini of lambda_max", "legacy (sum over 50,000 points, unit of H)",
)  # fmt: skip


@dataclass(frozen=True)
class Blockwise:
    """A model's spectra, and what they say; every statistic has one value per seed.

    Attributes:
        entry: The model.
        spectra: Those of its blocks by seed.
    """

    entry: Entry
    spectra: tuple[Spectra, ...]

    @cached_property
    def js0(self) -> tuple[float, ...]:
        """Mean Jensen-Shannon divergence over distinct pairs of blocks, in [0, 1]."""
        return tuple(found.js0() for found in self.spectra)

    @cached_property
    def spread(self) -> tuple[float, ...]:
        """Standard deviation over blocks of the decimal logarithm of the largest eigenvalue."""
        return tuple(heterogeneity.spread(row) for row in self.lambda_max)

    @cached_property
    def gini(self) -> tuple[float, ...]:
        """Gini coefficient of the largest eigenvalues."""
        return tuple(heterogeneity.gini(row) for row in self.lambda_max)

    @cached_property
    def legacy(self) -> tuple[float, ...]:
        """Mean over pairs of the published un-normalised sum, a function of its grid and of the Hessian's unit."""
        return tuple(heterogeneity.js0(found.js_distance(legacy=True)) for found in self.spectra)

    @cached_property
    def lambda_max(self) -> tuple[FloatArray, ...]:
        """Largest eigenvalues of the blocks, without those whose curvature is zero to rounding."""
        return tuple(
            np.array([block.largest().value for name, block in found.items() if name not in found.zero_blocks])
            for found in self.spectra
        )

    @cached_property
    def matrix(self) -> FloatArray:
        """Jensen-Shannon divergences between all blocks, the mean over seeds, (blocks, blocks)."""
        return np.asarray(np.mean([found.js_distance() for found in self.spectra], axis=0))

    @property
    def row(self) -> tuple[Cell, ...]:
        """What a table says of the model, in the order of :data:`COLUMNS`."""
        largest = np.concatenate(self.lambda_max)
        return (
            self.entry.name, len(self.spectra[0]), *mean_and_deviation(self.js0), *mean_and_deviation(self.spread),
            float(largest.min()), float(largest.max()), float(np.mean(self.gini)), float(np.mean(self.legacy)),
        )  # fmt: skip


def measure(
    setting: Setting,
    model: str | Entry,
    *,
    steps: int | None = None,
    probes: int | None = None,
    blocks: BlockSpec = None,
) -> Blockwise:
    """Compute the spectra of a model's blocks at initialisation for all seeds, or read them.

    Args:
        setting: Size, seeds, folder.
        model: Name in the zoo, or an entry of one's own.
        steps: Lanczos steps; None takes those of the size.
        probes: Random vectors per block; None takes those of the size.
        blocks: Other blocks than the entry's, always the same ones for this model.
    """
    label = "" if blocks is None else "cut"
    found = [
        cache.spectra(setting, model, "init", seed, blocks=blocks, steps=steps, probes=probes, label=label)
        for seed in range(setting.seeds)
    ]
    return Blockwise(entry_of(setting, model), tuple(found))


def ratios(values: Values, above: Iterable[str], below: Iterable[str]) -> list[float]:
    """Divide, seed by seed, the smallest value of the models ``above`` by the largest one of those ``below``."""
    smallest = np.min([values[name] for name in above], axis=0)
    largest = np.max([values[name] for name in below], axis=0)
    return [float(ratio) for ratio in smallest / largest]


def settings_of(measured: Iterable[Blockwise]) -> dict[str, object]:
    """Return what the numbers of these models depend on, for a manifest."""
    return {
        one.entry.name: {
            **{key: one.spectra[0].settings.get(key) for key in ("steps", "probes", "precision")},
            "blocks": list(one.spectra[0]),
            "parameters": one.entry.parameters,
            "data": one.entry.data(0).source,
        }
        for one in measured
    }


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and their standard deviation; that of a single seed is nan."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
