"""Labelled inputs held in memory, drawn and put into batches by seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.source import Source

_APART = 1 << 21  # from the seeds of models, and of batches that are drawn from a data set


class Samples(NamedTuple):
    """Inputs with one class each.

    Attributes:
        inputs: Float32, (samples, ...).
        labels: Classes (samples,) int64.
    """

    inputs: Tensor
    labels: Tensor

    def take(self, indices: Tensor) -> Samples:
        """Take samples by their indices."""
        return Samples(self.inputs[indices], self.labels[indices])

    def draw(self, count: int, seed: int) -> Samples:
        """Draw samples at random, none twice: the same ones for the same seed.

        Raises:
            ConfigurationError: There are too few.
        """
        return self.take(drawn(len(self.labels), count, seed))

    def batches(self, count: int, seed: int) -> Iterator[Samples]:
        """Draw batches without end, every sample once before any comes again: the same ones for the same seed.

        Raises:
            ConfigurationError: There are too few samples for one batch.
        """
        for indices in shuffled(len(self.labels), count, seed):
            yield self.take(indices)


@dataclass(frozen=True)
class Images:
    """Pictures in two parts.

    Attributes:
        train: Pictures (samples, channels, height, width) to train on.
        test: Other ones.
        classes: Names of the classes.
        source: Where they come from.
    """

    train: Samples
    test: Samples
    classes: tuple[str, ...]
    source: Source


def generator_of_data(seed: int) -> torch.Generator:
    """Make the generator of numbers that are data.

    A model of the same seed draws its weights from ``manual_seed(seed)``: numbers of that stream would be correlated
    with its weights.
    """
    return torch.Generator().manual_seed(seed + _APART)


def drawn(total: int, count: int, seed: int) -> Tensor:
    """Draw ``count`` of ``total`` indices at random, none twice.

    Raises:
        ConfigurationError: There are too few.
    """
    if count > total:
        raise ConfigurationError(f"There are {total} samples, too few for {count}; ask for fewer.")
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]


def shuffled(total: int, count: int, seed: int) -> Iterator[Tensor]:
    """Cut one random order of all indices after another into batches; what is left over of an order is dropped.

    Raises:
        ConfigurationError: There are too few for one batch.
    """
    if count > total:
        raise ConfigurationError(f"There are {total} samples, too few for a batch of {count}; ask for fewer.")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(total, generator=generator)
        yield from torch.split(order[: total - total % count], count)
