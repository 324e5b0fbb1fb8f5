"""The spectrum of one block: its quadratures, and what they estimate."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature
from hvp_engine.results import smoothing
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.smoothing import FloatArray

_MASS_TOLERANCE = 1e-6
_MOST_PARAMETERS = (1 << 62) - 1
# How far two eigensolvers may be apart, relative to the norm of the matrix: a few hundred units of rounding.
_SAME_NODE = 1e-11
# An eigenvector is known to rounding over the gap to its neighbours, so the weights of closer nodes count together.
_GAP, _SAME_WEIGHT = 1e-5, 1e-7


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Lanczos quadratures of one block's Hessian ``H`` (n x n), one for each probe.

    A probe ``v`` is a unit vector with ``E[v v'] = I / n``, and its quadrature ``sum_j w_j f(x_j)``, exact
    for every polynomial ``f`` of degree below ``2 * steps``, approximates ``v' f(H) v`` (Golub and Meurant,
    "Matrices, Moments and Quadrature with Applications", 2010). The mean over probes estimates ``tr f(H) /
    n``: stochastic Lanczos quadrature (Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic
    Lanczos quadrature", 2017).

    All arrays are read-only. A probe that ended early is padded from ``steps[probe]`` on: nodes repeat the
    largest node, weights, alphas and betas are zero.

    Attributes:
        name: Name of the block.
        numel: Its number of parameters, n.
        alphas: Diagonals of the tridiagonal matrices, float64 of shape (probes, m).
        betas: Their off-diagonals, float64 of shape (probes, m - 1).
        nodes: Their eigenvalues in ascending order, float64 of shape (probes, m).
        weights: Squared first components of their eigenvectors, float64 of shape (probes, m).
        steps: Lanczos steps of each probe, int64 of shape (probes,).

    Raises:
        ConfigurationError: If a shape, a size or a value contradicts the description above.
    """

    name: str
    numel: int
    alphas: FloatArray
    betas: FloatArray
    nodes: FloatArray
    weights: FloatArray
    steps: NDArray[np.int64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "numel", _checked_numel(self.name, self.numel))
        for field in ("alphas", "betas", "nodes", "weights", "steps"):
            array = _checked_array(self.name, field, getattr(self, field))
            array.setflags(write=False)
            object.__setattr__(self, field, array)
        _check_tridiagonal(self.name, self.alphas, self.betas, self.steps)
        self._check_quadrature()

    @classmethod
    def from_tridiagonal(
        cls,
        name: str,
        numel: int,
        alphas: ArrayLike,
        betas: ArrayLike,
        steps: ArrayLike,
        device: torch.device | None = None,
    ) -> Spectrum:
        """Build a spectrum from the Lanczos coefficients; entries past ``steps`` are ignored.

        Args:
            name: Name of the block.
            numel: Its number of parameters.
            alphas: Diagonals, shape (probes, m).
            betas: Off-diagonals, shape (probes, m - 1).
            steps: Lanczos steps of each probe, shape (probes,), from 1 to m.
            device: Where the vectors of the job live, whose kernels then compute the quadrature; None for the host.

        Raises:
            ConfigurationError: If shapes disagree, a step count is out of range, or a coefficient is not
                finite or no number at all.
        """
        numel = _checked_numel(name, numel)
        alpha, beta = _checked_array(name, "alphas", alphas), _checked_array(name, "betas", betas)
        count = _checked_array(name, "steps", steps)
        if alpha.ndim == 2 and beta.ndim == 2 and count.ndim == 1 and len(alpha) == len(beta) == len(count):
            alpha[np.arange(alpha.shape[1]) >= count[:, None]] = 0.0
            beta[np.arange(beta.shape[1]) >= count[:, None] - 1] = 0.0
        _check_tridiagonal(name, alpha, beta, count)
        nodes, weights = tridiagonal_quadrature(alpha, beta, count, device)
        return cls(name, numel, alpha, beta, nodes, weights, count)

    def _check_quadrature(self) -> None:
        for field in ("nodes", "weights"):
            array = getattr(self, field)
            if array.shape != self.alphas.shape:
                raise ConfigurationError(
                    f"Block {self.name!r}: {field} have shape {array.shape}, but alphas {self.alphas.shape}; "
                    "build the spectrum with Spectrum.from_tridiagonal."
                )
            if not np.isfinite(array).all():
                raise ConfigurationError(f"Block {self.name!r}: {field} are not all finite; run the block again.")
        if (np.diff(self.nodes, axis=1) < 0.0).any():
            raise ConfigurationError(
                f"Block {self.name!r}: the nodes of a probe must ascend; build the spectrum with "
                "Spectrum.from_tridiagonal."
            )
        padding = np.arange(self.alphas.shape[1]) >= self.steps[:, None]
        excess = abs(self.weights.sum(axis=1) - 1.0)
        if self.weights.min() < 0.0 or self.weights[padding].any() or excess.max() > _MASS_TOLERANCE:
            raise ConfigurationError(
                f"Block {self.name!r}: the weights of a probe must be non-negative, sum to 1 and be 0 "
                "past its steps; build the spectrum with Spectrum.from_tridiagonal."
            )

    @property
    def probes(self) -> int:
        """Number of probes."""
        return int(self.alphas.shape[0])

    @property
    def is_quadrature(self) -> bool:
        """Whether nodes and weights are those of alphas and betas, computed again on the host, but for rounding.

        Raises:
            HvpEngineError: The eigenvalue iteration did not converge.
        """
        nodes, weights = tridiagonal_quadrature(self.alphas, self.betas, self.steps)
        scale = np.abs(nodes).max(axis=1, keepdims=True)
        if (np.abs(nodes - self.nodes) > _SAME_NODE * scale).any():
            return False
        apart = np.diff(nodes, axis=1, append=np.inf) > _GAP * scale
        mass = np.abs(weights.cumsum(axis=1) - self.weights.cumsum(axis=1))
        return not (mass[apart] > _SAME_WEIGHT).any()

    @property
    def default_sigma(self) -> float:
        """Standard deviation of the default Gaussians: ``sqrt(1e-5)`` times the range of the nodes.

        Being relative, it stretches with the spectrum and keeps a flat block's shape. If the range is below
        1e-4 of the largest magnitude (a single atom), that much counts as the range.
        """
        return smoothing.smoothing_sigma(*self.extremes())

    def probe_densities(
        self, grid: ArrayLike | None = None, sigma: float | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Smooth each probe into a spectral density: Gaussians on its nodes, integrated exactly over grid cells.

        A grid point owns the cell between the midpoints to its neighbours, and the first and last one the
        tails too; the density is the cell's mass over its width inside the grid, so its trapezoidal integral
        is 1 on any grid.

        Args:
            grid: Strictly increasing points; by default 2,048 over the nodes of all probes and their tails.
            sigma: Standard deviation of the Gaussians; by default ``default_sigma``.

        Returns:
            The grid (points,) and the densities (probes, points), float64.

        Raises:
            ConfigurationError: If the grid is not finite and strictly increasing, or sigma is not positive.
        """
        width = self.default_sigma if sigma is None else smoothing.check_sigma(sigma)
        points = smoothing.smoothing_grid(*self.extremes(), width) if grid is None else smoothing.check_grid(grid)
        masses = smoothing.cell_masses(self.nodes, self.weights, points, width)
        return points, masses / smoothing.cell_widths(points)

    def density(self, grid: ArrayLike | None = None, sigma: float | None = None) -> tuple[FloatArray, FloatArray]:
        """Smooth into one spectral density: the mean of ``probe_densities``, whose arguments and errors it has.

        Returns:
            The grid (points,) and the density (points,), float64.
        """
        points, densities = self.probe_densities(grid, sigma)
        return points, densities.mean(axis=0)

    def moment(self, k: int) -> Estimate:
        """Estimate ``tr(H^k) / n`` by the mean over probes of ``sum_j w_j x_j^k``.

        Raises:
            ConfigurationError: If ``k`` is not a non-negative integer.
        """
        if not isinstance(k, int) or k < 0:
            raise ConfigurationError(f"The order of a moment must be a non-negative integer, not {k!r}.")
        values = (self.weights * self.nodes**k).sum(axis=1)
        stderr = float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.nan
        return Estimate(float(values.mean()), stderr)

    def trace(self) -> Estimate:
        """Estimate ``tr(H) = n * moment(1)``."""
        value, stderr = self.moment(1)
        return Estimate(self.numel * value, self.numel * stderr)

    def frobenius_norm(self) -> Estimate:
        """Estimate the Frobenius norm, ``sqrt(n * moment(2))``.

        Its standard error is the delta method's, ``n * stderr(moment(2)) / (2 * frobenius_norm)``.
        """
        value, stderr = self.moment(2)
        norm = math.sqrt(self.numel * value)
        return Estimate(norm, self.numel * stderr / (2.0 * norm) if norm > 0.0 else stderr)

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and largest node over all probes; they lie inside the range of the eigenvalues."""
        return float(self.nodes.min()), float(self.nodes.max())


def _checked_numel(name: str, numel: object) -> int:
    """Return a number of parameters as an int.

    Raises:
        ConfigurationError: It is none, or the name is no name.
    """
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"The name of a block must be a non-empty string, not {name!r}.")
    if any(map(_is_surrogate, name)):
        raise ConfigurationError(f"The name of a block must be text, and {name!r} has half a character; rename it.")
    whole = hasattr(numel, "__index__") and not isinstance(numel, bool)
    if not whole or not 1 <= operator.index(numel) <= _MOST_PARAMETERS:  # type: ignore[arg-type]
        raise ConfigurationError(f"Block {name!r}: numel must be at least 1, and an integer below 2**62.")
    return operator.index(numel)  # type: ignore[arg-type]


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def _checked_array(name: str, field: str, given: ArrayLike) -> NDArray[Any]:
    """Return a copy as float64, or as int64 for steps.

    Raises:
        ConfigurationError: It is no array of such numbers: ragged, of text, complex, with fractions of steps.
    """
    dtype = np.int64 if field == "steps" else np.float64
    try:
        raw = np.asarray(given)
        array = np.array(raw, dtype=dtype) if raw.dtype.kind in "biuf" else None
    except (TypeError, ValueError, RuntimeError, OverflowError):  # a tensor that needs gradients is a RuntimeError
        array = None
    if array is None or (field == "steps" and (array != raw).any()):
        raise ConfigurationError(
            f"Block {name!r}: {field} must be an array of {'integers' if field == 'steps' else 'real numbers'}, whose "
            f"rows are equally long; {type(given).__name__} does not make one."
        )
    return array


def _check_tridiagonal(name: str, alphas: FloatArray, betas: FloatArray, steps: NDArray[np.int64]) -> None:
    if alphas.ndim != 2 or 0 in alphas.shape:
        raise ConfigurationError(f"Block {name!r}: alphas must have shape (probes, m), not {alphas.shape}.")
    probes, m = alphas.shape
    for field, array, shape in (("betas", betas, (probes, m - 1)), ("steps", steps, (probes,))):
        if array.shape != shape:
            raise ConfigurationError(f"Block {name!r}: {field} must have shape {shape}, not {array.shape}.")
    if steps.min() < 1 or steps.max() > m:
        raise ConfigurationError(f"Block {name!r}: steps must lie between 1 and {m}, not {steps.tolist()}.")
    for field, array in (("alphas", alphas), ("betas", betas)):
        if not np.isfinite(array).all():
            raise ConfigurationError(
                f"Block {name!r}: not all {field} are finite; a product overflowed, or the loss "
                "is not smooth: try precision='fp64', or leave the block out."
            )
