"""The spectrum of one block: its quadratures, and what they estimate."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature
from hvp_engine.results import bands, extremes, moments, smoothing
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.estimate import Band, Estimate
from hvp_engine.results.jacobi import jacobi_matrix
from hvp_engine.results.reading import Reading, ReadingName, is_gauss
from hvp_engine.results.smoothed import Smoother
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.spectrum_checks import (
    SINGLE_FIELDS,
    check_quadrature,
    check_remainder,
    check_tridiagonal,
    checked_array,
    checked_numel,
    checked_shift,
    same_quadrature,
)
from hvp_engine.results.sphere import Function

_LARGEST_ORDER = 1000  # of a moment


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
        steps: Lanczos steps of each probe, int64 of shape (probes,). A probe of n steps knows every eigenvalue.
        residuals: Norm of what was left after each probe's last step, float64 of shape (probes,): 0 where its Krylov
            space is exhausted, nan where it is not known; by default it is not.
        singles: One row per single product with ``h = (I - QQ')g``, where Q are the first ``deflated`` Lanczos vectors
            of probe 0, q is the one after them and g a further probe: ``h'Hh / h'h``, ``|Hh|^2 / h'h`` and
            ``(q'h)^2 / h'h``, float64 of shape (products, 3).
        deflated: How many vectors of probe 0 the single products are orthogonal to.
        noise: Relative error of one product, ``|error| / |H v|``, beyond the rounding of float32.
        reorthogonalized: Whether the Lanczos vectors were kept orthogonal.

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
    residuals: FloatArray = field(default_factory=lambda: np.empty(0))
    singles: FloatArray = field(default_factory=lambda: np.empty((0, SINGLE_FIELDS)))
    deflated: int = 0
    noise: float = 0.0
    reorthogonalized: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "numel", checked_numel(self.name, self.numel))
        if np.size(self.residuals) == 0:
            object.__setattr__(self, "residuals", np.full(np.shape(self.steps), np.nan))
        for key in ("alphas", "betas", "nodes", "weights", "steps", "residuals", "singles"):
            array = checked_array(self.name, key, getattr(self, key))
            array.setflags(write=False)
            object.__setattr__(self, key, array)
        check_tridiagonal(self.name, self.alphas, self.betas, self.steps)
        check_quadrature(self.name, self.alphas, self.nodes, self.weights, self.steps)
        check_remainder(self.name, self.probes, self.residuals, self.singles, self.noise)

    @classmethod
    def from_tridiagonal(
        cls,
        name: str,
        numel: int,
        alphas: ArrayLike,
        betas: ArrayLike,
        steps: ArrayLike,
        device: torch.device | None = None,
        *,
        residuals: ArrayLike = (),
        singles: ArrayLike | None = None,
        deflated: int = 0,
        noise: float = 0.0,
        reorthogonalized: bool = True,
    ) -> Spectrum:
        """Build a spectrum from the Lanczos coefficients; entries past ``steps`` are ignored.

        Args:
            name: Name of the block.
            numel: Its number of parameters.
            alphas: Diagonals, shape (probes, m).
            betas: Off-diagonals, shape (probes, m - 1).
            steps: Lanczos steps of each probe, shape (probes,), from 1 to m.
            device: Where the vectors of the job live, whose kernels then compute the quadrature; None for the host.
            residuals: See the attributes; empty where they are not known.
            singles: See the attributes; None for none.
            deflated: See the attributes.
            noise: See the attributes.
            reorthogonalized: See the attributes.

        Raises:
            ConfigurationError: If shapes disagree, a step count is out of range, or a coefficient is not
                finite or no number at all.
        """
        numel = checked_numel(name, numel)
        alpha, beta = checked_array(name, "alphas", alphas), checked_array(name, "betas", betas)
        count = checked_array(name, "steps", steps)
        if alpha.ndim == 2 and beta.ndim == 2 and count.ndim == 1 and len(alpha) == len(beta) == len(count):
            alpha[np.arange(alpha.shape[1]) >= count[:, None]] = 0.0
            beta[np.arange(beta.shape[1]) >= count[:, None] - 1] = 0.0
        check_tridiagonal(name, alpha, beta, count)
        nodes, weights = tridiagonal_quadrature(alpha, beta, count, device)
        return cls(
            name,
            numel,
            alpha,
            beta,
            nodes,
            weights,
            count,
            checked_array(name, "residuals", residuals),
            checked_array(name, "singles", np.empty((0, SINGLE_FIELDS)) if singles is None else singles),
            deflated,
            noise,
            reorthogonalized,
        )

    @classmethod
    def exact(cls, name: str, numel: int, eigenvalues: ArrayLike, noise: float = 0.0) -> Spectrum:
        """Build the spectrum of a block whose eigenvalues are all known: one probe of n steps, equally weighted.

        Args:
            name: Name of the block.
            numel: Its number of parameters.
            eigenvalues: All of them, shape (numel,), in any order.
            noise: See the attributes.

        Raises:
            ConfigurationError: If there are not ``numel`` finite eigenvalues.
        """
        values = np.sort(checked_array(name, "eigenvalues", eigenvalues))
        if values.shape != (checked_numel(name, numel),) or not np.isfinite(values).all():
            raise ConfigurationError(
                f"Block {name!r}: there must be {numel} finite eigenvalues, not an array of shape {values.shape}."
            )
        alphas, betas = jacobi_matrix(values)
        return cls.from_tridiagonal(name, numel, alphas[None], betas[None], [numel], residuals=[0.0], noise=noise)

    @property
    def coefficients(self) -> Coefficients:
        """What the streams found, for readings and stopping rules."""
        return Coefficients(
            self.numel, self.alphas, self.betas, self.steps, self.residuals, self.noise, self.reorthogonalized
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
        again = tridiagonal_quadrature(self.alphas, self.betas, self.steps)
        return same_quadrature(self.nodes, self.weights, *again)

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

    def density(
        self, grid: ArrayLike | None = None, sigma: float | None = None, reading: ReadingName = "auto"
    ) -> tuple[FloatArray, FloatArray]:
        """Smooth into one spectral density.

        Args:
            grid: As in ``probe_densities``.
            sigma: As in ``probe_densities``.
            reading: ``"auto"`` gives the values of ``density_band``; ``"gauss"`` the mean of ``probe_densities``.

        Returns:
            The grid (points,) and the density (points,), float64.

        Raises:
            ConfigurationError: As ``probe_densities`` does, or if there is no such reading.
        """
        if is_gauss(reading):
            points, densities = self.probe_densities(grid, sigma)
            return points, densities.mean(axis=0)
        band = self.density_band(grid, sigma)
        return band.points, band.value

    def density_band(self, grid: ArrayLike | None = None, sigma: float | None = None) -> Band:
        """Smooth into one spectral density, with a 95 % bar at every point; nan where too few steps give none.

        It lies between Gaussians on averaged nodes and a smooth distribution function, see
        ``hvp_engine.results.smoothed``, integrated over grid cells as ``probe_densities`` are. With fewer than some 20
        steps single eigenvalues are not told from each other, and where they are the bar does not say.

        Args:
            grid: As in ``probe_densities``.
            sigma: As in ``probe_densities``.

        Raises:
            ConfigurationError: As ``probe_densities`` does.
        """
        points = None if grid is None else smoothing.check_grid(grid)
        width = None if sigma is None else smoothing.check_sigma(sigma)
        return bands.density_band(self.smoother, self.numel, points, width)

    def cdf(self, points: ArrayLike) -> Band:
        """Estimate the share of eigenvalues at or below each point, with 95 % bars that hold for any number of steps.

        Args:
            points: Finite numbers, shape (points,).

        Raises:
            ConfigurationError: If points are something else.
        """
        wanted = smoothing.check_numbers("points", points)
        if wanted.ndim != 1 or not np.isfinite(wanted).all():
            raise ConfigurationError(f"points must be a vector of finite numbers, not an array of {wanted.shape}.")
        return bands.cdf_band(self.reading, wanted)

    @cached_property
    def smoother(self) -> Smoother:
        """How the block is smoothed: what densities and Jensen-Shannon divergences start from."""
        return Smoother(self.reading, self.name)

    @cached_property
    def reading(self) -> Reading:
        """How the coefficients and the single products are read: what estimates and bars start from."""
        return Reading(self.coefficients, self.singles, self.deflated)

    def moment(self, k: int, reading: ReadingName = "auto") -> Estimate:
        """Estimate ``tr(H^k) / n``, with a 95 % bar.

        Args:
            k: Order of the moment.
            reading: ``"auto"`` takes what is known of single eigenvalues into account, and single products, and one
                probe is enough for a bar; ``"gauss"`` is the mean over probes of ``sum_j w_j x_j^k``, with the bar of
                their spread, which a single probe has not.

        Raises:
            ConfigurationError: If ``k`` is not a non-negative integer, or there is no such reading.
        """
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or not 0 <= k <= _LARGEST_ORDER:
            raise ConfigurationError(f"The order of a moment must be an integer from 0 to {_LARGEST_ORDER}, not {k!r}.")
        k = int(k)
        if is_gauss(reading):
            return moments.of_probes((self.weights * self.nodes**k).sum(axis=1))
        return moments.scaled(moments.power_sum(self.reading, k), 1.0 / self.numel)

    def trace(self, reading: ReadingName = "auto") -> Estimate:
        """Estimate ``tr(H) = n * moment(1)``, as ``moment`` does."""
        return moments.scaled(self.moment(1, reading), float(self.numel))

    def frobenius_norm(self, reading: ReadingName = "auto") -> Estimate:
        """Estimate the Frobenius norm, ``sqrt(n * moment(2))``, as ``moment`` does."""
        return moments.root(moments.scaled(self.moment(2, reading), float(self.numel)))

    def apply(self, function: Function, reading: ReadingName = "auto") -> Estimate:
        """Estimate ``tr f(H)``, with a 95 % bar that counts what more steps could change.

        Args:
            function: f, which gets NumPy arrays of eigenvalues and returns arrays of the same shape. For the bar it is
                asked for values beside those found, too, as far as the error of the products reaches.
            reading: As in ``moment``.

        Raises:
            ConfigurationError: If f does not give one finite real number for each, or there is no such reading.
        """
        return self._trace(lambda x: moments.evaluated(function, x), reading)

    trace_of = apply

    def logdet(self, shift: float = 0.0, reading: ReadingName = "auto") -> Estimate:
        """Estimate ``log det(H + shift I) = tr log(H + shift I)``, with a 95 % bar as that of ``apply``.

        Args:
            shift: Added to every eigenvalue (a prior precision, a damping), so that all of them are positive.
            reading: As in ``moment``.

        Raises:
            ConfigurationError: If an eigenvalue that was found is not above ``-shift``, ``shift`` is no finite number,
                or there is no such reading. What was not found is not known: ``smallest()`` has a bar.
        """
        moved = checked_shift(self.name, shift, self.extremes()[0])
        return self._trace(lambda x: moments.logarithm(x + moved), reading)

    def _trace(self, f: Function, reading: str) -> Estimate:
        if is_gauss(reading):
            return moments.scaled(moments.of_probes((self.weights * f(self.nodes)).sum(axis=1)), float(self.numel))
        return moments.trace_of(self.reading, f)

    def largest(self, k: int = 1, reading: ReadingName = "auto") -> Estimate:
        """Find the k-th largest eigenvalue, with a bar that its residual gives; it has no standard error.

        Args:
            k: Its rank, 1 for the largest.
            reading: ``"gauss"`` gives the k-th largest node of the probe whose node is larger than that of the
                others, without a bar: no more than the eigenvalue.

        Raises:
            ConfigurationError: If k values are not known as single eigenvalues on that side, k is no positive
                integer, or there is no such reading.
        """
        gauss = is_gauss(reading)
        return extremes.of_nodes(self.nodes, self.steps, k, 1) if gauss else extremes.largest(self.reading, k)

    def smallest(self, k: int = 1, reading: ReadingName = "auto") -> Estimate:
        """Find the k-th smallest eigenvalue; arguments and errors are those of ``largest``."""
        gauss = is_gauss(reading)
        return extremes.of_nodes(self.nodes, self.steps, k, -1) if gauss else extremes.smallest(self.reading, k)

    def outliers(self) -> Estimate:
        """Count the eigenvalues that lie more than six standard deviations of the bulk from its mean.

        The bulk is what is left when those are left out, again and again; see ``hvp_engine.results.extremes.outliers``.
        """
        return extremes.outliers(self.reading)

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and largest node over all probes; they lie inside the range of the eigenvalues."""
        return float(self.nodes.min()), float(self.nodes.max())

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        figsize: tuple[float, float] | None = None,
        sigma: float | None = None,
        scale: str = "linear",
        ax: Any = None,
    ) -> Any:
        """Draw the density; arguments, result and errors are those of ``Spectra.plot``."""
        from hvp_engine.results.figures import densities  # noqa: PLC0415 - matplotlib takes half a second to import

        return densities.plot_spectra({self.name: self}, {}, path, figsize=figsize, sigma=sigma, scale=scale, ax=ax)
