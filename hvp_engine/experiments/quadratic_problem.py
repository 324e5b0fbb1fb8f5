"""Quadratics with blocks, and what gradient descent and Adam do on them, in closed form through eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Counts = NDArray[np.int64]

CONDITION = 5000.0
HETEROGENEOUS = ((1.0, 2.0, 3.0), (99.0, 100.0, 101.0), (4998.0, 4999.0, 5000.0))
HOMOGENEOUS = ((1.0, 99.0, 4998.0), (2.0, 100.0, 4999.0), (3.0, 101.0, 5000.0))
"""Eigenvalues by block: cases 3 and 4 of arXiv 2402.16788, figure 8, and their condition number."""

REDUCTION = 1e-6  # of the gradient's norm
_MOST_DOUBLINGS = 60


@dataclass(frozen=True)
class Quadratics:
    """Problems min x'Hx / 2, one per seed, whose matrices are block-diagonal with blocks of one size.

    Attributes:
        matrices: The blocks, float64 of shape (seeds, blocks, n, n).
        starts: Where the minimisation begins, (seeds, blocks, n).
    """

    matrices: FloatArray
    starts: FloatArray

    @classmethod
    def drawn(cls, eigenvalues: ArrayLike, seeds: int) -> Quadratics:
        """Draw problems 0 to ``seeds - 1`` with given eigenvalues.

        The eigenvectors of a block are those of A A', with A Gaussian and twice as wide as high; starts are Gaussian.

        Args:
            eigenvalues: Of each block, (blocks, n).
            seeds: How many problems.
        """
        spectra = np.asarray(eigenvalues, dtype=np.float64)
        blocks, size = spectra.shape
        generators = [np.random.default_rng(seed) for seed in range(seeds)]
        wide = np.stack([generator.standard_normal((blocks, size, 2 * size)) for generator in generators])
        starts = np.stack([generator.standard_normal((blocks, size)) for generator in generators])
        vectors = np.linalg.eigh(wide @ wide.swapaxes(-1, -2)).eigenvectors
        return cls(vectors.swapaxes(-1, -2) @ (spectra[..., None] * vectors), starts)

    @cached_property
    def gradients(self) -> FloatArray:
        """The gradients at the starts, (seeds, blocks, n)."""
        return np.asarray((self.matrices @ self.starts[..., None])[..., 0])

    @cached_property
    def gradient_descent(self) -> Linear:
        """Gradient descent with its best constant step."""
        return Linear.of(self, np.ones_like(self.starts))

    @cached_property
    def adam(self) -> Linear:
        """Adam with beta1 = 0, beta2 = 1 and v0 the squared first gradient, with its best constant step."""
        return Linear.of(self, np.abs(self.gradients))


@dataclass(frozen=True)
class Linear:
    """The iteration x <- x - step D^-1 H x of every seed: the gradient after k steps is M diag(rates^k) c.

    Attributes:
        eigenvalues: Of D^-1 H, (seeds, blocks, n), ascending in a block.
        modes: M, (seeds, blocks, n, n).
        shares: c, (seeds, blocks, n).
    """

    eigenvalues: FloatArray
    modes: FloatArray
    shares: FloatArray

    @classmethod
    def of(cls, problems: Quadratics, diagonal: FloatArray) -> Linear:
        """Decompose D^-1 H, which is similar to the symmetric D^-1/2 H D^-1/2."""
        root = np.sqrt(diagonal)
        scaled = problems.matrices / (root[..., :, None] * root[..., None, :])
        values, vectors = np.linalg.eigh(scaled)
        shares = values * (vectors.swapaxes(-1, -2) @ (root * problems.starts)[..., None])[..., 0]
        return cls(values, root[..., None] * vectors, shares)

    @cached_property
    def step(self) -> FloatArray:
        """The best constant step, 2 / (smallest + largest eigenvalue), (seeds,)."""
        return np.asarray(2.0 / (self.eigenvalues.min(axis=(1, 2)) + self.eigenvalues.max(axis=(1, 2))))

    @cached_property
    def condition(self) -> FloatArray:
        """The condition number of D^-1 H over all blocks, (seeds,)."""
        return np.asarray(self.eigenvalues.max(axis=(1, 2)) / self.eigenvalues.min(axis=(1, 2)))

    @cached_property
    def rates(self) -> FloatArray:
        """What a step multiplies each mode by, (seeds, blocks, n)."""
        return 1.0 - self.step[:, None, None] * self.eigenvalues

    def norms(self, steps: int | Counts) -> FloatArray:
        """Return the gradient's norm after so many steps, one number for all seeds or one each: (seeds,)."""
        powers = np.abs(self.rates) ** np.reshape(steps, (-1, 1, 1))
        odd = np.reshape(np.asarray(steps) % 2 == 1, (-1, 1, 1))
        parts = self.shares * np.where(odd, np.sign(self.rates), 1.0) * powers
        return np.asarray(np.linalg.norm((self.modes @ parts[..., None])[..., 0], axis=(1, 2)))

    def iterations(self) -> Counts:
        """Return after how many steps the gradient's norm has fallen by 1e-6, by bisection: (seeds,)."""
        goal = REDUCTION * self.norms(0)
        low = np.zeros(len(goal), dtype=np.int64)
        high = np.ones_like(low)
        for _ in range(_MOST_DOUBLINGS):
            above = self.norms(high) > goal
            if not above.any():
                break
            low, high = np.where(above, high, low), np.where(above, 2 * high, high)
        while (high - low > 1).any():
            middle = (low + high) // 2
            above = self.norms(middle) > goal
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return high


def adam_with_memory(problems: Quadratics, beta2: float, steps: int) -> FloatArray:
    """Run Adam without momentum step by step, v0 the squared first gradient, with the best step of beta2 = 1.

    Args:
        problems: Their closed form holds for beta2 = 1.
        beta2: Memory of the squared gradients.
        steps: How many.

    Returns:
        The gradient's norm before each step and after the last, (seeds, steps + 1).
    """
    x, gradient = problems.starts.copy(), problems.gradients
    second, step = gradient**2, problems.adam.step[:, None, None]
    norms = [np.linalg.norm(gradient, axis=(1, 2))]
    for _ in range(steps):
        second = beta2 * second + (1.0 - beta2) * gradient**2
        x = x - step * gradient / np.sqrt(second)
        gradient = (problems.matrices @ x[..., None])[..., 0]
        norms.append(np.linalg.norm(gradient, axis=(1, 2)))
    return np.stack(norms, axis=1)
