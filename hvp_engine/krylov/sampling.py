"""Products with random vectors, block by block: what is next to be multiplied, and what was found.

A :class:`Sampler` is asked for vectors until it has none left. Hutchinson's (Comm. Stat. Simul. 18, 1989) multiplies
random vectors, the diagonal's by the estimator of Bekas, Kokiopoulou & Saad (Appl. Numer. Math. 57, 2007);
:mod:`hvp_engine.krylov.range_sketch` multiplies a basis of their products, too; small blocks are multiplied out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hvp_engine.errors import NotFiniteError, not_finite
from hvp_engine.krylov.companions import BlockMatrix
from hvp_engine.krylov.probes import Distribution, probe
from hvp_engine.results.estimate import Estimate, skewed, with_noise
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.sphere import of_forms, student

FEWEST = 4  # random vectors before the first look at what they show
BATCH = 8  # random vectors multiplied at once, at most
PIECE = 1 << 16  # entries of each vector that are widened to float64 at a time


@dataclass(frozen=True)
class Sampled:
    """What a sampler samples.

    Attributes:
        block: Name of the block.
        numel: Length of its vectors.
        most: Largest number of random vectors.
        seed: Of the job.
        diagonal: Whether the diagonal is wanted, for which vectors are signs; else they are uniform on the sphere.
        norm: Whether the Frobenius norm is wanted.
        noise: Relative error of one product.
        dtype: Of vectors and products.
        device: Where they are.
    """

    block: str
    numel: int
    most: int
    seed: int
    diagonal: bool
    norm: bool
    noise: float
    dtype: torch.dtype
    device: torch.device

    @property
    def distribution(self) -> Distribution:
        """Of the random vectors."""
        return "rademacher" if self.diagonal else "gaussian"

    def vector(self, number: int) -> Tensor:
        """Return a random vector of unit length, (numel,), where the products are."""
        return probe(self.seed, self.block, number, self.numel, self.distribution, self.dtype).to(self.device)

    def refuse_nonfinite(self, *found: Tensor) -> None:
        """Raise where products were not finite, by what was made of them.

        Raises:
            NotFiniteError: They were not.
        """
        if not all(bool(values.isfinite().all()) for values in found):
            raise NotFiniteError(not_finite(f"of block {self.block!r}", " with a random vector"))


class Sampler(ABC):
    """The products of one block as they come. All that a checkpoint needs stands in ``tensors`` and ``kept``."""

    method: ClassVar[str]

    def __init__(self, of: Sampled) -> None:
        """Begin with none."""
        self.of = of
        self.counts = torch.zeros(3, dtype=torch.int64, device="cpu")  # random vectors, all products, whether stopped
        self.variances = torch.zeros(2 if of.diagonal else 0, of.numel, dtype=torch.float64, device="cpu")

    @property
    def probes(self) -> int:
        """Random vectors multiplied."""
        return int(self.counts[0])

    @property
    def done(self) -> int:
        """Products taken."""
        return int(self.counts[1])

    @property
    def stopped(self) -> bool:
        """Whether it was found to be enough."""
        return bool(self.counts[2])

    def stop(self) -> None:
        """Take no further vector."""
        self.counts[2] = 1

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: written to where one is restored. They are on the CPU."""
        return {"counts": self.counts, **({"diagonal": self.variances} if self.of.diagonal else {})}

    @property
    def kept(self) -> dict[str, Tensor]:
        """Vectors that a checkpoint keeps until the sampler is done; views."""
        return {}

    @property
    @abstractmethod
    def left(self) -> int:
        """Products that are left at most."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether what was multiplied so far can be looked at."""

    @abstractmethod
    def vectors(self) -> Tensor:
        """Return what is next to be multiplied, (k, numel)."""

    @abstractmethod
    def take(self, vectors: Tensor, products: Tensor) -> None:
        """Record products.

        Raises:
            NotFiniteError: One is not finite.
        """

    def look(self) -> None:
        """Find what takes the vectors to find; estimates say what the latest look saw, and outlive the vectors."""
        return None

    @abstractmethod
    def trace(self) -> Estimate:
        """Estimate the trace."""

    @abstractmethod
    def square(self) -> Estimate:
        """Estimate the trace of the square; only where the norm is wanted."""

    @abstractmethod
    def norm(self) -> float:
        """Return the Frobenius norm, about."""

    @property
    def diagonal(self) -> tuple[FloatArray, FloatArray]:
        """The diagonal and the variance of each entry, (numel,) float64."""
        value, variance = self.variances.numpy()
        return value, variance

    def release(self) -> None:
        """Free the vectors; estimates stay."""
        return None


