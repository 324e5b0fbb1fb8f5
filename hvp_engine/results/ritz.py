"""Ritz values of all streams of a block at once, with their weights and residuals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.smoothing import FloatArray

BoolArray = NDArray[np.bool_]

_ROUNDING = 1e-7  # relative error of a product in single precision


@dataclass(frozen=True, eq=False)
class Ritz:
    """Eigenvalues of the tridiagonal matrices, ascending, and what is known of each; all of shape (probes, m).

    Attributes:
        nodes: Ritz values; past the steps of a probe they repeat its largest one.
        weights: Squared first components of the eigenvectors, zero there.
        residuals: ``|H y - x y|`` of every Ritz pair (x, y), no smaller than ``floor``; zero there.
        gaps: Distances to the nearest other Ritz value of the same probe; zero there, and where there is no other.
        used: Whether the entry is a Ritz value.
        floor: How far an eigenvalue of each probe may be off by the error of the products, of shape (probes, 1).
    """

    nodes: FloatArray
    weights: FloatArray
    residuals: FloatArray
    gaps: FloatArray
    used: BoolArray
    floor: FloatArray


def ritz(found: Coefficients) -> Ritz:
    """Decompose the tridiagonal matrices.

    The residual of a pair is beta_m times the last component of its eigenvector, which is the first one of the same
    matrix read backwards; both go through one batch of implicit QL, without any other component.
    """
    alphas, betas, steps = found.alphas, found.betas, found.steps
    probes, m = alphas.shape
    row, column = np.arange(probes)[:, None], np.arange(m)
    backwards = np.clip(steps[:, None] - 1 - column, 0, None)
    off = np.clip(steps[:, None] - 2 - column[: m - 1], 0, None)
    nodes, weights = tridiagonal_quadrature(
        np.concatenate((alphas, alphas[row, backwards])),
        np.concatenate((betas, betas[row, off] if m > 1 else betas)),
        np.concatenate((steps, steps)),
    )
    nodes, weights, last = nodes[:probes], weights[:probes], np.sqrt(weights[probes:])
    used = column < steps[:, None]
    floor = max(found.noise, _ROUNDING) * np.abs(nodes).max(axis=1, keepdims=True)
    residuals = np.maximum(found.residuals[:, None] * last, floor)
    return Ritz(nodes, weights, np.where(used, residuals, 0.0), _gaps(nodes, used), used, floor)


def averaged_rule(found: Coefficients) -> tuple[FloatArray, FloatArray]:
    """Compute nodes and weights of the averaged Gauss rules with ``2 steps - 1`` nodes.

    Their matrix is the first ``steps`` rows, then beta_m, then the rows before the last in reverse (Spalevic, "On
    generalized averaged Gaussian formulas", Math. Comp. 76, 2007): as exact as the Gauss rule for polynomials, and far
    less hit by where a node happens to fall. Where the residual is 0 it is the Gauss rule.

    Returns:
        Nodes and weights, float64 of shape (probes, 2 m - 1), padded as in ``Ritz``.
    """
    alphas, betas, steps = found.alphas, found.betas, found.steps
    probes, m = alphas.shape
    if m == 1:
        return alphas.copy(), np.ones((probes, 1))
    row, column, last = np.arange(probes)[:, None], np.arange(2 * m - 1), steps[:, None] - 1
    diagonal = alphas[row, np.clip(last - abs(column - last), 0, None)]
    place = column[:-1]
    index = np.where(place < last, place, 2 * last - 1 - place)
    off = np.where(place == last, found.residuals[:, None], betas[row, np.clip(index, 0, m - 2)])
    return tridiagonal_quadrature(diagonal, off, 2 * steps - 1)


def _gaps(nodes: FloatArray, used: BoolArray) -> FloatArray:
    between = np.where(used[:, 1:], np.diff(nodes, axis=1), np.inf)
    edge = np.full((len(nodes), 1), np.inf)
    gaps = np.minimum(np.concatenate((edge, between), axis=1), np.concatenate((between, edge), axis=1))
    return np.where(used & np.isfinite(gaps), gaps, 0.0)
