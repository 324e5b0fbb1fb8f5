"""Trace and norm from single products with vectors that are orthogonal to a stream's basis.

In the basis Q of m Lanczos vectors and its complement, H is T, beta_m and a rest B. A probe h of the complement sees B
without T, so its error is that of B alone, whatever T is: repeated outliers included, of which T holds one copy each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.sphere import of_forms


@dataclass(frozen=True)
class Deflated:
    """What single products say, without any other reading of the stream.

    Attributes:
        products: Number of single products, s.
        trace: Unbiased estimate of ``tr H``.
        trace_variance: Its variance.
        freedom: How many squared normal variables that variance has seen, about.
        square: Unbiased estimate of ``tr H^2``.
        square_scatter: Variance of ``square`` times s, by the scatter between the products; 0 where there is but one.
        vectors: How many Lanczos vectors are taken out.
    """

    products: int
    trace: float
    trace_variance: float
    freedom: float
    square: float
    square_scatter: float
    vectors: int


def deflated(found: Coefficients, singles: FloatArray, vectors: int) -> Deflated | None:
    """Read the single products of a block; None where there are none, or the basis was not kept orthogonal.

    Args:
        found: The coefficients of the block's streams, of which probe 0 deflated the products.
        singles: As in ``Spectrum.singles``, shape (products, 3).
        vectors: How many Lanczos vectors they are orthogonal to.
    """
    if not len(singles) or not found.reorthogonalized or not 1 <= vectors <= found.steps[0]:
        return None
    forms, lengths, overlaps = singles.T
    if vectors == found.steps[0] - 1 and found.residuals[0] == 0.0:
        forms, lengths = _without_last(found, singles)
        vectors, overlaps = vectors + 1, np.zeros(len(singles))
    alphas, betas = found.alphas[0, :vectors], found.betas[0, : vectors - 1]
    rest = float(found.residuals[0] if vectors == found.steps[0] else found.betas[0, vectors - 1])
    left = found.numel - vectors
    if not left or np.isnan(rest):
        return None
    squares = np.maximum(lengths - rest**2 * overlaps, 0.0)  # |B h|^2 / h'h: what H h has along Q is beta_m q'h
    law, count = of_forms(left, forms, squares), len(singles)
    tridiagonal = float(alphas @ alphas + 2.0 * (betas @ betas))
    return Deflated(
        products=count,
        trace=float(alphas.sum()) + left * law.value,
        trace_variance=law.variance,
        freedom=law.freedom,
        square=tridiagonal + rest**2 + left * float(lengths.mean()),
        square_scatter=left**2 * float(lengths.var(ddof=1)) if count > 1 else 0.0,
        vectors=vectors,
    )


def _without_last(found: Coefficients, singles: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Take the last vector of an exhausted Krylov space out of products that all the others were taken out of.

    H maps the space to itself, so what a product has along that vector is known.
    """
    forms, lengths, overlaps = singles.T
    (last,), (square,) = diagonals(found, int(found.steps[0]) - 1)
    rest = np.maximum(1.0 - overlaps, np.finfo(np.float64).tiny)
    return (forms - last * overlaps) / rest, np.maximum(lengths - square * overlaps, 0.0) / rest


def diagonals(found: Coefficients, first: int) -> tuple[FloatArray, FloatArray]:
    """Return what ``H`` and ``H^2`` have on the diagonal for the Lanczos vectors of probe 0 from number first on."""
    steps = int(found.steps[0])
    alphas, betas = found.alphas[0, :steps], np.zeros(steps + 1)
    betas[1:steps], betas[steps] = found.betas[0, : steps - 1], found.residuals[0]
    return alphas[first:], (alphas**2 + betas[:-1] ** 2 + betas[1:] ** 2)[first:]