class PlainSampler(Sampler):
    """Hutchinson's: forms of random vectors and lengths of their products; of signs the estimates of the diagonal."""

    method = "hutchinson"

    def __init__(self, of: Sampled) -> None:
        """Begin with none."""
        super().__init__(of)
        self.values = torch.zeros(of.most, 2, dtype=torch.float64, device="cpu")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Counts, forms and lengths, and the sums of the diagonal."""
        return {**super().tensors, "values": self.values}

    @property
    def left(self) -> int:
        """Products that are left at most."""
        return 0 if self.stopped else self.of.most - self.probes

    @property
    def complete(self) -> bool:
        """Whether there are products."""
        return self.probes > 1

    def vectors(self) -> Tensor:
        """Return the next random vectors."""
        first = self.probes
        return torch.stack([self.of.vector(first + i) for i in range(min(batch(first), self.left))])

    def take(self, vectors: Tensor, products: Tensor) -> None:
        """Record forms and lengths, and the diagonal as a running mean and its variance (Welford)."""
        first = self.probes
        for index, (vector, product) in enumerate(zip(vectors, products, strict=True), first):
            wide = product.double()
            signs = vector.double()
            self.values[index] = torch.stack([signs @ wide, wide @ wide]).cpu()
            if self.of.diagonal:
                add_sample(self.variances, (signs * wide).mul_(self.of.numel).cpu(), index)
        self.of.refuse_nonfinite(self.values)
        self.counts[:2] += len(vectors)

    def trace(self) -> Estimate:
        """Estimate the trace by the mean of the forms, with the variance of vectors of the sphere."""
        numel, (forms, lengths) = self.of.numel, self._found
        law = of_forms(numel, forms, lengths)
        half = student(law.freedom) * math.sqrt(law.variance)
        return with_noise(numel * law.value, math.sqrt(law.variance), half, self.of.noise * self.norm(), self.method)

    def square(self) -> Estimate:
        """Estimate the trace of the square by the mean of the lengths, with the variance of their spread."""
        count, lengths = self.probes, self.of.numel * self._found[1]
        stderr = float(lengths.std(ddof=1)) / math.sqrt(count)
        noise = 2.0 * self.of.noise * self.norm() ** 2
        return skewed(with_noise(float(lengths.mean()), stderr, student(count - 1) * stderr, noise, self.method))

    def norm(self) -> float:
        """Return the Frobenius norm, about."""
        return math.sqrt(self.of.numel * float(self._found[1].mean()))

    @property
    def _found(self) -> FloatArray:
        """Forms and lengths, (2, probes)."""
        return self.values[: self.probes].numpy().T

    @property
    def diagonal(self) -> tuple[FloatArray, FloatArray]:
        """The mean over the vectors and its variance."""
        value, moment = self.variances.numpy()
        return value, moment / (self.probes * (self.probes - 1))


class WholeSampler(Sampler):
    """All columns of a small block."""

    method = "exact"

    def __init__(self, of: Sampled) -> None:
        """Begin with none."""
        super().__init__(of)
        self._matrix = BlockMatrix(of.numel, of.dtype, of.device)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Counts and columns."""
        return {**super().tensors, "rows": self._matrix.rows, "columns": self._matrix.done}

    @property
    def left(self) -> int:
        """Columns that are missing."""
        return self._matrix.left

    @property
    def complete(self) -> bool:
        """Whether no column is missing."""
        return self.left == 0

    def vectors(self) -> Tensor:
        """Return the next unit vectors."""
        return self._matrix.vectors()

    def take(self, vectors: Tensor, products: Tensor) -> None:
        """Record columns."""
        self.of.refuse_nonfinite(products)
        self._matrix.take(products)
        self.counts[1] += len(products)

    @property
    def matrix(self) -> FloatArray:
        """The symmetric part of the matrix, float64."""
        rows = self._matrix.rows.double().cpu().numpy()
        return np.asarray((rows + rows.T) / 2)

    def trace(self) -> Estimate:
        """Return the trace."""
        return with_noise(float(np.trace(self.matrix)), 0.0, 0.0, self.of.noise * self.norm(), self.method)

    def square(self) -> Estimate:
        """Return the trace of the square."""
        square = self.norm() ** 2
        return with_noise(square, 0.0, 0.0, 2.0 * self.of.noise * square, self.method)

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return float(np.linalg.norm(self.matrix))

    @property
    def diagonal(self) -> tuple[FloatArray, FloatArray]:
        """The diagonal, without error."""
        return np.ascontiguousarray(np.diagonal(self.matrix)), np.zeros(self.of.numel)


def batch(done: int) -> int:
    """Return how many random vectors come next: half as many as there are, so that looks are few."""
    return FEWEST if done == 0 else min(BATCH, max(2, done // 2))


def add_sample(mean_and_moment: Tensor, sample: Tensor, before: int) -> None:
    """Add a sample to a running mean and the sum of squares around it (Welford, Technometrics 4, 1962).

    Args:
        mean_and_moment: (2, numel) float64, changed in place.
        sample: (numel,) float64.
        before: How many samples were added before.
    """
    mean, moment = mean_and_moment
    apart = sample - mean
    mean += apart / (before + 1)
    moment += apart * (sample - mean)
