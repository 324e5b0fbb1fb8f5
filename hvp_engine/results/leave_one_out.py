"""Trace and norm from products with random vectors and with a basis of what these gave, each vector left out in turn.

XTrace (Epperly, Tropp & Webber, "XTrace: making the most of every sample in stochastic trace estimation", SIAM J.
Matrix Anal. Appl. 45, 2024). Of k random vectors W the products A W = Q R are made orthogonal, and Q is multiplied. The
others' products span the range of ``P_i = Q (I - s_i s_i') Q'``, where s_i is column i of the inverse of R', of unit
length; so the trace is that of ``P_i A``, which is known, and that of A on the complement, of which vector i gives an
unbiased estimate, for it is independent of P_i. The estimate is the mean over i. A block's matrix is symmetric, so
``W' A W = W' Q R`` and nothing of the products is needed but R, Q'W and Q'AQ.

``tr A^2`` is estimated in the same way, from the lengths of the same products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hvp_engine.results.estimate import Estimate, skewed, with_noise
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.sphere import of_forms, student

METHOD, EXACT = "xtrace", "exact"

# The k estimates share all vectors but one, so they err together, which their spread does not show: the variance was 1
# (flat spectra) to 2.5 or 3 (decaying ones) times that of the spread for tr A^2, and 1 to 2 (near the identity) for the
# entries of a diagonal.
_SHARED_BY_SQUARES = 3.0
SHARED_BY_ENTRIES = 2.0
"""Factor on the variance that the spread of the estimates of an entry of the diagonal shows."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """A block's matrix as k products with random vectors and k with the basis Q of these show it; all float64.

    Attributes:
        numel: Length of its vectors.
        factor: R, (k, k): the products of vectors of length ``sqrt(numel)`` in the basis Q, upper triangular.
        overlaps: Q'W, (k, k).
        matrix: Q'AQ, (k, k).
        square: Q'A^2Q, (k, k); None where the products of Q were not kept.
        exhausted: Length of what a further product had outside of Q, where that was rounding: Q then spans the range
            of A; nan where it does not.
        noise: Relative error of one product.
    """

    numel: int
    factor: FloatArray
    overlaps: FloatArray
    matrix: FloatArray
    square: FloatArray | None
    exhausted: float
    noise: float

    @property
    def whole(self) -> bool:
        """Whether nothing is left to chance: Q spans the range of A, or everything."""
        return not math.isnan(self.exhausted) or len(self.matrix) == self.numel

    @property
    def missed(self) -> float:
        """What rounding may hide outside of Q, where Q spans the range of A."""
        return 0.0 if math.isnan(self.exhausted) else self.exhausted


class LeftOut(NamedTuple):
    """What each random vector says when it is left out of the basis; its rest is its component outside the others.

    Attributes:
        directions: S, (k, k): column i is the direction of Q that only vector i reached.
        used: (k, k): column i is what the others' basis takes out of vector i, in the basis Q.
        rests: (k,): squared lengths of the rests.
        reached: (k,): what the product of vector i has along direction i.
    """

    directions: FloatArray
    used: FloatArray
    rests: FloatArray
    reached: FloatArray


def left_out(factor: FloatArray, overlaps: FloatArray, squared_length: float) -> LeftOut:
    """Leave each vector out.

    Args:
        factor: R, with a diagonal above rounding.
        overlaps: Q'W.
        squared_length: Of every random vector.
    """
    inverse = np.linalg.inv(factor).T
    directions = np.asarray(inverse / np.linalg.norm(inverse, axis=0), dtype=np.float64)
    used = overlaps - directions * (directions * overlaps).sum(axis=0)
    tiny = float(np.finfo(np.float64).eps) * squared_length
    rests: FloatArray = np.maximum(squared_length - (used * used).sum(axis=0), tiny)
    return LeftOut(directions, used, rests, (directions * factor).sum(axis=0))


def trace(found: Compressed) -> Estimate:
    """Estimate ``tr A``.

    The bar is by the larger of two variances: that of the spread of the k estimates, which is too small where they err
    together, and that which vectors of the sphere have, from the lengths of what products have outside the others'
    basis (:func:`hvp_engine.results.sphere.of_forms`), which counts what couples the two as well.
    """
    noise = found.noise * norm(found)
    if found.whole:
        return with_noise(float(np.trace(found.matrix)), 0.0, found.missed * found.numel**0.5, noise, EXACT)
    left, count = left_out(found.factor, found.overlaps, found.numel), len(found.factor)
    forms = (
        (found.overlaps * found.factor).sum(axis=0)
        - 2.0 * (left.used * found.factor).sum(axis=0)
        + (left.used * (found.matrix @ left.used)).sum(axis=0)
    )
    inside = np.trace(found.matrix) - (left.directions * (found.matrix @ left.directions)).sum(axis=0)
    outside = found.numel - count + 1
    estimates = inside + outside * forms / left.rests
    own = float(estimates.var(ddof=1)) / count
    law = of_forms(outside, forms / left.rests, left.reached**2 / left.rests)
    half = max(student(count - 1) * math.sqrt(own), student(law.freedom) * math.sqrt(law.variance))
    stderr = math.sqrt(max(own, law.variance))
    return with_noise(float(estimates.mean()), stderr, half, noise, METHOD)


def square(found: Compressed) -> Estimate:
    """Estimate ``tr A^2``, the square of the Frobenius norm; the products of Q must have been kept."""
    assert found.square is not None
    size = norm(found)
    noise = 2.0 * found.noise * size**2
    if found.whole:
        half = found.missed * (2.0 * size + found.missed)
        return with_noise(float(np.trace(found.square)), 0.0, half, noise, EXACT)
    left, count = left_out(found.factor, found.overlaps, found.numel), len(found.factor)
    lengths = (
        (found.factor * found.factor).sum(axis=0)
        - 2.0 * (found.factor * (found.matrix @ left.used)).sum(axis=0)
        + (left.used * (found.square @ left.used)).sum(axis=0)
    )
    inside = np.trace(found.square) - (left.directions * (found.square @ left.directions)).sum(axis=0)
    estimates = inside + (found.numel - count + 1) * np.maximum(lengths, 0.0) / left.rests
    stderr = math.sqrt(_SHARED_BY_SQUARES * float(estimates.var(ddof=1)) / count)
    return skewed(with_noise(float(estimates.mean()), stderr, student(count - 1) * stderr, noise, METHOD))


def norm(found: Compressed) -> float:
    """Return the Frobenius norm, about: the root of the mean square of the products with random vectors."""
    if found.whole:
        return float(np.linalg.norm(found.matrix))
    return float(np.linalg.norm(found.factor)) / math.sqrt(len(found.factor))
