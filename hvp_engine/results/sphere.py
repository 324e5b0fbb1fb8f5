"""What a probe drawn uniformly from the sphere does by chance: the laws that bars and guards start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hvp_engine.results.ritz import BoolArray, Ritz
from hvp_engine.results.smoothing import FloatArray

Function = Callable[[FloatArray], FloatArray]

# One over the degrees of freedom, and the 97.5 % point.
_STUDENT = (
    (0.0, 1 / 60, 1 / 30, 1 / 15, 1 / 10, 1 / 7, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 1.0),
    (1.960, 2.000, 2.042, 2.131, 2.228, 2.365, 2.571, 2.776, 3.182, 4.303, 12.706),
)

# Scatter between squared lengths that is expected before any is seen, as a squared coefficient of variation.
_PRIOR_SCATTER = 0.2


class MeanForm(NamedTuple):
    """What some probes say of a trace.

    Attributes:
        value: The mean of their forms ``h'Bh / h'h``.
        variance: Of the dimension times it, by the law of the sphere.
        freedom: How many squared normal variables that variance has seen, about.
    """

    value: float
    variance: float
    freedom: float


def of_forms(dimension: int, forms: FloatArray, squares: FloatArray) -> MeanForm:
    """Average forms of probes that are uniform on a sphere; ``dimension`` times the mean estimates a trace.

    A form has the variance ``2 Var / (d + 2)``, where Var is that of the eigenvalues, their mean square less their
    squared mean. The lengths of the products show that mean square better than few forms show their own spread.

    Args:
        dimension: d, of the sphere's space.
        forms: ``h'Bh / h'h`` of every probe h, shape (probes,).
        squares: ``|Bh|^2 / h'h``, shape (probes,).
    """
    value = float(forms.mean())
    variance = max(float(squares.mean()) - value**2, 0.0)
    count, mean = len(forms), float(squares.mean())
    scatter = float(((squares / mean - 1.0) ** 2).sum()) if mean > 0.0 else 0.0
    variance = 2.0 * dimension**2 / (dimension + 2.0) * variance / count
    return MeanForm(value, variance, 2.0 * count * count / (scatter + _PRIOR_SCATTER))


def traces(numel: int, pairs: Ritz, accepted: BoolArray, function: Function) -> tuple[FloatArray, FloatArray]:
    """Estimate ``tr f(H)`` by every probe alone, and the variance of that.

    Given the eigenvectors of the accepted values, the rest of the probe is uniform on the sphere of their complement,
    of dimension d. So the mean of f over the other nodes is that over the other d eigenvalues but for an error of
    variance ``2 Var(f) / (d + 2)``. Var(f) is taken over the same nodes, of which each stands for one eigenvalue at
    least, however small its weight came out. One node alone shows no spread, its residual does: the eigenvalues lie
    around it with this standard deviation, as the probe weighs them.

    Args:
        numel: Number of eigenvalues.
        pairs: Ritz values of the probes, shape (probes, m).
        accepted: Which of them are one eigenvalue each, shape (probes, m).
        function: f.

    Returns:
        Estimates and variances, float64 of shape (probes,); a variance is inf where nothing shows the spread.
    """
    values = function(pairs.nodes)
    rest = pairs.used & ~accepted
    free = numel - accepted.sum(axis=1)
    share = np.where(rest, pairs.weights, 0.0)
    share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-300)
    known = np.where(accepted, values, 0.0).sum(axis=1)
    mean = np.where(rest, share * values, 0.0).sum(axis=1)
    floored = np.maximum(share, 1.0 / np.maximum(free, 1)[:, None])
    spread = np.where(rest, floored * (values - mean[:, None]) ** 2, 0.0).sum(axis=1)
    lone = rest & (rest.sum(axis=1, keepdims=True) == 1)
    reach = np.where(pairs.residuals <= pairs.floor, 0.0, pairs.residuals)  # at the floor nothing was left over
    spread[lone.any(axis=1)] += _around(pairs.nodes[lone], reach[lone], function)
    return known + free * mean, free**2 * (2.0 / (free + 2.0)) * spread


def _around(nodes: FloatArray, reach: FloatArray, function: Function) -> FloatArray:
    """Return the mean square of what f changes from some nodes to as far as ``reach`` on either side of them."""
    known = np.isfinite(reach)
    changed = np.full(nodes.shape, np.inf)
    here, reach = nodes[known], reach[known]
    sides = [function(here + side * reach) - function(here) for side in (-1.0, 1.0)]
    changed[known] = 0.5 * (sides[0] ** 2 + sides[1] ** 2)
    return changed


def excess(mass: FloatArray, inside: FloatArray, outside: FloatArray) -> FloatArray:
    """Compare the weight on some directions with that of a point drawn uniformly from the sphere.

    Args:
        mass: The share of the squared length on ``inside`` of the ``inside + outside`` directions, Beta distributed.
        inside: Number of those directions.
        outside: Number of the others.

    Returns:
        By how many standard deviations it is too heavy, as for a normal variable (Paulson, "An approximate
        normalization of the analysis of variance distribution", Ann. Math. Stat. 13, 1942).
    """
    inside, outside = np.maximum(inside, 1), np.maximum(outside, 1)
    ratio = np.cbrt((mass / inside) / (np.maximum(1.0 - mass, 1e-300) / outside))
    a, b = 2.0 / (9.0 * inside), 2.0 / (9.0 * outside)
    return np.asarray(((1.0 - b) * ratio - (1.0 - a)) / np.sqrt(b * ratio**2 + a))


def student(freedom: float) -> float:
    """Return the 97.5 % point of Student's distribution, for a variance that has seen ``freedom`` squared normals."""
    return float(np.interp(1.0 / max(freedom, 1.0), *_STUDENT))
